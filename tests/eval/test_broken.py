"""Files that lack something: every benchmark says so in one line, whatever it is that is missing."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from leadline.errors import DataError
from leadline.eval.run import load
from leadline.eval.tasks import NAMES, get_task
from tests.eval.samples import lines, write
from tests.eval.test_tasks import setup_of

WITH_ROWS = [name for name in NAMES if get_task(name).needs_data]


ODD: tuple[Any, ...] = (None, "", "x", 99, [], {})


def broken(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Without each of its fields, and with nothing in its place."""
    for key, value in row.items():
        yield {name: value for name, value in row.items() if name != key}
        for other in ODD:
            if type(other) is not type(value) or other != value:
                yield {**row, key: other}


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # lines that are called .json
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [whole] if isinstance(whole, dict) else []


@pytest.mark.parametrize("name", WITH_ROWS)
def test_a_broken_row_is_an_error_of_the_data_or_none(name: str, data_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / name
    shutil.copytree(data_folder / name, folder)
    for path in sorted(folder.rglob("*.json*")):
        if path.suffix == ".gz" or path.name == "judge_prompts.jsonl":
            continue
        first, *others = rows_of(path) or [{}]
        kept = path.read_text(encoding="utf-8")
        for row in broken(first):
            write(path, lines([row, *others[:3]]))
            with contextlib.suppress(DataError):
                load(get_task(name), setup_of(get_task(name), folder))
        path.write_text(kept, encoding="utf-8")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    write(tmp_path / "mbpp.jsonl", lines([{"text": "Add.", "code": "", "test_list": []}]))
    with pytest.raises(
        DataError, match=r"mbpp: a row of its data is not in the official layout \(KeyError: 'task_id'\)"
    ):
        load(get_task("mbpp"), setup_of(get_task("mbpp"), tmp_path))
