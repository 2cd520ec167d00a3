"""DROP: questions on a passage that ask for counting and sorting, F1 of the words of the answer (table 21).

The examples of a question, up to 3, are other questions on its passage. The prompt says of which type the answer is, a
number, a date, a span or spans. Official layout: drop_dataset_dev.json of {passage's name: {"passage", "qa_pairs":
[{"question", "answer": {"number", "date": {"day", "month", "year"}, "spans"}, "validated_answers"}]}}.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from leadline.errors import DataError
from leadline.eval.passages import others
from leadline.eval.spans import f1
from leadline.eval.task import Generation, Item, Setup, Task

CALCULATE = (
    "Answer the following questions based on the above passage, please calculate carefully if calculation is necessary."
)


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """`rights` are the answers of several people, each of one or more spans; the first is the one in examples."""

    text: str
    kind: str
    rights: tuple[tuple[str, ...], ...]

    @property
    def asked(self) -> str:
        return f"Q: {self.text}\nA: The answer type is {self.kind}. So according to above Passage, the answer is"

    @property
    def answer(self) -> str:
        return f" {', '.join(self.rights[0])}."


def load(setup: Setup) -> list[Item]:
    items = []
    for row in setup.source.rows("drop_dataset_dev.json", "*/drop_dataset_dev.json"):
        for name, passage in row.items():
            items += _items(setup, name, passage)
    return items


def _items(setup: Setup, name: str, passage: Mapping[str, Any]) -> list[Item]:
    try:
        questions = [_question(pair) for pair in passage["qa_pairs"]]
        head = f"Passage: {passage['passage'].strip()}\n\n{CALCULATE}\n"
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"drop_dataset_dev.json: {name} is not a passage with its questions: {error!r}") from None
    items = []
    for place, question in enumerate(questions):
        known = "".join(f"{each.asked}{each.answer}\n\n" for each in others(questions, place, setup.shots))
        facts = {"rights": json.dumps(question.rights)}
        items.append(Item(f"{name}/{place}", head + known + question.asked, question.answer, facts=facts))
    return items


def _question(pair: Mapping[str, Any]) -> Question:
    answers = [pair["answer"], *pair.get("validated_answers", ())]
    kind, first = spans(answers[0])
    rights = [first, *(found for _, found in map(spans, answers[1:]) if found)]
    return Question(pair["question"].strip(), kind, tuple(dict.fromkeys(rights)))


def spans(answer: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """(type, spans) of an answer in the official form."""
    if answer.get("number"):
        return "number", (str(answer["number"]),)
    if found := tuple(answer.get("spans") or ()):
        return "span" if len(found) == 1 else "spans", found
    date = answer.get("date") or {}
    text = " ".join(date[name] for name in ("day", "month", "year") if date.get(name))
    return "date", (text,) if text else ()


def mark(item: Item, answer: str) -> float:
    """Against whichever right answer is nearest; several spans are told apart by commas."""
    said = answer.strip().split("\n")[0].strip().rstrip(".")
    rights: list[list[str]] = json.loads(item.facts["rights"])
    return max(f1([said] if len(right) == 1 else said.split(", "), right) for right in rights)


TASK = Task(
    name="drop",
    about="questions on a passage that ask for counting, English",
    load=load,
    method=Generation(mark, stop=("\n",), max_tokens=64),
    shots=3,
    benchmark="DROP",
    metric="F1",
    folders=("drop_dataset",),
)
