"""The benchmarks, one a file, each with its `TASK`, or its `TASKS` where it has two parts. They are named here and
imported when they are asked for."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence

from leadline.config import did_you_mean
from leadline.errors import UserError
from leadline.eval.report import published
from leadline.eval.task import Task

_TABLE = re.compile(r"table\d")

# The order is that of `leadline eval --list`.
NAMES = (
    "mmlu",
    "cmmlu",
    "ceval",
    "agieval",
    "bbh",
    "arc_easy",
    "arc_challenge",
    "openbookqa",
    "hellaswag",
    "piqa",
    "winogrande",
    "race_middle",
    "race_high",
    "drop",
    "triviaqa",
    "naturalquestions",
    "gsm8k",
    "math",
    "cmath",
    "humaneval",
    "mbpp",
    "cruxeval_i",
    "cruxeval_o",
    "cluewsc",
    "cmrc",
    "c3",
    "chid",
    "ccpm",
    "ifeval",
    "mt_bench",
    "needle",
    "bits_per_byte",
    "arithmetic",
    "sums",
    "instructions",
)

FAMILIES = {
    "arc_easy": "arc",
    "arc_challenge": "arc",
    "race_middle": "race",
    "race_high": "race",
    "cruxeval_i": "cruxeval",
    "cruxeval_o": "cruxeval",
}
"""The files of benchmarks that have two parts."""


def get_task(name: str) -> Task:
    if name not in NAMES:
        raise UserError(f"unknown task {name!r}{did_you_mean(name, NAMES)}; leadline eval --list names them")
    module = importlib.import_module(f"leadline.eval.tasks.{FAMILIES.get(name, name)}")
    tasks: tuple[Task, ...] = module.TASKS if name in FAMILIES else (module.TASK,)
    return next(task for task in tasks if task.name == name)


def named(names: Sequence[str]) -> list[Task]:
    """Tasks by their names, each once; `table2` stands for those of the paper's table 2 that are here."""
    found: dict[str, Task] = {}
    for name in names:
        for task in table_tasks(name) if _TABLE.fullmatch(name) else [get_task(name)]:
            found.setdefault(task.name, task)
    return list(found.values())


def table_tasks(name: str) -> list[Task]:
    """The tasks of one of the paper's tables of scores, 2 to 9."""
    table = f"paper table {name.removeprefix('table')}"
    benchmarks = {row.benchmark for row in published() if row.table == table}
    tasks = [task for task in all_tasks() if task.benchmark in benchmarks]
    if not tasks:
        raise UserError(f"{table} has no scores that a task here measures")
    return tasks


def all_tasks() -> list[Task]:
    return [get_task(name) for name in NAMES]
