"""What a run tells: one JSON line a step in OUT/metrics.jsonl, and progress on the terminal."""

from __future__ import annotations

import dataclasses
import sys
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from leadline.errors import ResourceError
from leadline.model.config import ModelConfig
from leadline.train.config import TrainConfig
from leadline.train.flops import measured_peak, step_flops
from leadline.train.records import Records
from leadline.train.tensorboard import EventWriter
from leadline.train.totals import StepTotals

DEAD = 0.01
"""An expert with less than this share of an even load is reported as dead."""

ALARM_AFTER = 100
"""Steps in a row that an expert is dead before the run says so aloud."""


def warn(text: str) -> None:
    """One line that a run goes on after."""
    print(f"leadline: warning: {text}", file=sys.stderr, flush=True)


class Metrics:
    """Used as a context; on a terminal a live bar, elsewhere a line every `log_every` steps. Of several processes all
    but the first are silent."""

    def __init__(self, config: TrainConfig, model: ModelConfig, *, silent: bool = False) -> None:
        self.config, self.model, self.silent = config, model, silent
        self.steps = config.steps
        self.console = Console(stderr=True, quiet=silent)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=self.console, disable=silent or not self.console.is_terminal)
        self.task = self.progress.add_task("training", total=self.steps, status="")
        self.records = Records(config.out / "metrics.jsonl")
        self.events: EventWriter | None = None
        self.pace = 0.0  # tokens a second, smoothed
        self.peak = 0.0  # FLOP a second of all processes together
        self.dead_for: dict[tuple[int, int], int] = {}  # (layer, expert): steps in a row

    def __enter__(self) -> Metrics:
        if not self.silent:
            self.records.open()
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        self.records.close()
        if self.events is not None:
            self.events.close()

    def rewind(self, step: int) -> None:
        """Keep the records up to `step`: what a killed run told of later steps, its last line torn, is done again."""
        if not self.silent:
            self.records.rewind(step)

    def started(self, step: int, processes: int) -> None:
        """What the numbers after it were made with."""
        config = self.config
        peak = config.peak_tflops * 1e12 or measured_peak(config.device, config.dtype)
        self.peak = peak * processes
        self.progress.reset(self.task, completed=step)  # a resumed run's pace is counted from here
        if config.tensorboard and not self.silent:
            self.events = EventWriter(config.out / "tensorboard", step)
        factors = {f"balance_{name}": value for name, value in dataclasses.asdict(config.balance).items()}
        dropping = {f"dropping_{name}": value for name, value in dataclasses.asdict(config.dropping).items()}
        sizes = {"parameters": self.model.parameters(), "steps": self.steps, "batch_tokens": config.batch_tokens}
        machine = {"processes": processes, "peak_tflops": peak / 1e12, "dtype": config.dtype}
        self._write({"step": step, "started": True, **sizes, **machine, **factors, **dropping})

    def stepped(self, told: StepTotals, *, step: int, tokens: int, lr: float, grad_norm: float, seconds: float) -> None:
        """One optimiser step."""
        pace = told.tokens / seconds
        self.pace = pace if not self.pace else 0.95 * self.pace + 0.05 * pace
        dead = self._watch_experts(told.loads)
        record: dict[str, Any] = {
            "step": step, "tokens": tokens, "loss": told.loss, "balance": sum(told.balances),
            **dict(zip(("expert_loss", "device_loss", "communication_loss"), told.balances, strict=True)),
            "lr": lr, "grad_norm": grad_norm, "tokens_per_second": pace,
            "utilisation": step_flops(self.model, told.tokens, told.pairs) / seconds / self.peak if self.peak else 0.0,
            "max_load": max((max(layer) for layer in told.loads), default=0.0), "dead_experts": dead,
        }  # fmt: skip
        if self.config.dropping.capacity_factor:
            record["dropped"] = told.dropped
        shown = step % self.config.log_every == 0 or step == 1
        if shown:
            record["expert_load"] = [[round(share, 3) for share in layer] for layer in told.loads]
        self._write(record)
        self._show(record, shown)

    def _watch_experts(self, loads: list[list[float]]) -> int:
        """The number of dead experts; one that stays dead is told of once."""
        dead = {(at, e) for at, layer in enumerate(loads) for e, share in enumerate(layer) if share < DEAD}
        self.dead_for = {expert: self.dead_for.get(expert, 0) + 1 for expert in dead}
        layers = [layer for layer in range(self.model.num_hidden_layers) if self.model.is_moe_layer(layer)]
        for at, expert in sorted(dead):
            if self.dead_for[at, expert] == ALARM_AFTER and not self.silent:
                warn(
                    f"layer {layers[at]}, expert {expert}: under {DEAD:.0%} of an even load for {ALARM_AFTER} steps; "
                    "a higher balance.expert brings tokens back"
                )
        return len(dead)

    def _show(self, record: dict[str, Any], shown: bool) -> None:
        step, dead, use = record["step"], record["dead_experts"], record["utilisation"]
        status = f"loss {record['loss']:.3f}  lr {record['lr']:.2e}  load {record['max_load']:.2f}"
        status += f"  {self.pace:,.0f} tok/s  {use:.0%} of peak"
        status += f"  {dead} dead experts" if dead else ""
        self.progress.update(self.task, completed=step, status=status)
        if shown and not self.console.is_terminal and not self.silent:
            left = (self.config.tokens - record["tokens"]) / self.pace
            print(f"step {step}/{self.steps}  {status}  {max(left, 0) / 60:.0f} min left", file=sys.stderr, flush=True)

    def evaluated(self, step: int, tokens: float, scores: dict[str, float]) -> None:
        self._write({"step": step, "tokens": tokens, **scores})
        shown = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        self.progress.console.print(f"step {step}  {shown}", highlight=False)

    def _write(self, record: dict[str, Any]) -> None:
        if self.silent:
            return
        self.records.write(record)
        if self.events is not None:
            try:
                self.events.write(record)
            except OSError as error:
                where = self.config.out / "tensorboard"
                raise ResourceError(f"{where} cannot be written: {error.strerror}; the checkpoints are whole") from None
