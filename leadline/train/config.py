"""A training recipe: everything a run depends on, from one TOML file (sections 3.1.2, 3.1.4, 4.1, appendix B)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from leadline.errors import ConfigError
from leadline.model.balance import BalanceConfig
from leadline.model.config import SMALL, ModelConfig, YarnConfig
from leadline.model.dropping import DroppingConfig
from leadline.parallel.layout import ParallelConfig
from leadline.parallel.recompute import Recompute
from leadline.train.schedule import BatchSchedule, RampConfig

AT_LEAST_ONE = (
    "sequence_length",
    "batch_tokens",
    "micro_batch_tokens",
    "log_every",
    "eval_every",
    "save_every",
    "keep_checkpoints",
)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and the paper's schedule: linear warm-up, then constant, multiplied by `decay_factor` at each of `decay_at`
    (shares of all tokens: 0.6 and 0.9 for V2, 0.8 and 0.9 for V2-Lite)."""

    peak_lr: float = 4.2e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    clip: float = 1.0
    warmup_steps: int = 2000
    decay_at: tuple[float, ...] = (0.6, 0.9)
    decay_factor: float = 0.316

    def check(self) -> None:
        """Raise `ConfigError` for numbers that no run survives."""
        if self.peak_lr <= 0 or self.clip <= 0:
            raise ConfigError("optimizer.peak_lr and optimizer.clip must be more than 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optimizer.betas must be from 0 up to 1, not {self.betas}")
        if self.weight_decay < 0 or self.warmup_steps < 0:
            raise ConfigError("optimizer.weight_decay and optimizer.warmup_steps must not be negative")
        if not all(0 <= share <= 1 for share in self.decay_at):
            raise ConfigError(f"optimizer.decay_at are shares of the run, from 0 to 1, not {self.decay_at}")


@dataclasses.dataclass(frozen=True)
class ExtensionConfig:
    """YaRN's extension (section 3.1.4) from the model's reach, `original` (0: its max_position_embeddings), to `factor`
    times that. The paper's factor is 40: 4K to 160K, trained at 32K. `mscale` 0.707 gives sqrt(t) = 0.0707 ln s + 1."""

    factor: float
    original: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.707

    def check(self) -> None:
        """Raise `ConfigError` for what extends nothing."""
        if self.factor <= 1 or self.original < 0 or not 0 < self.beta_slow < self.beta_fast or self.mscale < 0:
            raise ConfigError(
                "yarn.factor must be more than 1, yarn.original and yarn.mscale not negative, and "
                "yarn.beta_slow more than 0 and less than yarn.beta_fast"
            )

    def extended(self, model: ModelConfig) -> ModelConfig:
        """The shape with its new reach; weights stay as they are."""
        if model.yarn is not None:
            raise ConfigError(f"the model in `init` was extended before, by YaRN x{model.yarn.factor:g}")
        original = self.original or model.max_position_embeddings
        yarn = YarnConfig(self.factor, original, self.beta_fast, self.beta_slow, self.mscale, self.mscale)
        return dataclasses.replace(model, yarn=yarn, max_position_embeddings=int(original * self.factor))


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One stage. `data` is a corpus folder for pre-training and a folder of train.jsonl and valid.jsonl for SFT, which
    may count `epochs` over it instead of `tokens`; `init` is the model folder a stage starts from (none: random weights
    of shape `model`)."""

    out: Path
    data: Path
    tokens: int = 0  # to be seen in all, the schedule's length
    epochs: float = 0.0  # `sft` only: how often every conversation is seen
    tokenizer: Path | None = None  # default: the one of `init`
    init: Path | None = None
    model: ModelConfig = SMALL
    yarn: ExtensionConfig | None = None  # `extend` only
    sequence_length: int = 512
    batch_tokens: int = 8192  # an optimiser step
    micro_batch_tokens: int = 8192  # a forward and backward pass
    optimizer: OptimizerConfig = OptimizerConfig()
    ramp: RampConfig = RampConfig()
    balance: BalanceConfig = BalanceConfig()
    dropping: DroppingConfig = DroppingConfig()
    parallel: ParallelConfig = ParallelConfig()
    recompute: Recompute = "none"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    device: str = "cpu"
    compile: bool = True  # the memory-bound ops, where there is a C++ compiler
    threads: int = 0  # 0: as many as there are cores
    seed: int = 0
    log_every: int = 10
    eval_every: int = 500
    eval_tokens: int = 65536  # 0: the whole held-out split
    save_every: int = 500
    keep_checkpoints: int = 2
    tensorboard: bool = False
    peak_tflops: float = 0.0  # of this device, for the utilisation; 0: measured when the run starts

    def check(self) -> None:
        """Raise `ConfigError` for numbers that cannot be trained with."""
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1")
        if (self.tokens > 0) == (self.epochs > 0) or self.tokens < 0 or self.epochs < 0:
            raise ConfigError("tokens must be at least 1; sft may have epochs, more than 0, instead")
        for name in ("eval_tokens", "threads", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative")
        self.optimizer.check()
        if self.micro_batch_tokens % self.sequence_length:
            raise ConfigError("micro_batch_tokens is not a multiple of sequence_length")
        if self.batch_tokens % self.micro_batch_tokens:
            raise ConfigError("batch_tokens is not a multiple of micro_batch_tokens")
        self.ramp.check(self.micro_batch_tokens, self.batch_tokens)
        self.dropping.check()
        if self.yarn is not None:
            self.yarn.check()
        if self.peak_tflops < 0:
            raise ConfigError("peak_tflops must not be negative")
        if self.init is None and self.tokenizer is None:
            raise ConfigError("a run from random weights needs `tokenizer`, a folder")

    @property
    def schedule(self) -> BatchSchedule:
        return BatchSchedule(self.tokens, self.batch_tokens, self.micro_batch_tokens, self.ramp)

    @property
    def steps(self) -> int:
        return self.schedule.steps
