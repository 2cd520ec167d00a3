"""IFEval: instructions that a program can check; a prompt counts when all of its instructions are followed, loosely.

Official layout: input_data.jsonl of {"key", "prompt", "instruction_id_list", "kwargs"}.
"""

from __future__ import annotations

import json

from leadline.eval.data import Row, text_of
from leadline.eval.following import follows_loosely
from leadline.eval.task import Generation, Item, Setup, Task


def load(setup: Setup) -> list[Item]:
    rows = setup.source.rows("*input_data.jsonl", "data/*input_data.jsonl")
    return [_item(row, place) for place, row in enumerate(rows)]


def _item(row: Row, place: int) -> Item:
    key, prompt = (text_of(row, name, place=f"row {place}") for name in ("key", "prompt"))
    checks = {"names": row.get("instruction_id_list") or [], "arguments": row.get("kwargs") or []}
    facts = {name: json.dumps(value) for name, value in checks.items()}
    return Item(key, prompt, str(row.get("answer") or ""), facts=facts)


def mark(item: Item, answer: str) -> float:
    return float(follows_loosely(answer, json.loads(item.facts["names"]), json.loads(item.facts["arguments"])))


TASK = Task(
    name="ifeval",
    about="instructions that a program can check, Google's prompts",
    load=load,
    method=Generation(mark, max_tokens=1024, chat=True),
    benchmark="IFEval",
    metric="prompt-level loose",
    hub="google/IFEval",
)
