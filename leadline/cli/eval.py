"""`leadline eval`: the paper's benchmarks with a model in this process or any OpenAI-compatible server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from leadline.cli.options import MODEL, ModelOptions
from leadline.errors import ConfigError, DataError, UserError

if TYPE_CHECKING:
    from leadline.eval.lm import LM
    from leadline.eval.report import Summary
    from leadline.eval.run import Run
    from leadline.eval.task import Bench, Task

SEQUENCES = 16  # that the engine runs at a time


def evaluate(
    tasks: tuple[str, ...] = (),
    /,
    *,
    model: ModelOptions = MODEL,
    url: str | None = None,
    api_key: Annotated[str | None, Parameter(env_var="LEADLINE_API_KEY")] = None,
    data: Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
    out: Path | None = None,
    chat: bool = False,
    allow_code: bool = False,
    judge_url: str | None = None,
    judge_model: str | None = None,
    judge_api_key: Annotated[str | None, Parameter(env_var="LEADLINE_JUDGE_API_KEY")] = None,
    list_: Annotated[bool, Parameter(name="--list", negative="")] = False,
) -> None:
    """Score a model on the paper's benchmarks, beside the published scores.

    Args:
        tasks: The benchmarks to run; --list names them. table2 stands for those of the paper's table 2.
        url: A server to ask instead of a model of one's own; --model is then the name of its model.
        api_key: The server's key or token.
        data: The benchmarks' files in their official layouts, one folder each; the hub's by default.
        limit: Ask so many items of each, from all over the set and the same ones each time.
        shots: Examples before each question; the paper's number by default.
        out: A folder for every answer, the report and its pictures; a run that stopped goes on from it.
        chat: Ask as the user of a chat would, for models that were taught to answer.
        allow_code: Run the code that the model writes, in a sandbox, for the tasks that need it.
        judge_url: The server of a model that judges answers, for the tasks that need one.
        judge_model: The judge's name there; the first it names by default.
        judge_api_key: The judge's key or token.
        list_: Name the tasks and stop.
    """
    from leadline.eval.tasks import all_tasks, named

    if list_:
        print(listing(all_tasks()), end="")
        return
    if not tasks:
        raise UserError("name at least one task; leadline eval --list names them")
    chosen = named(tasks)
    check(chosen, limit=limit, shots=shots, allow_code=allow_code, judge=judge_url is not None)
    check_data(chosen, data)
    with _lm(model, url, api_key) as lm, _server(judge_url, judge_api_key, judge_model) as judge:
        bench = _bench(chosen, lm, judge, chat=chat, allow_code=allow_code)
        runs = [_run(task, bench, data=data, limit=limit, shots=shots, out=out) for task in chosen]
    _report(runs, out)


def listing(tasks: list[Task]) -> str:
    from rich.console import Console
    from rich.table import Table

    grid = Table("task", "what it asks", "metric", "shots", "data", box=None)
    for task in tasks:
        where = "made here" if not task.needs_data else f"hub: {task.hub}" if task.hub else "--data"
        grid.add_row(task.name, task.about, task.metric, str(task.shots), where)
    console = Console(width=130, force_terminal=False)
    with console.capture() as capture:
        console.print(grid)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def check(tasks: list[Task], *, limit: int | None, shots: int | None, allow_code: bool, judge: bool) -> None:
    """Say what cannot work before anything is loaded."""
    from leadline.eval.task import Judge

    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, got {limit}", param="limit")
    if shots is not None and shots < 0:
        raise ConfigError(f"shots must not be negative, got {shots}", param="shots")
    for task in tasks:
        if task.runs_code and not allow_code:
            raise UserError(f"{task.name} runs code that the model wrote, in a sandbox: allow it with --allow-code")
        if isinstance(task.method, Judge) and not judge:
            raise UserError(f"{task.name} needs a model that judges the answers: name its server with --judge-url")


def check_data(tasks: list[Task], data: Path | None) -> None:
    """Of many tasks the last should not be the one that says that its data is not here."""
    absent = [task.name for task in tasks if data is None and task.needs_data and not task.hub]
    if absent:
        are, their = ("is", "its") if len(absent) == 1 else ("are", "their")
        names = ", ".join(absent)
        raise DataError(
            f"{names} {are} not on the hub in {their} official layout: give the folder of {their} files with --data",
            param="data",
        )


@contextlib.contextmanager
def _lm(model: ModelOptions, url: str | None, api_key: str | None) -> Iterator[LM]:
    if url is None:
        from leadline.eval.lm import EngineLM

        loaded = model.load(max_num_seqs=SEQUENCES)
        from leadline.engine.llm import LLM

        yield EngineLM(LLM.of(loaded.engine, loaded.tokenizer))
        return
    if model != ModelOptions(model.model):
        raise ConfigError("with --url the server runs the model: of the model's options only --model may be given")
    with _server(url, api_key, model.model) as lm:
        assert lm is not None
        yield lm


@contextlib.contextmanager
def _server(url: str | None, api_key: str | None, model: str | None) -> Iterator[LM | None]:
    from leadline.client.http import Client
    from leadline.eval.lm import HttpLM

    if url is None:
        yield None
        return
    with Client(url, api_key=api_key) as client:
        yield HttpLM(client, model)


def _bench(tasks: list[Task], lm: LM, judge: LM | None, *, chat: bool, allow_code: bool) -> Bench:
    from leadline.eval.sandbox import Sandbox
    from leadline.eval.task import Bench

    sandbox = Sandbox(allow_code=allow_code) if any(task.runs_code for task in tasks) else None
    return Bench(lm, judge, sandbox, chat)


def _run(task: Task, bench: Bench, *, data: Path | None, limit: int | None, shots: int | None, out: Path | None) -> Run:
    from leadline.eval.data import Source
    from leadline.eval.run import evaluate as run
    from leadline.eval.task import Setup

    source = Source(task.name, data, task.hub, task.hub_files, task.folders)
    count, length = bench.lm.count, bench.lm.context_length
    setup = Setup(source, task.shots if shots is None else shots, bench.chat, count, length)
    return run(task, bench, setup, out=out, limit=limit, progress=True)


def _report(runs: list[Run], out: Path | None) -> None:
    from leadline.eval import report

    summaries: list[Summary] = [report.summarise(run) for run in runs]
    print(report.table(summaries), end="")
    if out is None:
        return
    report.save(summaries, runs, out)
    try:
        pictures = report.draw(summaries, runs, out)
    except ImportError:
        print("the pictures need matplotlib: pip install 'leadline[plot]'")
        return
    print("\n".join(str(path) for path in [out / "report.json", *pictures]))
