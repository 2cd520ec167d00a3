"""HumanEval: 164 Python functions to complete from their head and description, run against tests (table 26).

Official layout: HumanEval.jsonl.gz of {"task_id", "prompt", "entry_point", "canonical_solution", "test"}.
"""

from __future__ import annotations

from leadline.eval.answers import code_block
from leadline.eval.data import Row, text_of
from leadline.eval.task import Code, Item, Setup, Task

STOP = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\nassert ", "\n```")


def load(setup: Setup) -> list[Item]:
    rows = setup.source.rows("HumanEval.jsonl*", "data/HumanEval.jsonl*", "*/test*.parquet")
    return [_item(row, place) for place, row in enumerate(rows)]


def _item(row: Row, place: int) -> Item:
    names = ("task_id", "prompt", "canonical_solution", "entry_point", "test")
    task, prompt, solution, entry, test = (text_of(row, name, place=f"row {place}") for name in names)
    return Item(task, prompt, solution, facts={"entry": entry, "test": test})


def program(item: Item, answer: str) -> str:
    """The completed function and its tests. A chat's answer may repeat the head, or be in a fenced block."""
    entry = item.facts["entry"]
    code = code_block(answer)
    body = f"{item.prompt}    pass\n\n\n{code}" if f"def {entry}(" in code else item.prompt + code
    return f"{body}\n\n{item.facts['test']}\n\ncheck({entry})"


TASK = Task(
    name="humaneval",
    about="Python functions from their description; needs --allow-code",
    load=load,
    method=Code(program, stop=STOP),
    benchmark="HumanEval",
    metric="Pass@1",
    runs_code=True,
    hub="openai/openai_humaneval",
)
