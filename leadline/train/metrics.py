"""What a run tells: one JSON line a step in OUT/metrics.jsonl, and progress on the terminal."""

from __future__ import annotations

import json
import sys
from types import TracebackType
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from leadline.train.config import TrainConfig

DEAD = 0.01
"""An expert with less than this share of an even load is reported as dead."""


class Metrics:
    """Used as a context; on a terminal a live bar, elsewhere a line every `log_every` steps."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.progress.add_task("training", total=config.steps, status="")
        self.file: IO[str] | None = None
        self.pace = 0.0  # tokens a second, smoothed

    def __enter__(self) -> Metrics:
        self.config.out.mkdir(parents=True, exist_ok=True)
        self.file = (self.config.out / "metrics.jsonl").open("a", encoding="utf-8")
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        if self.file is not None:
            self.file.close()

    def stepped(
        self, *, step: int, seconds: float, step_tokens: int, loads: list[list[float]], **values: float
    ) -> None:
        """One optimiser step; `loads` is each MoE layer's expert load, 1 when even."""
        pace = step_tokens / seconds
        self.pace = pace if not self.pace else 0.95 * self.pace + 0.05 * pace
        worst = max((max(layer) for layer in loads), default=0.0)
        dead = sum(share < DEAD for layer in loads for share in layer)
        self._write({"step": step, **values, "tokens_per_second": pace, "max_load": worst, "dead_experts": dead})
        status = f"loss {values['loss']:.3f}  lr {values['lr']:.2e}  load {worst:.2f}  {self.pace:,.0f} tok/s"
        self.progress.update(self.task, completed=step, status=status)
        if not self.console.is_terminal and (step % self.config.log_every == 0 or step == 1):
            left = (self.config.steps - step) * step_tokens / self.pace
            dead_note = f"  {dead} dead experts" if dead else ""
            print(
                f"step {step}/{self.config.steps}  {status}  {left / 60:.0f} min left{dead_note}",
                file=sys.stderr,
                flush=True,
            )

    def evaluated(self, step: int, tokens: float, scores: dict[str, float]) -> None:
        self._write({"step": step, "tokens": tokens, **scores})
        shown = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        self.progress.console.print(f"step {step}  {shown}", highlight=False)

    def _write(self, record: dict[str, Any]) -> None:
        assert self.file is not None
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
