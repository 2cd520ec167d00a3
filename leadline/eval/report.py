"""Report: score, 95% confidence interval and what the paper published, as a table, JSON and PNG.

A mean of rights and wrongs has Wilson's interval, any other mean the normal one, a mean over groups one made of theirs,
and bits per byte (a ratio of sums) that of a ratio. The published numbers are those of the paper's tables 2-9 and of
the model's card, in `published.csv` beside this file.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from leadline.eval.run import Run
from leadline.eval.task import BEST_MARK, BitsPerByte, Judge, Result, Task

Z95 = 1.959964
SHOWN = ("DeepSeek-V2", "DeepSeek-V2-Lite", "DeepSeek-V2-Lite-Chat")
NARROWEST = 100  # columns that a table needs to be one
COLOURS = ("tab:blue", "tab:orange", "tab:green")


@dataclasses.dataclass(frozen=True, slots=True)
class Published:
    """One number of the paper's tables. `score` is as printed: percent, but for bits per byte and judges' marks."""

    table: str
    kind: str
    benchmark: str
    metric: str
    shots: int | None
    model: str
    score: float


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """A task's score as the tables print it, and its interval; `groups` are the scores of its parts."""

    task: str
    version: int
    model: str
    metric: str
    shots: int
    items: int
    score: float
    low: float
    high: float
    scale: float  # 100 where scores are percent
    chance: float
    groups: dict[str, float]
    published: tuple[Published, ...]


@functools.cache
def published() -> tuple[Published, ...]:
    text = (files("leadline.eval") / "published.csv").read_text(encoding="utf-8")
    return tuple(
        Published(
            row["table"],
            row["kind"],
            row["benchmark"],
            row["metric"],
            int(row["shots"]) if row["shots"] else None,
            row["model"],
            float(row["score"]),
        )
        for row in csv.DictReader(text.splitlines())
    )


# ---- scores -------------------------------------------------------------------------------------------------------


def summarise(run: Run) -> Summary:
    task, scale = run.task, scale_of(run.task)
    score, low, high = interval(task, run.results)
    groups = {name: ratio(results) * scale for name, results in grouped(run.results).items()}
    return Summary(
        task.name,
        task.version,
        run.head["model"],
        task.metric,
        run.head["shots"],
        len(run.results),
        score * scale,
        low * scale,
        high * scale,
        scale,
        task.chance * scale,
        groups if len(groups) > 1 else {},
        tuple(row for row in published() if row.benchmark == task.benchmark),
    )


def scale_of(task: Task) -> float:
    """Tables print rights and wrongs in percent, and bits and marks as they are."""
    return 1.0 if isinstance(task.method, BitsPerByte | Judge) else 100.0


def grouped(results: Sequence[Result]) -> dict[str, list[Result]]:
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        groups[result.group].append(result)
    return dict(groups)


def ratio(results: Sequence[Result]) -> float:
    """The mean, or of bits per byte the bits of all over the bytes of all."""
    return sum(result.score for result in results) / max(sum(result.weight for result in results), 1.0)


def interval(task: Task, results: Sequence[Result]) -> tuple[float, float, float]:
    """(score, low, high)."""
    if isinstance(task.method, BitsPerByte):
        return _ratio_interval(results)
    top = BEST_MARK if isinstance(task.method, Judge) else 1.0
    if task.average == "groups":
        return _stratified([mean_interval(_scores(group), top) for group in grouped(results).values()])
    return mean_interval(_scores(results), top)


def _scores(results: Sequence[Result]) -> list[float]:
    return [result.score for result in results]


def mean_interval(scores: Sequence[float], top: float = 1.0) -> tuple[float, float, float]:
    """Wilson's for rights and wrongs, for any other scores from 0 to `top` the normal one."""
    if set(scores) <= {0.0, 1.0}:
        return wilson(sum(scores), len(scores))
    mean = statistics.fmean(scores)
    error = Z95 * math.sqrt(_variance(scores) / len(scores))
    return mean, max(mean - error, 0.0), min(mean + error, top)


def wilson(rights: float, count: int) -> tuple[float, float, float]:
    """Wilson's interval for a share, which stays within [0, 1] and is never empty."""
    share, square = rights / count, Z95**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = Z95 / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    return share, max(min(centre - half, share), 0.0), min(max(centre + half, share), 1.0)


