"""Bits per byte of text that was not trained on: what the model needs for each byte of it, end of text aside.

The paper measures it on the Pile's test split. Layout: test.jsonl of {"text", "meta": {"pile_set_name"}}, or any .jsonl
with "text" and any .txt files; each set is a group.
"""

from __future__ import annotations

from leadline.errors import DataError
from leadline.eval.data import Row, text_of
from leadline.eval.task import BitsPerByte, Item, Setup, Task


def load(setup: Setup) -> list[Item]:
    texts = [(path.stem, path.stem, path.read_text(encoding="utf-8")) for path in setup.source.files("*.txt")]
    if setup.source.files("*.jsonl*"):
        for name, rows in setup.source.tables("*.jsonl*"):
            for place, row in enumerate(rows):
                text = text_of(row, "text", place=f"{name}, row {place}")
                texts.append((f"{name}/{place}", _group(row, name), text))
    if not texts:
        raise DataError(f"bits_per_byte expects *.jsonl or *.txt in {setup.source.folder}", param="data")
    return [Item(place, text, text, group=group) for place, group, text in texts if text]


def _group(row: Row, name: str) -> str:
    meta = row.get("meta")
    return str(meta.get("pile_set_name", name)) if isinstance(meta, dict) else name


TASK = Task(
    name="bits_per_byte",
    about="how well text is predicted; less is better",
    load=load,
    method=BitsPerByte(),
    benchmark="Pile-test",
    metric="BPB",
    chance=8.0,
    perfect=0.0,
    folders=("pile", "bpb"),
)
