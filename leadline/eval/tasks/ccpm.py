"""CCPM: which line of a poem a modern sentence translates, without examples, the line of least perplexity (table 17).

Official layout: valid.jsonl of {"translation", "choices", "answer"}; the answers of its test split are not public, so
the validation split is asked.
"""

from __future__ import annotations

from leadline.errors import DataError
from leadline.eval.data import Row, text_of
from leadline.eval.task import Choice, Item, Setup, Task


def load(setup: Setup) -> list[Item]:
    return [_item(row, place) for place, row in enumerate(setup.source.rows("valid.jsonl", "*/valid.jsonl"))]


def _item(row: Row, place: int) -> Item:
    modern = text_of(row, "translation", place=f"valid, row {place}").strip()
    answer, lines = int(text_of(row, "answer", place=f"valid, row {place}")), tuple(row.get("choices") or ())
    if not 0 <= answer < len(lines):
        raise DataError(f"valid, row {place} has the answer {answer}, which is none of its choices")
    prompt = f"以下是将某句古诗文翻译而成的现代表述：{modern}\n该翻译所对应的古诗文是："
    return Item(str(place), prompt, lines[answer], lines)


TASK = Task(
    name="ccpm",
    about="which line of a poem a sentence translates, Chinese; the validation split",
    load=load,
    method=Choice(per_token=True),
    benchmark="CCPM",
    chance=0.25,
    folders=("CCPM",),
)
