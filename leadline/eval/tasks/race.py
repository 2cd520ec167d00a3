"""RACE: English examinations in two parts, the answer of least perplexity (table 33).

The examples of a question, up to 5, are the other questions of its article. Official layout: test/middle/N.txt and
test/high/N.txt, each of {"article", "questions", "options", "answers"}.
"""

from __future__ import annotations

import dataclasses
import functools
import json

from leadline.errors import DataError
from leadline.eval.data import Row
from leadline.eval.passages import others
from leadline.eval.quiz import LETTERS
from leadline.eval.task import Choice, Item, Setup, Task


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    text: str
    options: tuple[str, ...]
    answer: str

    @property
    def asked(self) -> str:
        return f"Q: {self.text}\n\nA:"


def load(setup: Setup, part: str) -> list[Item]:
    items = []
    for name, article, questions in _articles(setup, part):
        for place, question in enumerate(questions):
            known = "".join(f"{each.asked}{each.answer}\n\n" for each in others(questions, place, setup.shots))
            prompt = f"Article:\n{article}\n\n{known}{question.asked}"
            items.append(Item(f"{name}/{place}", prompt, question.answer, question.options))
    return items


def _articles(setup: Setup, part: str) -> list[tuple[str, str, list[Question]]]:
    """(name, text, questions) of each article; a row of the hub's table holds one question of its article."""
    files = setup.source.files(f"test/{part}/*.txt", f"*/test/{part}/*.txt", f"{part}/*.txt")
    if not files:
        return _grouped(setup.source.rows(f"{part}/test*.parquet", f"test/{part}/*.txt"))
    articles = []
    for path in files:
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            asked = zip(row["questions"], row["options"], row["answers"], strict=True)
            articles.append((path.stem, str(row["article"]).strip(), [_question(*each) for each in asked]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not an article with its questions: {error!r}") from None
    return articles


def _grouped(rows: list[Row]) -> list[tuple[str, str, list[Question]]]:
    found: dict[str, list[Question]] = {}
    for row in rows:
        found.setdefault(row["article"], []).append(_question(row["question"], row["options"], row["answer"]))
    return [(str(place), article.strip(), questions) for place, (article, questions) in enumerate(found.items())]


def _question(text: str, options: list[str], letter: str) -> Question:
    continuations = tuple(f" {option.strip()}" for option in options)
    return Question(text.strip(), continuations, continuations[LETTERS.index(letter)])


def _task(part: str) -> Task:
    return Task(
        name=f"race_{part}",
        about=f"questions on an article, English, {part} school",
        load=functools.partial(load, part=part),
        method=Choice(per_token=True),
        shots=5,
        benchmark=f"RACE-{part.capitalize()}",
        chance=0.25,
        hub="ehovy/race",
        hub_files=(f"{part}/*",),
        folders=("race", "RACE"),
    )


TASKS = (_task("middle"), _task("high"))
