"""What a run tells: one JSON line a step in OUT/metrics.jsonl, and progress on the terminal."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from leadline.errors import DataError, ResourceError
from leadline.train.config import TrainConfig

DEAD = 0.01
"""An expert with less than this share of an even load is reported as dead."""


def warn(text: str) -> None:
    """One line that a run goes on after."""
    print(f"leadline: warning: {text}", file=sys.stderr, flush=True)


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
        self.path = config.out / "metrics.jsonl"
        self.file: IO[bytes] | None = None
        self.pace = 0.0  # tokens a second, smoothed

    def __enter__(self) -> Metrics:
        self.config.out.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("ab", buffering=0)  # a record that was told is there after any kill
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        if self.file is not None:
            self.file.close()

    def rewind(self, step: int) -> None:
        """Keep the records up to `step`: what a killed run told of later steps, its last line torn, is done again."""
        if not self.path.exists():
            return
        kept = [line for line in self.path.read_bytes().split(b"\n") if 0 <= _step_of(line) <= step]
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_bytes(b"".join(line + b"\n" for line in kept))
        partial.replace(self.path)

    def started(self, step: int, parameters: int) -> None:
        """What the numbers after it were made with."""
        self.progress.reset(self.task, completed=step)  # a resumed run's pace is counted from here
        config = self.config
        factors = {f"balance_{name}": value for name, value in dataclasses.asdict(config.balance).items()}
        sizes = {"parameters": parameters, "steps": config.steps, "batch_tokens": config.batch_tokens}
        self._write({"step": step, "started": True, **sizes, "dtype": config.dtype, **factors})

    def stepped(
        self, *, step: int, seconds: float, step_tokens: int, loads: list[list[float]], **values: float
    ) -> None:
        """One optimiser step; `loads` is each MoE layer's expert load, 1 when even."""
        pace = step_tokens / seconds
        self.pace = pace if not self.pace else 0.95 * self.pace + 0.05 * pace
        worst = max((max(layer) for layer in loads), default=0.0)
        dead = sum(share < DEAD for layer in loads for share in layer)
        record: dict[str, Any] = {
            "step": step,
            **values,
            "tokens_per_second": pace,
            "max_load": worst,
            "dead_experts": dead,
        }
        shown = step % self.config.log_every == 0 or step == 1
        if shown:
            record["expert_load"] = [[round(share, 3) for share in layer] for layer in loads]
        self._write(record)
        status = f"loss {values['loss']:.3f}  lr {values['lr']:.2e}  load {worst:.2f}  {self.pace:,.0f} tok/s"
        status += f"  {dead} dead experts" if dead else ""
        self.progress.update(self.task, completed=step, status=status)
        if shown and not self.console.is_terminal:
            left = (self.config.steps - step) * step_tokens / self.pace
            print(f"step {step}/{self.config.steps}  {status}  {left / 60:.0f} min left", file=sys.stderr, flush=True)

    def evaluated(self, step: int, tokens: float, scores: dict[str, float]) -> None:
        self._write({"step": step, "tokens": tokens, **scores})
        shown = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        self.progress.console.print(f"step {step}  {shown}", highlight=False)

    def _write(self, record: dict[str, Any]) -> None:
        assert self.file is not None
        try:
            self.file.write(json.dumps(record).encode() + b"\n")
        except OSError as error:
            raise ResourceError(f"{self.path} cannot be written: {error.strerror}; the checkpoints are whole") from None


def read_records(path: Path) -> list[dict[str, Any]]:
    """The whole records of a metrics file; a line that a kill tore is left out."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    return [json.loads(line) for line in lines if _step_of(line) >= 0]


def _step_of(line: bytes) -> int:
    """The step a record is about, -1 for what is no record."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1
