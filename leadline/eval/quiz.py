"""Questions with lettered options: MMLU, CMMLU, C-Eval and ARC differ in their words only (appendix G, tables 13, 15,
19 and 29)."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from string import ascii_uppercase

from leadline.errors import DataError
from leadline.eval.data import Row, Source, text_of
from leadline.eval.task import Item, Setup

LETTERS = ("A", "B", "C", "D")
"""Of the sets that have four options always."""


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    subject: str
    text: str
    options: tuple[str, ...]
    answer: str  # a letter

    def body(self) -> str:
        """The question and its options, one a line."""
        options = (f"{letter}. {option}" for letter, option in zip(ascii_uppercase, self.options, strict=False))
        return "\n".join((self.text, *options))


@dataclasses.dataclass(frozen=True)
class Style:
    """`head(subject)` opens a prompt, `question` stands before each question, `asks` before the answer's letter."""

    head: Callable[[str], str]
    question: str
    asks: str
    space: str  # between `asks` and the letter; it belongs to the letter's token


def read_questions(
    source: Source, patterns: Sequence[str], *, suffix: str = "", columns: tuple[str, ...] = ()
) -> list[Question]:
    """From CSV files of one subject each (`SUBJECT` + suffix), or from the hub's tables with a column `subject`."""
    return [
        _question(row, name.removesuffix(suffix), f"{name}, row {number}")
        for name, rows in source.tables(*patterns, columns=columns)
        for number, row in enumerate(rows, 1)
    ]


def _question(row: Row, subject: str, place: str) -> Question:
    options = row.get("choices") or [text_of(row, letter, place=place) for letter in LETTERS]
    answer = text_of(row, "answer", "Answer", place=place).strip()
    letter = LETTERS[int(answer)] if answer in ("0", "1", "2", "3") else answer
    if letter not in LETTERS:
        raise DataError(f"{place} has the answer {answer!r}, which is none of A to D")
    text = text_of(row, "question", "Question", place=place).strip()
    return Question(str(row.get("subject") or subject), text, tuple(str(each).strip() for each in options), letter)


def quiz_items(setup: Setup, examples: Sequence[Question], questions: Sequence[Question], style: Style) -> list[Item]:
    """Each question after the first examples of its subject, answered by the likeliest letter."""
    shots: dict[str, list[Question]] = defaultdict(list)
    for example in examples:
        shots[example.subject].append(example)
    numbers: dict[str, int] = defaultdict(int)
    items = []
    for question in questions:
        subject = question.subject
        known = "".join(_example(each, style) for each in shots[subject][: setup.shots])
        prompt = f"{style.head(subject)}{known}{style.question}{question.body()}\n{style.asks}"
        choices = tuple(style.space + letter for letter in ascii_uppercase[: len(question.options)])
        answer = style.space + question.answer
        items.append(Item(f"{subject}/{numbers[subject]}", prompt, answer, choices, subject))
        numbers[subject] += 1
    return items


def _example(question: Question, style: Style) -> str:
    return f"{style.question}{question.body()}\n{style.asks}{style.space}{question.answer}\n\n"