def _stratified(strata: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """The mean of the groups' means. Each side's squares are added (MOVER), so that groups without a single right one
    still leave room above."""
    mean = statistics.fmean(score for score, _, _ in strata)
    below, above = (math.sqrt(sum((each[0] - each[side]) ** 2 for each in strata)) / len(strata) for side in (1, 2))
    return mean, max(mean - below, 0.0), min(mean + above, 1.0)


def _ratio_interval(results: Sequence[Result]) -> tuple[float, float, float]:
    """By the residuals of the items, which need not be of one length."""
    score = ratio(results)
    total = sum(result.weight for result in results)
    squares = sum((result.score - score * result.weight) ** 2 for result in results)
    count = len(results)
    error = Z95 * math.sqrt(squares * count / max(count - 1, 1)) / total
    return score, max(score - error, 0.0), score + error


def _variance(values: Sequence[float]) -> float:
    return statistics.variance(values) if len(values) > 1 else 0.0


# ---- what is shown ------------------------------------------------------------------------------------------------


def table(summaries: Sequence[Summary], *, width: int | None = None) -> str:
    """The scores side by side with the published ones."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    ours = f"{summaries[0].model}\n(95%)"
    for name in ("task", "metric", "shots", "items", ours, "chance", *(_wrapped(model) for model in SHOWN)):
        grid.add_column(name, no_wrap=True)
    for each in summaries:
        score = f"{_number(each, each.score)} ({_number(each, each.low)}-{_number(each, each.high)})"
        others = [_shown(each, model) for model in SHOWN]
        grid.add_row(each.task, each.metric, str(each.shots), str(each.items), score, f"{each.chance:.3g}", *others)
    console = Console(width=max(width or Console().width, NARROWEST), force_terminal=False)
    with console.capture() as capture:
        console.print(grid)
    return capture.get() + _note(summaries)


def _wrapped(model: str) -> str:
    return model.replace("-", "\n", 1).replace("-Chat", "\nChat")


def _number(summary: Summary, value: float) -> str:
    return f"{value:.1f}" if summary.scale == 100.0 else f"{value:.3f}"


def _shown(summary: Summary, model: str) -> str:
    """The published score, and with how many examples where that is not ours."""
    for row in summary.published:
        if row.model == model:
            same = row.shots in (None, summary.shots)
            return f"{row.score:g}" + ("" if same else f" ({row.shots})")
    return "-"


def _note(summaries: Sequence[Summary]) -> str:
    if not any(each.published for each in summaries):
        return ""
    return (
        "DeepSeek's columns are published scores, not measured here; in parentheses the number of shots where it is "
        "another.\n"
    )


def save(summaries: Sequence[Summary], runs: Sequence[Run], folder: Path) -> None:
    """`report.json`: every score with what its run was; `report.txt`: the table."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = [
        {**dataclasses.asdict(each), "run": run.head} for each, run in zip(summaries, runs, strict=True)
    ]
    text = json.dumps(rows, indent=1, ensure_ascii=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    (folder / "report.txt").write_text(table(summaries, width=160), encoding="utf-8")


def draw(summaries: Sequence[Summary], runs: Sequence[Run], folder: Path) -> list[Path]:
    """`report.png`, and the pictures that tasks have of their own."""
    drawn = [folder / "report.png"] if plot(summaries, folder / "report.png") else []
    for run in runs:
        if run.task.figure is not None:
            path = folder / f"{run.task.name}.png"
            run.task.figure(run.results, run.head["model"], path)
            drawn.append(path)
    return drawn


def plot(summaries: Sequence[Summary], path: Path) -> bool:
    """Bars with their intervals, and the published scores as marks. False: nothing of it is in percent."""
    from matplotlib.figure import Figure

    shown = [each for each in summaries if each.scale == 100.0]
    if not shown:
        return False
    figure = Figure(figsize=(3 + 1.2 * len(shown), 5), layout="constrained")
    axes = figure.subplots()
    places = list(range(len(shown)))
    errors = [[each.score - each.low for each in shown], [each.high - each.score for each in shown]]
    heights = [each.score for each in shown]
    axes.bar(places, heights, yerr=errors, capsize=4, color="lightsteelblue", label=shown[0].model)
    for model, colour in zip(SHOWN, COLOURS, strict=True):
        points = [(x, row.score) for x in places for row in shown[x].published if row.model == model]
        label = f"{model} (published)"
        axes.plot([x for x, _ in points], [y for _, y in points], "_", color=colour, ms=18, mew=3, label=label)
    for place, each in zip(places, shown, strict=True):
        axes.hlines(each.chance, place - 0.4, place + 0.4, colors="grey", linestyles="dotted")
    axes.set_xticks(places, [f"{each.task}\n{each.shots} shots" for each in shown])
    axes.set_ylim(0, 100)
    axes.set_ylabel("score; dotted: chance")
    axes.legend(loc="upper right", fontsize="small")
    figure.savefig(path, dpi=120)
    return True
