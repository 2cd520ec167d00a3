"""CMRC 2018: questions on a passage, Chinese, exact match (table 20). The example is another question on the passage.

Official layout: cmrc2018_dev.json of {"data": [{"paragraphs": [{"context", "qas": [{"id", "question", "answers":
[{"text"}]}]}]}]}, SQuAD's.
"""

from __future__ import annotations

import json
from typing import Any

from leadline.errors import DataError
from leadline.eval.passages import others
from leadline.eval.spans import exact_chinese
from leadline.eval.task import Generation, Item, Setup, Task


def load(setup: Setup) -> list[Item]:
    rows = setup.source.rows("cmrc2018_dev.json", "*/cmrc2018_dev.json", "dev.json")
    try:
        paragraphs = [each for article in rows[0]["data"] for each in article["paragraphs"]]
        return [item for paragraph in paragraphs for item in _items(setup, paragraph)]
    except (IndexError, KeyError, TypeError) as error:
        raise DataError(f"cmrc2018_dev.json is not in its official layout: {error!r}") from None


def _items(setup: Setup, paragraph: dict[str, Any]) -> list[Item]:
    questions = paragraph["qas"]
    head = f"文章：{paragraph['context'].strip()}\n\n根据上文回答下面的问题。\n"
    items = []
    for place, question in enumerate(questions):
        rights = [answer["text"] for answer in question["answers"]]
        examples = others(questions, place, setup.shots)
        known = "".join(f"{_asked(each)}{each['answers'][0]['text']}\n" for each in examples)
        facts = {"rights": json.dumps(rights)}
        items.append(Item(question["id"], head + known + _asked(question), rights[0], facts=facts))
    return items


def _asked(question: dict[str, Any]) -> str:
    return f"问题：{question['question'].strip()}\n答案："


def mark(item: Item, answer: str) -> float:
    return float(exact_chinese(answer.strip().split("\n")[0], json.loads(item.facts["rights"])))


TASK = Task(
    name="cmrc",
    about="questions on a passage, Chinese; the validation split",
    load=load,
    method=Generation(mark, stop=("\n",), max_tokens=96),
    shots=1,
    benchmark="CMRC",
    metric="EM",
    folders=("cmrc2018", "cmrc2018_public"),
)
