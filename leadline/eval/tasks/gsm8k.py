"""GSM8K: word problems of school mathematics, 8 worked examples, the number of the answer (table 24).

Official layout: train.jsonl and test.jsonl of {"question", "answer"}, where an answer is worked out line by line, with
<<calculations>>, and ends in "#### NUMBER". The examples are the paper's where the training split has them.
"""

from __future__ import annotations

import re

from leadline.errors import DataError
from leadline.eval.answers import answer_number, number
from leadline.eval.data import Row, pick, text_of
from leadline.eval.task import Generation, Item, Setup, Task

# How the paper's examples open.
EXAMPLES = (
    "Max can mow",
    "The bagels cost",
    "Tim is 5 years",
    "The school has 14",
    "Building one birdhouse",
    "Danny brings 3",
    "Angela is a bike",
    "Cori is 3 years",
)
FIRST = "A: Let's think step by step."


def load(setup: Setup) -> list[Item]:
    train = setup.source.rows("train.jsonl", "main/train*.parquet") if setup.shots else []
    shots = pick(train, "question", EXAMPLES, setup.shots)
    known = "".join(f"Q: {row['question'].strip()}\n{FIRST} {worked(row['answer'])}\n\n" for row in shots)
    rows = setup.source.rows("test.jsonl", "main/test*.parquet")
    return [_item(row, number, known) for number, row in enumerate(rows)]


def worked(answer: str) -> str:
    """The worked answer as one paragraph that ends in its number."""
    steps, _, final = answer.partition("####")
    lines = [line.strip() for line in re.sub(r"<<.*?>>", "", steps).splitlines() if line.strip()]
    text = " ".join(line if line.endswith((".", "!", "?")) else f"{line}." for line in lines)
    return f"{text} The answer is {final.strip()}."


def _item(row: Row, place: int, known: str) -> Item:
    question = text_of(row, "question", place=f"test, row {place}").strip()
    answer = text_of(row, "answer", place=f"test, row {place}")
    final = answer.rpartition("####")[2].strip()
    if number(final) is None:
        raise DataError(f"test, row {place}: {final!r} is not a number")
    return Item(str(place), f"{known}Q: {question}\n{FIRST}", f" {worked(answer)}", facts={"final": final})


def mark(item: Item, answer: str) -> float:
    return float(answer_number(answer) == number(item.facts["final"]))


TASK = Task(
    name="gsm8k",
    about="school mathematics in words, English",
    load=load,
    method=Generation(mark, stop=("\n\nQ:", "\nQ:"), max_tokens=400),
    shots=8,
    benchmark="GSM8K",
    metric="EM",
    hub="openai/gsm8k",
    hub_files=("main/*",),
)
