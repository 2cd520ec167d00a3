"""What a run tells: a JSON line a step and a line an evaluation, and progress on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from leadline.train.records import Records

SHOWN = ("loss", "reward", "accuracy", "kl", "clip_fraction", "entropy", "length", "tokens_per_second")


class Journal:
    """Used as a context; on a terminal a live bar, elsewhere a line every `log_every` steps."""

    def __init__(self, path: Path, steps: int, log_every: int) -> None:
        self.records, self.steps, self.log_every = Records(path), steps, log_every
        self.console = Console(stderr=True)
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[status]}"))
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, *times, console=self.console, disable=not self.console.is_terminal)
        self.task = self.progress.add_task("training", total=steps, status="")

    def __enter__(self) -> Journal:
        self.records.open()
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        self.records.close()

    def rewind(self, step: int) -> None:
        """Keep the records up to `step`: what a killed run told of later steps is done again."""
        self.records.rewind(step)
        self.progress.reset(self.task, completed=step)  # a resumed run's pace is counted from here

    def stepped(self, step: int, values: Mapping[str, float]) -> None:
        self.records.write({"step": step, **values})
        status = "  ".join(f"{name} {_short(values[name])}" for name in SHOWN if name in values)
        self.progress.update(self.task, completed=step, status=status)
        if step % self.log_every == 0 and not self.console.is_terminal:
            print(f"step {step}/{self.steps}  {status}", file=sys.stderr, flush=True)

    def evaluated(self, step: int, tokens: int, scores: Mapping[str, float]) -> None:
        self.records.write({"step": step, "tokens": tokens, **scores})
        shown = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        self.progress.console.print(f"step {step}  {shown}", highlight=False)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
