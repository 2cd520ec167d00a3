"""WinoGrande: whom a sentence speaks of, 5 examples; the name after which the rest is likeliest (table 35).

There are two prefixes and one completion, and the prefix with the least perplexity of the completion is chosen.
Official layout: train_xl.jsonl and dev.jsonl of {"sentence", "option1", "option2", "answer"}, a sentence with one _.
"""

from __future__ import annotations

from leadline.errors import DataError
from leadline.eval.data import Row, text_of
from leadline.eval.task import Item, PrefixChoice, Setup, Task


def load(setup: Setup) -> list[Item]:
    train = setup.source.rows("train_xl.jsonl", "winogrande_xl/train*.parquet") if setup.shots else []
    known = "".join(_example(row, f"train, row {place}") for place, row in enumerate(train[: setup.shots]))
    rows = setup.source.rows("dev.jsonl", "winogrande_xl/validation*.parquet")
    return [_item(row, place, known) for place, row in enumerate(rows)]


def _item(row: Row, place: int, known: str) -> Item:
    prefixes, right, completion = _parts(row, f"dev, row {place}")
    return Item(str(place), known, right, prefixes, completion=completion)


def _example(row: Row, place: str) -> str:
    _, right, completion = _parts(row, place)
    return f"{right}{completion}\n\n"


def _parts(row: Row, place: str) -> tuple[tuple[str, ...], str, str]:
    """Both prefixes, the right one, and what follows either."""
    before, gap, after = text_of(row, "sentence", place=place).partition("_")
    answer = text_of(row, "answer", place=place)
    if not gap or answer not in ("1", "2"):
        raise DataError(f"{place} has no _ in its sentence, or an answer that is neither 1 nor 2")
    prefixes = tuple(before + text_of(row, name, place=place) for name in ("option1", "option2"))
    return prefixes, prefixes[int(answer) - 1], after


TASK = Task(
    name="winogrande",
    about="whom a sentence speaks of, two names, English; the validation split",
    load=load,
    method=PrefixChoice(),
    shots=5,
    benchmark="WinoGrande",
    chance=0.5,
    hub="allenai/winogrande",
    hub_files=("winogrande_xl/*",),
    folders=("winogrande_1.1",),
)
