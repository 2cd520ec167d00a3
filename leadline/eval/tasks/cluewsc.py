"""CLUEWSC: whom a pronoun means, Chinese, 5 examples, exact match (table 23).

Official layout: train.json and dev.json, a line each of {"target": {"span1_text", "span2_text"}, "label", "text"}.
Its rows say whether a pronoun, span 2, means a name, span 1; what is asked here is whom it means, so the rows where
it does.
"""

from __future__ import annotations

from leadline.errors import DataError
from leadline.eval.data import Row, pick
from leadline.eval.spans import exact_chinese
from leadline.eval.task import Generation, Item, Setup, Task

# How the paper's examples open.
EXAMPLES = ("胡雪岩离船登岸", "渐渐地，汤中凝结出", "“她序上明明引着", "在洛伦佐大街的尽头处", "他伯父还有许多女弟子")


def load(setup: Setup) -> list[Item]:
    train = _rows(setup, "train") if setup.shots else []
    known = "".join(f"{asked(row)}{row['name']}\n\n" for row in pick(train, "text", EXAMPLES, setup.shots))
    return [Item(row["id"], known + asked(row), row["name"]) for row in _rows(setup, "dev")]


def _rows(setup: Setup, split: str) -> list[Row]:
    rows = setup.source.rows(f"{split}.json", f"*/{split}.json", f"{split}_few_all.json")
    return [
        _row(row, f"{split}, row {place}") for place, row in enumerate(rows) if str(row.get("label")).lower() == "true"
    ]


def _row(row: Row, place: str) -> Row:
    try:
        target = row["target"]
        return {"id": place, "text": row["text"].strip(), "name": target["span1_text"], "pronoun": target["span2_text"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{place} is not a sentence with its two spans: {error!r}") from None


def asked(row: Row) -> str:
    return f'{row["text"]}\n上面的句子中的"{row["pronoun"]}"指的是\n'


def mark(item: Item, answer: str) -> float:
    return float(exact_chinese(answer.strip().split("\n")[0], [item.answer]))


TASK = Task(
    name="cluewsc",
    about="whom a pronoun means, Chinese; the validation split",
    load=load,
    method=Generation(mark, stop=("\n",), max_tokens=32),
    shots=5,
    benchmark="CLUEWSC",
    metric="EM",
    folders=("cluewsc2020", "cluewsc2020_public"),
)
