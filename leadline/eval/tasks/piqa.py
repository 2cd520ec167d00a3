"""PIQA: how a thing is done, without examples, of two solutions the one of least perplexity (table 32).

Official layout: valid.jsonl of {"goal", "sol1", "sol2"} and valid-labels.lst, a line each; the answers of its test
split are not public, so the validation split is asked.
"""

from __future__ import annotations

from leadline.errors import DataError
from leadline.eval.data import Row, text_of
from leadline.eval.task import Choice, Item, Setup, Task


def load(setup: Setup) -> list[Item]:
    rows = setup.source.rows("valid.jsonl", "*/valid.jsonl")
    labels = _labels(setup, rows)
    return [_item(row, label, place) for place, (row, label) in enumerate(zip(rows, labels, strict=True))]


def _labels(setup: Setup, rows: list[Row]) -> list[int]:
    found = setup.source.files("valid-labels.lst", "*/valid-labels.lst")
    labels = found[0].read_text(encoding="utf-8").split() if found else [str(row.get("label")) for row in rows]
    if len(labels) != len(rows) or not set(labels) <= {"0", "1"}:
        raise DataError(f"piqa expects a 0 or 1 in valid-labels.lst for each of its {len(rows)} goals", param="data")
    return [*map(int, labels)]


def _item(row: Row, label: int, place: int) -> Item:
    goal, *solutions = (text_of(row, name, place=f"valid, row {place}").strip() for name in ("goal", "sol1", "sol2"))
    choices = tuple(f" {solution}" for solution in solutions)
    return Item(str(place), goal, choices[label], choices)


TASK = Task(
    name="piqa",
    about="how a thing is done, two solutions, English; the validation split",
    load=load,
    method=Choice(per_token=True),
    benchmark="PIQA",
    chance=0.5,
    folders=("physicaliqa-train-dev",),
)
