"""`leadline generate`: one completion on standard output, or a file of prompts into a file of completions.

A batch can be interrupted at any moment and started again: each answer is added as one whole line with one write, what
is in the output is not asked again, and a line that a crash cut off is taken out first.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import json
import os
import stat
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from cyclopts import Parameter

from leadline.cli.options import MODEL, SAMPLING, ModelOptions, SamplingOptions, default_params
from leadline.engine.types import EngineOutput, EngineProtocol, EngineRequest, SamplingParams
from leadline.errors import ConfigError, DataError, EngineDead, EngineError, InvalidRequest, UserError
from leadline.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rich.progress import Progress

Record = dict[str, Any]
Id = str | int


def generate(
    prompt: str | None = None,
    /,
    *,
    model: ModelOptions = MODEL,
    sampling: SamplingOptions = SAMPLING,
    max_num_seqs: int = 32,
    input_file: Annotated[Path | None, Parameter(name="--input")] = None,
    output_file: Annotated[Path | None, Parameter(name="--output")] = None,
    parse_special: Annotated[bool, Parameter(negative="")] = False,
) -> int | None:
    """Complete a prompt, or a file of prompts.

    Args:
        prompt: The text to complete, read from the standard input when it is missing; an empty text is completed from
            nothing.
        max_num_seqs: Prompts of a file that are worked on at the same time.
        input_file: A JSON Lines file: {"prompt": "..."} or {"messages": [...]} a line, with an "id" where it should not
            be the line's number.
        output_file: Where the answers go, a line each; what it holds already is not asked again.
        parse_special: Let control tokens that the prompt spells be control tokens.
    """
    sampling.params(SamplingParams())  # a value out of range is said before anything is loaded
    if (input_file is None) != (output_file is None):
        raise ConfigError("--input and --output go together", param="input")
    if input_file is None or output_file is None:
        text = _standard_input() if prompt is None else prompt
        return _with_model(model, 1, lambda running: _print_one(running, text, sampling, parse_special))
    if prompt is not None:
        raise ConfigError("give a prompt or --input, not both", param="input")
    tasks = read_tasks(input_file)
    with Output(output_file) as output:
        left = [task for task in tasks if task.id not in output.ids]
        print(f"{len(tasks)} prompts, {len(tasks) - len(left)} answered before", file=sys.stderr)
        if not left:
            return None
        return _with_model(model, max_num_seqs, lambda running: _fill(running, left, output, sampling, max_num_seqs))


@dataclasses.dataclass(frozen=True)
class Running:
    """An engine that runs, and what goes with it."""

    engine: EngineProtocol
    tokenizer: Tokenizer
    defaults: SamplingParams

    @property
    def limit(self) -> int:
        return self.engine.info.context_length - 1


@dataclasses.dataclass(frozen=True)
class Task:
    """A line of the input: `prompt` is text, or a conversation."""

    id: Id
    prompt: str | tuple[dict[str, str], ...]


class Output:
    """The output file, open for adding whole lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ids: set[Id] = set()

    def __enter__(self) -> Self:
        with self._told():
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            if self._is_file():
                with os.fdopen(os.dup(self._file), "rb") as file:
                    self._read(file.read())
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def write(self, record: Record) -> None:
        """One line with one write; where the disk has no room for all of it, none of it stays."""
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        with self._told():
            before = os.fstat(self._file).st_size
            if os.write(self._file, line) < len(line) and self._is_file():
                os.ftruncate(self._file, before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _is_file(self) -> bool:
        """A device or a pipe holds no answers of before."""
        return stat.S_ISREG(os.fstat(self._file).st_mode)

    def _read(self, held: bytes) -> None:
        whole, newline, cut_off = held.rpartition(b"\n")
        if cut_off:
            os.ftruncate(self._file, len(whole) + len(newline))
        for number, line in enumerate(whole.splitlines(), 1):
            record = _parsed(line, f"{self.path}:{number}")
            if not isinstance(record.get("id"), str | int):
                raise DataError(f"{self.path}:{number}: not a line of answers: it has no id")
            self.ids.add(record["id"])

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from None


def read_tasks(path: Path) -> list[Task]:
    """All lines, checked before any work."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    tasks = [_task(line, number, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    seen: set[Id] = set()
    for task in tasks:
        if task.id in seen:
            raise DataError(f"{path}: the id {task.id!r} is there twice")
        seen.add(task.id)
    return tasks


def _task(line: bytes, number: int, where: str) -> Task:
    record = _parsed(line, where)
    task_id, prompt, messages = record.get("id", number), record.get("prompt"), record.get("messages")
    if not isinstance(task_id, str | int) or isinstance(task_id, bool):
        raise DataError(f"{where}: an id is text or a whole number")
    if isinstance(prompt, str) and messages is None:
        return Task(task_id, prompt)
    if prompt is None and isinstance(messages, list):
        return Task(task_id, tuple(messages))
    raise DataError(f'{where}: a line needs "prompt", a text, or "messages", a list')


def _parsed(line: bytes, where: str) -> Record:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise DataError(f"{where}: not valid UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: not a JSON object")
    return record


def _standard_input() -> str:
    """The whole input, without the line end that a shell adds."""
    if sys.stdin.isatty():
        raise ConfigError("give a prompt, or pipe one in", param="prompt")
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"the standard input is not valid UTF-8 at byte {error.start}") from None


def _with_model(
    model: ModelOptions, width: int, work: Callable[[Running], Coroutine[Any, Any, int | None]]
) -> int | None:
    loaded = model.load(max_num_seqs=width, single_owner=True)
    from leadline.engine.aio import AsyncEngine

    async def run() -> int | None:
        engine = AsyncEngine(loaded.engine)
        try:
            return await work(Running(engine, loaded.tokenizer, default_params(loaded)))
        finally:
            await engine.close()

    return asyncio.run(run())


async def _print_one(running: Running, text: str, sampling: SamplingOptions, parse_special: bool) -> None:
    prompt = running.tokenizer.encode_prompt(text, parse_special=parse_special, limit=running.limit)
    for warning in prompt.warnings:
        print(f"leadline: {warning}", file=sys.stderr)
    async with contextlib.aclosing(_outputs(running, "one", prompt.ids, sampling)) as outputs:
        async for output in outputs:
            print(output.text, end="", flush=True)
    print(flush=True)


async def _fill(running: Running, tasks: Sequence[Task], output: Output, sampling: SamplingOptions, width: int) -> int:
    """Answer every task, `width` at a time, each written when it is done; 1 when some were refused."""
    from rich.progress import TaskID

    waiting = iter(tasks)
    refused = 0

    async def worker() -> None:
        nonlocal refused
        for task in waiting:
            record = await _answer(running, task, sampling)
            output.write(record)
            refused += "error" in record
            bar.advance(TaskID(0))

    with _progress(len(tasks)) as bar:
        await _together([worker() for _ in range(min(width, len(tasks)))])
    if refused:
        print(f'leadline: {refused} of {len(tasks)} prompts were refused; their lines have an "error"', file=sys.stderr)
    return 1 if refused else 0


async def _together(workers: Sequence[Coroutine[Any, Any, None]]) -> None:
    """All of them; the first error cancels the rest and is raised as it is, not in a group."""
    tasks = [asyncio.create_task(worker) for worker in workers]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _answer(running: Running, task: Task, sampling: SamplingOptions) -> Record:
    """A line of the output; what this prompt alone did wrong stands in it."""
    try:
        ids = _prompt_ids(running, task)
        outputs = [output async for output in _outputs(running, f"line-{task.id}", ids, sampling)]
    except (InvalidRequest, EngineError) as error:
        if error.status == EngineDead.status:
            raise
        return {"id": task.id, "error": {"code": error.code, "message": error.message}}
    text = "".join(output.text for output in outputs)
    if not isinstance(task.prompt, str) and running.tokenizer.answer_opens_with_space:
        text = text.removeprefix(" ")
    usage = dataclasses.asdict(outputs[-1].usage)
    return {"id": task.id, "text": text, "finish_reason": outputs[-1].finish_reason, "usage": usage}


def _prompt_ids(running: Running, task: Task) -> tuple[int, ...]:
    if isinstance(task.prompt, str):
        return running.tokenizer.encode_prompt(task.prompt, limit=running.limit).ids
    return running.tokenizer.render(task.prompt, limit=running.limit)


async def _outputs(
    running: Running, name: str, ids: tuple[int, ...], sampling: SamplingOptions
) -> AsyncGenerator[EngineOutput, None]:
    async for output in running.engine.submit(EngineRequest(name, ids, sampling.params(running.defaults))):
        if output.finish_reason == "error":
            raise EngineError(output.error or "the engine failed")
        yield output


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Progress]:
    """A bar on standard error, where it is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        progress.add_task("prompts", total=total)
        yield progress
