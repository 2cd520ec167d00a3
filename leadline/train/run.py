"""A stage that goes on after any stop: what reward models and GRPO share.

A step is a function of the masters, the moments and its own number, so that a resumed run ends with the same weights as
one that was never interrupted. Signals ask for a save; a killed run goes on from its last checkpoint.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from leadline.checkpoint.save import save_model
from leadline.errors import ConfigError, DataError, TrainingError
from leadline.model.reward import RewardModel
from leadline.model.transformer import DeepseekV2
from leadline.train import checkpoints
from leadline.train.config import OptimizerConfig
from leadline.train.journal import Journal
from leadline.train.loop import recipe_hash
from leadline.train.optim import MasterAdamW, learning_rate
from leadline.train.stopping import Stopping
from leadline.train.watch import first_not_finite

AT_LEAST_ONE = ("steps", "micro_batch_tokens", "log_every", "eval_every", "save_every", "keep_checkpoints")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """`data` is a folder of train.jsonl and valid.jsonl, `init` the model folder that the stage starts from."""

    out: Path
    data: Path
    init: Path
    steps: int
    micro_batch_tokens: int = 8192  # of a forward and backward pass, about
    optimizer: OptimizerConfig = OptimizerConfig(peak_lr=1e-5, warmup_steps=10, decay_at=())
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    compile: bool = False  # the memory-bound ops, where there is a compiler
    threads: int = 0  # 0: as many as there are cores
    seed: int = 0
    log_every: int = 1
    eval_every: int = 50
    save_every: int = 50
    keep_checkpoints: int = 2

    def check(self) -> None:
        """Raise `ConfigError` for numbers that cannot be trained with."""
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1")
        for name in ("threads", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative")
        self.optimizer.check()


class Run(ABC):
    """One run in `config.out`: `train_step` until `config.steps` are done or a signal asks to save and stop."""

    def __init__(self, config: RunConfig, model: nn.Module) -> None:
        self.settings, self.network = config, model
        self.optimizer = MasterAdamW(model, config.optimizer)
        self.journal = Journal(config.out / "metrics.jsonl", config.steps, config.log_every)
        self.folder = config.out / "checkpoints"
        self.writer = checkpoints.Writer(self.folder, config.keep_checkpoints)
        self.step = self.tokens = 0
        self.stopping = Stopping()

    @abstractmethod
    def train_step(self) -> dict[str, float]:
        """One step's work with the optimiser; what it tells."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Scores on held-out data."""

    @property
    def learning_rate(self) -> float:
        """Of the step that comes."""
        return learning_rate(self.settings.optimizer, self.step, self.settings.steps)

    def watch(self, loss: float, norm: float) -> None:
        """End the run before the optimiser sees a number that is not one."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            where = first_not_finite(self.network, [])
            raise TrainingError(f"step {self.step + 1}: loss {loss}, gradient norm {norm}: not finite, {where}")

    def run(self) -> bool:
        """True when the run is complete, False when it was interrupted (and saved)."""
        self.resume()
        self.journal.rewind(self.step)
        with self.stopping, self.journal, self.writer:
            self._steps()
            self.save()
        return self.step >= self.settings.steps

    def _steps(self) -> None:
        if self.step == 0:
            self.journal.evaluated(0, 0, self.evaluate())
        while self.step < self.settings.steps and not self.stopping.asked:
            told = self.train_step()
            self.step += 1
            self.journal.stepped(self.step, told)
            last = self.step == self.settings.steps
            if self.step % self.settings.eval_every == 0 or last:
                self.journal.evaluated(self.step, self.tokens, self.evaluate())
            if self.step % self.settings.save_every == 0 and not last:
                self.save()

    def save(self) -> None:
        state = checkpoints.TrainState(self.step, self.tokens, recipe_hash(self.settings))
        self.writer.save(state, self.optimizer.state())

    def resume(self) -> None:
        """Continue from the newest checkpoint in `out`, if there is one, and only under the same recipe."""
        found = checkpoints.newest(checkpoints.complete(self.folder), recipe_hash(self.settings))
        if found is not None:
            state, tensors = found
            self.optimizer.load(tensors)
            self.step, self.tokens = state.step, state.tokens


def export_newest(config: RunConfig, model: DeepseekV2 | RewardModel, folder: Path) -> int:
    """Write the newest checkpoint of a run of `model`'s shape as a model folder; the step it is from."""
    config.check()
    found = checkpoints.complete(config.out / "checkpoints")
    if not found:
        raise DataError(f"{config.out} holds no checkpoint")
    state, tensors = checkpoints.load(found[-1])
    MasterAdamW(model, config.optimizer).load(tensors)
    save_model(model, folder, dtype=getattr(torch, config.dtype), tokenizer_from=config.init)
    return state.step
