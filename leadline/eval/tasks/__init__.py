"""The benchmarks, one a file, each with its `TASK`. They are named here and imported when they are asked for."""

from __future__ import annotations

import importlib

from leadline.config import did_you_mean
from leadline.errors import UserError
from leadline.eval.task import Task

# The order is that of `leadline eval --list`.
NAMES = (
    "mmlu",
    "cmmlu",
    "ceval",
    "bbh",
    "gsm8k",
    "math",
    "humaneval",
    "mbpp",
    "ifeval",
    "mt_bench",
    "needle",
    "bits_per_byte",
    "arithmetic",
    "sums",
    "instructions",
)


def get_task(name: str) -> Task:
    if name not in NAMES:
        raise UserError(f"unknown task {name!r}{did_you_mean(name, NAMES)}; leadline eval --list names them")
    task: Task = importlib.import_module(f"leadline.eval.tasks.{name}").TASK
    assert task.name == name
    return task


def all_tasks() -> list[Task]:
    return [get_task(name) for name in NAMES]
