"""One task with one model: items, prompts, answers, results, resumable.

Results go to `OUT/TASK.jsonl` as they come: first a line that says what the run is (task and version, model, examples,
limit, and a hash over all prompt ids), then one line an item. A second run with the same `--out` goes on where the
first stopped, and refuses to mix with what is not the same run.

Invariant: the file's first line and the data determine every prompt, so that a run can be repeated exactly.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from leadline import __version__
from leadline.errors import ContextLengthExceeded, DataError, UserError
from leadline.eval.task import Bench, Item, Result, Setup, Task

BATCH = 64
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Run:
    """What was run and what came of it."""

    task: Task
    head: dict[str, Any]
    results: tuple[Result, ...]


def evaluate(
    task: Task,
    bench: Bench,
    setup: Setup,
    *,
    out: Path | None = None,
    limit: int | None = None,
    batch: int = BATCH,
    progress: bool = False,
) -> Run:
    """Ask every item, or `limit` of them, that `out` does not hold yet."""
    items = choose(load(task, setup), limit)
    if not items:
        raise DataError(f"{task.name} has no items in {setup.source.folder}", param="data")
    head = heading(task, bench, setup, items, limit)
    path = None if out is None else out / f"{task.name}.jsonl"
    done = {} if path is None else resume(path, head)
    left = [item for item in items if item.id not in done]
    with _written(path) as write, _bar(task.name, len(items), len(done), progress) as advance:
        for start in range(0, len(left), batch):
            for result in _asked(task, left[start : start + batch], bench):
                done[result.id] = result
                write(dataclasses.asdict(result))
                advance()
    return Run(task, head, tuple(done[item.id] for item in items))


def load(task: Task, setup: Setup) -> Sequence[Item]:
    """The task's items. What a row lacks is the data's fault, wherever in the loader it shows."""
    try:
        return task.load(setup)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(
            f"{task.name}: a row of its data is not in the official layout ({what})", param="data"
        ) from error


def _asked(task: Task, items: Sequence[Item], bench: Bench) -> list[Result]:
    try:
        return task.method.ask(items, bench)
    except ContextLengthExceeded as error:
        raise ContextLengthExceeded(f"{task.name}: {error.message}; fewer --shots make it shorter") from None


def choose(items: Sequence[Item], limit: int | None) -> list[Item]:
    """`limit` items, the same ones for everybody, from all over the set: those with the least hashes, in order."""
    if len({item.id for item in items}) != len(items):
        raise AssertionError("two items have the same id")
    if limit is None or limit >= len(items):
        return list(items)
    taken = sorted(items, key=lambda item: hashlib.sha256(item.id.encode()).digest())[:limit]
    kept = {item.id for item in taken}
    return [item for item in items if item.id in kept]


def heading(task: Task, bench: Bench, setup: Setup, items: Sequence[Item], limit: int | None) -> dict[str, Any]:
    """What tells this run from any other."""
    prompts = hashlib.sha256("".join(item.id + item.prompt_id for item in items).encode()).hexdigest()
    return {
        "format": FORMAT,
        "task": task.name,
        "version": task.version,
        "model": bench.lm.name,
        "weights": bench.lm.weights,
        "judge": None if bench.judge is None else bench.judge.name,
        "shots": setup.shots,
        "chat": bench.chat,
        "limit": limit,
        "items": len(items),
        "prompts": prompts,
        "leadline": __version__,
    }


# ---- the file of results ------------------------------------------------------------------------------------------


def resume(path: Path, head: dict[str, Any]) -> dict[str, Result]:
    """The results that are there already; begins the file when there is none. A half-written last line is dropped."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    if not lines:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_line(head), encoding="utf-8")
        return {}
    rows = [_parsed(line, path, number) for number, line in enumerate(lines, 1)]
    check_same(rows[0], head, path)
    path_bytes = b"".join(line + b"\n" for line in lines)
    if path.stat().st_size != len(path_bytes):
        path.write_bytes(path_bytes)
    results = [Result(**row) for row in rows[1:]]
    return {result.id: result for result in results}


def check_same(found: dict[str, Any], head: dict[str, Any], path: Path) -> None:
    """Another version of leadline may go on, since whatever changes a score raises the task's version."""
    for name, value in head.items():
        if name != "leadline" and found.get(name) != value:
            raise UserError(
                f"{path} is of another run ({name} {found.get(name)!r}, now {value!r}): give another --out or remove it"
            )


def _parsed(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        raise DataError(f"{path}:{number} is not JSON: remove the line or the file") from None
    if not isinstance(row, dict):
        raise DataError(f"{path}:{number} is not a result: remove the line or the file")
    return row


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "replace").decode() + "\n"


@contextlib.contextmanager
def _written(path: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    if path is None:
        yield lambda row: None
        return
    with path.open("a", encoding="utf-8") as file:

        def write(row: dict[str, Any]) -> None:
            file.write(_line(row))
            file.flush()

        yield write


@contextlib.contextmanager
def _bar(name: str, total: int, done: int, progress: bool) -> Iterator[Callable[[], None]]:
    """Items done and time left, on standard error."""
    if not progress or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=total, completed=done)
        yield lambda: bar.advance(task)
