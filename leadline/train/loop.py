"""The loop that pre-training and SFT share: passes, optimiser steps, held-out loss, checkpoints.

A training step: tokens and document starts -> the model -> chunked cross-entropy + balance losses of every MoE layer
-> backward -> clip -> AdamW on the masters -> one JSON line. A resumed run continues exactly: data is a function of the
step, and the masters and moments are restored to the bit.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import math
import signal
import time
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from leadline.errors import ConfigError
from leadline.model.balance import balance_loss, sequence_ids
from leadline.model.batch import ForwardBatch
from leadline.model.moe import Routing
from leadline.model.transformer import DeepseekV2
from leadline.ops import inductor
from leadline.train import checkpoints
from leadline.train.config import TrainConfig
from leadline.train.data import Batch, DataSource
from leadline.train.loss import cross_entropy
from leadline.train.metrics import Metrics
from leadline.train.optim import MasterAdamW, learning_rate


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Batches to measure on; with `bytes` the loss is also told in bits per byte."""

    batches: list[Batch]
    bytes: int | None = None


def prepare(config: TrainConfig) -> None:
    """Threads, compiled ops, and an allocator that keeps what it has: returning large blocks to the system and faulting
    them in again costs a small model a third of its step."""
    config.check()
    torch.set_num_threads(config.threads or torch.get_num_threads())
    torch.manual_seed(config.seed)
    if config.compile and config.device == "cpu":
        inductor.enable()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)


def cast(model: DeepseekV2, dtype: torch.dtype) -> DeepseekV2:
    """To the training dtype, the gates staying in float32 where they are computed."""
    model.to(dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("mlp.gate.weight"):
            parameter.data = parameter.data.float()
    return model


class Trainer:
    """One run in `config.out`. `run` returns when all tokens were seen or a signal asked it to save and stop."""

    def __init__(self, config: TrainConfig, model: DeepseekV2, data: DataSource, held_out: HeldOut) -> None:
        self.config, self.data, self.held_out = config, data, held_out
        self.model = cast(model, getattr(torch, config.dtype)).to(config.device).train()
        self.optimizer = MasterAdamW(self.model, config.optimizer)
        self.metrics = Metrics(config)
        self.step = self.tokens = 0
        self.stopping = False

    # ---- running -----------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """True when the run is complete, False when it was interrupted (and saved)."""
        self.resume()
        previous = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            with self.metrics:
                while self.step < self.config.steps and not self.stopping:
                    self.train_step()
                    self._after_step()
                self.save()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        return self.step >= self.config.steps

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True

    def _after_step(self) -> None:
        last = self.step == self.config.steps
        if self.step % self.config.eval_every == 0 or last:
            self.metrics.evaluated(self.step, self.tokens, self.evaluate())
        if self.step % self.config.save_every == 0 and not last:
            self.save()

    def train_step(self) -> None:
        """One optimiser step over batch_tokens / micro_batch_tokens passes."""
        started = time.perf_counter()
        passes = self.config.batch_tokens // self.config.micro_batch_tokens
        lr = learning_rate(self.config.optimizer, self.step, self.config.steps)
        losses, balances, tokens = [], [], 0
        routings: tuple[Routing, ...] = ()
        for i in range(passes):
            batch = self.data.batch(self.step * passes + i)
            loss, balance, routings = self.losses(batch)
            ((loss + balance) / passes).backward()
            losses.append(loss.item())
            balances.append(balance.item())
            tokens += len(batch.tokens_T)
        norm = float(self.optimizer.step(lr))
        self._watch(losses, norm)
        self.step += 1
        self.tokens += tokens
        self.metrics.stepped(
            step=self.step,
            tokens=self.tokens,
            loss=sum(losses) / passes,
            balance=sum(balances) / passes,
            lr=lr,
            grad_norm=norm,
            seconds=time.perf_counter() - started,
            step_tokens=tokens,
            loads=[load(routing) for routing in routings],
        )

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor, tuple[Routing, ...]]:
        """Cross-entropy, the balance losses' sum, and the routing of the pass."""
        device = self.config.device
        lengths = [b - a for a, b in zip(batch.documents, batch.documents[1:], strict=False)]
        hidden_TD, routings = self.model.hidden(batch.tokens_T.to(device), ForwardBatch.packed(lengths, device=device))
        loss = cross_entropy(
            hidden_TD, self.model.lm_head.weight, batch.targets_T.to(device), batch.weights_T.to(device)
        )
        ids_T, rows = sequence_ids(batch.rows, device), len(batch.rows) - 1
        terms = [balance_loss(r, ids_T, rows, self.model.config, self.config.balance) for r in routings]
        return loss, torch.stack(terms).sum() if terms else loss.new_zeros(()), routings

    def _watch(self, losses: list[float], norm: float) -> None:
        """Stop at the first number that is not one, and name where it is; the last checkpoint is from before."""
        if all(map(math.isfinite, losses)) and math.isfinite(norm):
            return
        bad = [name for name, p in self.optimizer.masters.items() if not bool(p.isfinite().all())]
        where = f"first in {bad[0]}" if bad else "in the activations"
        raise FloatingPointError(f"step {self.step}: loss {losses}, gradient norm {norm}: not finite, {where}")

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Held-out loss in nats a token and, for a corpus, bits per byte."""
        self.model.eval()
        total = weight = 0.0
        for batch in self.held_out.batches:
            lengths = [b - a for a, b in zip(batch.documents, batch.documents[1:], strict=False)]
            hidden_TD, _ = self.model.hidden(batch.tokens_T, ForwardBatch.packed(lengths))
            tokens = float(batch.weights_T.sum())
            total += (
                float(cross_entropy(hidden_TD, self.model.lm_head.weight, batch.targets_T, batch.weights_T)) * tokens
            )
            weight += tokens
        self.model.train()
        scores = {"held_out_loss": total / max(weight, 1.0)}
        if self.held_out.bytes:
            scores["bits_per_byte"] = total / math.log(2) / self.held_out.bytes
        return scores

    # ---- checkpoints -------------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        return self.config.out / "checkpoints"

    def save(self) -> None:
        state = checkpoints.TrainState(self.step, self.tokens, recipe_hash(self.config))
        checkpoints.save(self.folder, state, self.optimizer.state(), self.config.keep_checkpoints)

    def resume(self) -> None:
        """Continue from the newest checkpoint in `out`, if there is one, and only under the same recipe."""
        found = checkpoints.complete(self.folder)
        if not found:
            return
        state, tensors = checkpoints.load(found[-1])
        if state.recipe != recipe_hash(self.config):
            raise ConfigError(f"{found[-1]} was written under another recipe; choose another `out`, or delete it")
        self.optimizer.load(tensors)
        self.step, self.tokens = state.step, state.tokens


def load(routing: Routing) -> list[float]:
    """Each expert's share of the pairs times their number: 1 is even, 0 is dead."""
    experts = routing.scores_TE.shape[1]
    counts = torch.bincount(routing.expert_ids_TK.flatten(), minlength=experts)[:experts]
    return (counts * experts / max(1, int(counts.sum()))).tolist()


LOOK_ONLY = {"log_every", "eval_every", "eval_tokens", "save_every", "keep_checkpoints", "threads", "compile", "out"}


def recipe_hash(config: TrainConfig) -> str:
    """Names what the numbers depend on; how often to look, and on how many threads, is not among it."""
    fields = {name: value for name, value in dataclasses.asdict(config).items() if name not in LOOK_ONLY}
    return hashlib.sha256(json.dumps(fields, default=str, sort_keys=True).encode()).hexdigest()
