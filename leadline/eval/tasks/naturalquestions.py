"""NaturalQuestions: what people asked a search engine, 5 examples, exact match with any right answer (table 30).

Official layout of the open part: NQ-open.train.jsonl and NQ-open.dev.jsonl of {"question", "answer": [...]},
questions in small letters. The examples are the paper's where the training split has them.
"""

from __future__ import annotations

import json

from leadline.eval.data import Row, pick, text_of
from leadline.eval.spans import exact
from leadline.eval.task import Generation, Item, Setup, Task
from leadline.eval.tasks.triviaqa import HEAD

# How the paper's examples open.
EXAMPLES = (
    "who is hosting the fifa world cup in 2022",
    "who won the first women 's fifa world cup",
    "when did miami vice go off the air",
    "who wrote the song shout to the lord",
    "who was thrown in the lion 's den",
)


def load(setup: Setup) -> list[Item]:
    train = (
        setup.source.rows("NQ-open.train.jsonl", "*/NQ-open.train.jsonl", "nq_open/train*.parquet")
        if setup.shots
        else []
    )
    known = "".join(f"{asked(row)} {row['answer'][0]}\n" for row in pick(train, "question", EXAMPLES, setup.shots))
    rows = setup.source.rows("NQ-open.dev.jsonl", "*/NQ-open.dev.jsonl", "nq_open/validation*.parquet")
    return [_item(row, place, known) for place, row in enumerate(rows)]


def asked(row: Row) -> str:
    """With a capital and a question mark, which the data lack."""
    question = row["question"].strip().rstrip("?").rstrip()
    return f"Q: {question[:1].upper()}{question[1:]}?\nA:"


def _item(row: Row, place: int, known: str) -> Item:
    for name in ("question", "answer"):
        text_of(row, name, place=f"dev, row {place}")
    facts = {"rights": json.dumps(row["answer"])}
    return Item(str(place), f"{HEAD}{known}{asked(row)}", f" {row['answer'][0]}", facts=facts)


def mark(item: Item, answer: str) -> float:
    return float(exact(answer.strip().split("\n")[0], json.loads(item.facts["rights"])))


TASK = Task(
    name="naturalquestions",
    about="what people ask a search engine, English",
    load=load,
    method=Generation(mark, stop=("\n",), max_tokens=32),
    shots=5,
    benchmark="NaturalQuestions",
    metric="EM",
    hub="google-research-datasets/nq_open",
    hub_files=("nq_open/*",),
    folders=("nq", "nq_open"),
)
