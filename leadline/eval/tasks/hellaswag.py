"""HellaSwag: what happens next, 10 examples from the training split, the ending of least perplexity (table 25).

Official layout: hellaswag_train.jsonl and hellaswag_val.jsonl of {"activity_label", "ctx_a", "ctx_b", "endings",
"label"}; the answers of its test split are not public, so the validation split is asked.
"""

from __future__ import annotations

import re

from leadline.eval.data import Row, text_of
from leadline.eval.task import Choice, Item, Setup, Task

TITLE = re.compile(r"\s*\[title\]\s*")
MARK = re.compile(r"\[.*?\]")


def load(setup: Setup) -> list[Item]:
    train = setup.source.rows("hellaswag_train.jsonl", "data/train*.parquet") if setup.shots else []
    known = "".join(_example(row, place) for place, row in enumerate(train[: setup.shots]))
    rows = setup.source.rows("hellaswag_val.jsonl", "data/validation*.parquet")
    return [_item(row, place, known) for place, row in enumerate(rows)]


def _item(row: Row, place: int, known: str) -> Item:
    endings = _endings(row)
    answer = endings[int(text_of(row, "label", place=f"validation, row {place}"))]
    return Item(str(place), known + _scene(row, f"validation, row {place}"), answer, endings)


def _example(row: Row, place: int) -> str:
    right = _endings(row)[int(text_of(row, "label", place=f"train, row {place}"))]
    return f"{_scene(row, f'train, row {place}')}{right}\n\n"


def _scene(row: Row, place: str) -> str:
    """What is done, and its beginning; the second sentence begins with a capital as in the paper."""
    label, first, second = (text_of(row, name, place=place) for name in ("activity_label", "ctx_a", "ctx_b"))
    return clean(f"{label}: {first} {second.capitalize()}").strip()


def _endings(row: Row) -> tuple[str, ...]:
    return tuple(f" {clean(ending).strip()}" for ending in row["endings"])


def clean(text: str) -> str:
    """Without the marks of the web page that a text is from."""
    return re.sub(" +", " ", MARK.sub("", TITLE.sub(". ", text)))


TASK = Task(
    name="hellaswag",
    about="what happens next, English; the validation split",
    load=load,
    method=Choice(per_token=True),
    shots=10,
    benchmark="HellaSwag",
    chance=0.25,
    hub="Rowan/hellaswag",
    hub_files=("data/*",),
)
