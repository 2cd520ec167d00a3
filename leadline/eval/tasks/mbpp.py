"""MBPP: small Python programs from one sentence and three tests, 3 examples (table 28).

Official layout: mbpp.jsonl of {"task_id", "text", "code", "test_list", "test_setup_code"}. The examples are tasks 2 to
4, the test split is tasks 11 to 510.
"""

from __future__ import annotations

from leadline.eval.answers import code_block
from leadline.eval.data import Row
from leadline.eval.task import Code, Item, Setup, Task

EXAMPLES = (2, 3, 4, 1, 5, 6, 7, 8, 9, 10)
TEST = range(11, 511)
END = "[DONE]"


def load(setup: Setup) -> list[Item]:
    table = setup.source.rows("mbpp.jsonl", "full/*.parquet")
    rows = {int(row["task_id"]): row for row in table}
    shots = [rows[task] for task in EXAMPLES if task in rows][: setup.shots]
    known = "".join(f"{question(row)}{_code(row)}\n{END}\n" for row in shots)
    return [
        Item(
            f"mbpp/{task}",
            known + question(row),
            f"{_code(row)}\n{END}",
            facts={"tests": "\n".join([str(row.get("test_setup_code") or ""), *row["test_list"]])},
        )
        for task, row in sorted(rows.items())
        if task in TEST
    ]


def question(row: Row) -> str:
    tests = "\n".join(row["test_list"])
    return (
        f"You are an expert Python programmer, and here is your task: {row['text'].strip()} "
        f"Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
    )


def _code(row: Row) -> str:
    return str(row["code"]).replace("\r\n", "\n").strip("\n")


def program(item: Item, answer: str) -> str:
    code = code_block(answer.replace("[BEGIN]", "").partition(END)[0])
    return f"{code}\n\n{item.facts['tests']}\n"


TASK = Task(
    name="mbpp",
    about="small Python programs from a sentence and tests; needs --allow-code",
    load=load,
    method=Code(program, stop=(END,)),
    shots=3,
    benchmark="MBPP",
    metric="Pass@1",
    runs_code=True,
    hub="google-research-datasets/mbpp",
    hub_files=("full/*",),
)
