"""ARC: school science in two parts, 25 examples from the training split, the likeliest letter (table 13).

Official layout: ARC-Easy/ARC-Easy-Train.jsonl, ARC-Easy-Test.jsonl and the same for ARC-Challenge, of {"id",
"question": {"stem", "choices": [{"text", "label"}]}, "answerKey"}.
"""

from __future__ import annotations

import functools
from string import ascii_uppercase

from leadline.errors import DataError
from leadline.eval.data import Row, text_of
from leadline.eval.quiz import Question, Style, quiz_items
from leadline.eval.task import Choice, Item, Setup, Task

STYLE = Style(head=lambda part: "", question="Question: ", asks="Answer:", space=" ")


def load(setup: Setup, part: str) -> list[Item]:
    asked = _read(setup, part, "Test")
    known = _read(setup, part, "Train") if setup.shots else []
    return quiz_items(setup, known, asked, STYLE)


def _read(setup: Setup, part: str, split: str) -> list[Question]:
    name, lower = f"ARC-{part}", split.lower()
    rows = setup.source.rows(f"{name}/{name}-{split}.jsonl", f"{name}-{split}.jsonl", f"{name}/{lower}*.parquet")
    return [science_question(row, part.lower(), f"{name}-{split}, row {place}") for place, row in enumerate(rows)]


def science_question(row: Row, subject: str, place: str) -> Question:
    """A row of ARC's or OpenBookQA's files, or of their tables on the hub; options labelled 1, 2, ... get letters."""
    asked = row.get("question")
    nested = asked if isinstance(asked, dict) else {}
    stem = text_of({**row, **nested}, "stem", "question_stem", "question", place=place)
    options = _options(nested.get("choices") or row.get("choices") or [])
    answer = text_of(row, "answerKey", place=place).strip()
    if answer not in options:
        raise DataError(f"{place} has the answer {answer!r}, which is none of its options")
    return Question(subject, stem.strip(), tuple(options.values()), ascii_uppercase[[*options].index(answer)])


def _options(choices: list[dict[str, str]] | dict[str, list[str]]) -> dict[str, str]:
    """Texts by label: the files have a list of pairs, the hub a pair of lists."""
    if isinstance(choices, dict):
        return dict(zip(choices["label"], choices["text"], strict=True))
    return {choice["label"]: choice["text"].strip() for choice in choices}


def _task(part: str) -> Task:
    return Task(
        name=f"arc_{part.lower()}",
        about=f"school science, English, the {part.lower()} part",
        load=functools.partial(load, part=part),
        method=Choice(),
        shots=25,
        benchmark=f"ARC-{part}",
        chance=0.25,
        hub="allenai/ai2_arc",
        hub_files=(f"ARC-{part}/*",),
        folders=("arc", "ARC-V1-Feb2018"),
    )


TASKS = (_task("Easy"), _task("Challenge"))
