"""CHID: which idiom goes on, Chinese, without examples, the continuation of least perplexity (table 22).

Official layout, of the set with seven candidates: test_public.json, a line each of {"content", "candidates",
"answer"}; the place of the idiom is #idiom#. A choice is the idiom and the rest of the text.
"""

from __future__ import annotations

from leadline.errors import DataError
from leadline.eval.data import Row, text_of
from leadline.eval.task import Choice, Item, Setup, Task

GAP = "#idiom#"


def load(setup: Setup) -> list[Item]:
    rows = setup.source.rows("test_public.json", "*/test_public.json", "dev_few_all.json")
    return [_item(row, place) for place, row in enumerate(rows)]


def _item(row: Row, place: int) -> Item:
    before, gap, after = text_of(row, "content", place=f"row {place}").partition(GAP)
    answer = int(text_of(row, "answer", place=f"row {place}"))
    candidates = row.get("candidates") or []
    if not gap or not 0 <= answer < len(candidates):
        raise DataError(f"row {place} has no {GAP} in its text, or an answer that is none of its candidates")
    choices = tuple(candidate + after for candidate in candidates)
    return Item(str(place), before, choices[answer], choices)


TASK = Task(
    name="chid",
    about="which idiom goes on, seven candidates, Chinese",
    load=load,
    method=Choice(per_token=True),
    benchmark="CHID",
    chance=1 / 7,
    folders=("chid_few",),
)
