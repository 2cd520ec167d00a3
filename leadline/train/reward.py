"""Reward models (section 4.2): from the fine-tuned model, by a pair-wise or a point-wise loss.

With r the value of a conversation (`leadline.model.reward`):

* pairs:  -log sigmoid(r_chosen - r_rejected), Bradley and Terry's model of a preference;
* scores: the cross-entropy of sigmoid(r) with the score s in [0, 1].

Accuracy on held-out data: how often the chosen answer has the greater value; how often r and s are on the same side.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from leadline.checkpoint.save import save_model
from leadline.checkpoint.weights import read_network
from leadline.errors import CheckpointError, ConfigError
from leadline.model.batch import ForwardBatch
from leadline.model.config import ModelConfig
from leadline.model.reward import RewardModel
from leadline.model.transformer import DeepseekV2
from leadline.tokenizer import Tokenizer
from leadline.train.comparisons import ComparisonBatch, Comparisons
from leadline.train.loop import cast, prepare
from leadline.train.metrics import warn
from leadline.train.run import Run, RunConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardConfig(RunConfig):
    """`batch` comparisons make an optimiser step; longer conversations than `sequence_length` are left out."""

    batch: int = 64
    sequence_length: int = 1024

    def check(self) -> None:
        super().check()
        if self.batch < 1 or self.sequence_length < 2:
            raise ConfigError("batch must be at least 1 and sequence_length at least 2")


def reward(config: RewardConfig) -> bool:
    """Train a reward model; True when complete. It is written to OUT/model."""
    prepare(config)
    tokenizer = Tokenizer.from_folder(config.init)
    train, valid = (
        Comparisons(config.data / f"{split}.jsonl", tokenizer, config.sequence_length, config.seed)
        for split in ("train", "valid")
    )
    if train.pairs != valid.pairs:
        raise ConfigError(f"{config.data}: train.jsonl and valid.jsonl must both hold pairs, or both scores")
    if dropped := train.dropped + valid.dropped:
        warn(f"{dropped} comparisons of over {config.sequence_length} tokens left out")
    trainer = RewardTrainer(config, starting_model(config.init), train, valid)
    complete = trainer.run()
    if complete:
        save_model(trainer.model, config.out / "model", dtype=getattr(torch, config.dtype), tokenizer_from=config.init)
    return complete


def starting_model(folder: Path) -> RewardModel:
    """The network of a language model, the value head at zero; or a reward model, to go on from. In float32."""
    if ModelConfig.from_folder(folder).num_labels:
        return read_network(RewardModel, folder, dtype=torch.float32).requires_grad_(True)
    return RewardModel.of(read_network(DeepseekV2, folder, dtype=torch.float32).requires_grad_(True))


def load_reward_model(folder: Path, device: str = "cpu") -> RewardModel:
    """A trained one, to be asked and not trained."""
    if not ModelConfig.from_folder(folder).num_labels:
        raise CheckpointError(f"{folder} is a language model, not a reward model")
    return read_network(RewardModel, folder, device=device).requires_grad_(False).eval()


class RewardTrainer(Run):
    """All comparisons of a step count alike, however they are divided into passes."""

    def __init__(self, config: RewardConfig, model: RewardModel, train: Comparisons, valid: Comparisons) -> None:
        self.model = cast(model, getattr(torch, config.dtype)).to(config.device).train()
        super().__init__(config, self.model)
        self.config, self.train, self.valid = config, train, valid

    def train_step(self) -> dict[str, float]:
        started, lr = time.perf_counter(), self.learning_rate
        passes = self.train.step(self.step, self.config.batch, self.config.micro_batch_tokens)
        loss = accuracy = 0.0
        for batch in passes:
            part, right = self.losses(batch)
            share = batch.comparisons / self.config.batch
            (part.mean() * share).backward()
            loss += float(part.detach().mean()) * share
            accuracy += float(right.float().mean()) * share
        norm = self.optimizer.gradient_norm()
        self.watch(loss, float(norm))
        self.optimizer.step(lr, norm)
        tokens = sum(len(batch.tokens_T) for batch in passes)
        self.tokens += tokens
        pace = tokens / (time.perf_counter() - started)
        return {"tokens": self.tokens, "loss": loss, "accuracy": accuracy, "lr": lr, "grad_norm": float(norm),
                "tokens_per_second": pace}  # fmt: skip

    def losses(self, batch: ComparisonBatch) -> tuple[Tensor, Tensor]:
        """Of each comparison: its loss, and whether the model judges it right."""
        device = self.config.device
        values_S, _ = self.model(batch.tokens_T.to(device), ForwardBatch.packed(batch.lengths, device=device))
        if batch.scores_S is None:
            margins = values_S[0::2] - values_S[1::2]
            return -logsigmoid(margins), margins > 0
        scores_S = batch.scores_S.to(values_S)
        return binary_cross_entropy_with_logits(values_S, scores_S, reduction="none"), (values_S > 0) == (
            scores_S > 0.5
        )

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        told = [self.losses(batch) for batch in self.valid.all(self.config.micro_batch_tokens)]
        losses, right = (torch.cat([each[part].float() for each in told]) for part in (0, 1))
        return {"held_out_loss": float(losses.mean()), "held_out_accuracy": float(right.mean())}
