"""The loop that pre-training and SFT share: passes, optimiser steps, held-out loss, checkpoints.

A training step: tokens and document starts -> the model -> chunked cross-entropy + balance losses of every MoE layer
-> backward -> clip -> AdamW on the masters -> one JSON line. A resumed run continues exactly: data is a function of the
step, and the masters and moments are restored to the bit.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from leadline.errors import ConfigError, TrainingError
from leadline.model.balance import balance_loss, sequence_ids
from leadline.model.batch import ForwardBatch
from leadline.model.moe import Routing
from leadline.model.transformer import DeepseekV2
from leadline.ops import inductor
from leadline.ops.experts import occurrences
from leadline.ops.transfer import to_device
from leadline.train import checkpoints
from leadline.train.config import TrainConfig
from leadline.train.data import Batch, DataSource, Feed
from leadline.train.loss import cross_entropy
from leadline.train.metrics import Metrics, warn
from leadline.train.optim import MasterAdamW, learning_rate
from leadline.train.watch import first_not_finite


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Batches to measure on; with `bytes` the loss is also told in bits per byte."""

    batches: list[Batch]
    bytes: int | None = None


def prepare(config: TrainConfig) -> None:
    """Check what can be checked before any work; threads, compiled ops, and an allocator that keeps what it has instead
    of returning large blocks to the system and faulting them in again."""
    config.check()
    _check_places(config)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    torch.manual_seed(config.seed)
    if config.compile and not inductor.enable(config.device):
        warn("no compiler works here: training goes on without compiled ops, more slowly")
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)


def _check_places(config: TrainConfig) -> None:
    try:
        torch.empty(0, device=config.device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch that was built without it
        raise ConfigError(f"device {config.device!r} cannot be used here: {str(error).splitlines()[0]}") from None
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out: cannot make the folder {config.out}: {error.strerror}") from None


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
        self.feed = Feed(data, config.batch_tokens // config.micro_batch_tokens, ahead=config.device != "cpu")
        self.step = self.tokens = 0
        self.stopping = False
        self._warn_of_zero_factors()

    def _warn_of_zero_factors(self) -> None:
        """Device and communication balance matter where experts are grouped by device."""
        factors, model = self.config.balance, self.model.config
        if not any(model.is_moe_layer(layer) for layer in range(model.num_hidden_layers)):
            return
        wanted = ("expert",) if model.n_group == 1 else ("expert", "device", "communication")
        for name in (name for name in wanted if not getattr(factors, name)):
            warn(f"balance.{name} is 0: nothing keeps the {name} load even")

    # ---- running -----------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """True when the run is complete, False when it was interrupted (and saved)."""
        self.resume()
        self.metrics.rewind(self.step)
        previous = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            with self.metrics:
                self.metrics.started(self.step, sum(p.numel() for p in self.model.parameters()))
                while self.step < self.config.steps and not self.stopping:
                    self.train_step()
                    self._after_step()
                self.save()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        return self.step >= self.config.steps

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """The first signal asks; a second Ctrl-C does not wait. Written past Python's buffers, which may be in use."""
        if self.stopping and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stopping = True
        os.write(STDERR, b"stopping: this step is finished and saved; Ctrl-C again leaves at once\n")

    def _after_step(self) -> None:
        last = self.step == self.config.steps
        if self.step % self.config.eval_every == 0 or last:
            self.metrics.evaluated(self.step, self.tokens, self.evaluate())
        if self.step % self.config.save_every == 0 and not last:
            self.save()

    def train_step(self) -> None:
        """One optimiser step over batch_tokens / micro_batch_tokens passes.

        The host reads the device once, when everything up to the gradient's norm is under way.
        """
        started = time.perf_counter()
        lr = learning_rate(self.config.optimizer, self.step, self.config.steps)
        batches = self.feed.take(self.step)
        losses, balances, routings = self.accumulate(batches)
        gradient_norm = self.optimizer.gradient_norm()
        loads_LE = [load(layer) for layer in zip(*routings, strict=True)]
        loss, balance, norm = torch.stack([sum_of(losses), sum_of(balances), gradient_norm]).tolist()
        self._watch(batches, loss, norm)
        self.optimizer.step(lr, gradient_norm)
        self.step += 1
        tokens = sum(len(batch.tokens_T) for batch in batches)
        self.tokens += tokens
        self.metrics.stepped(
            step=self.step,
            tokens=self.tokens,
            loss=loss,
            balance=balance,
            lr=lr,
            grad_norm=norm,
            seconds=time.perf_counter() - started,
            step_tokens=tokens,
            loads=torch.stack(loads_LE).tolist() if loads_LE else [],
        )

    def accumulate(self, batches: list[Batch]) -> tuple[list[Tensor], list[Tensor], list[tuple[Routing, ...]]]:
        """Forward and backward of each pass: its share of the step's loss, of its balance loss, and its routings.

        A pass counts by its trained tokens, and for balance by its sequences, so that the gradient is the one of all
        passes in one, however unevenly answers or document ends fall.
        """
        weights = [float(batch.weights_T.sum()) for batch in batches]
        rows = [len(batch.rows) - 1 for batch in batches]
        losses, balances, routings = [], [], []
        for batch, weight, count in zip(batches, weights, rows, strict=True):
            loss, balance, routing = self.losses(batch)
            loss, balance = loss * (weight / max(sum(weights), 1e-9)), balance * (count / sum(rows))
            (loss + balance).backward()
            losses.append(loss.detach())
            balances.append(balance.detach())
            routings.append(routing)
        return losses, balances, routings

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor, tuple[Routing, ...]]:
        """Cross-entropy, the balance losses' sum, and the routing of the pass."""
        loss, routings = self.forward(batch)
        ids_T, rows = sequence_ids(batch.rows, self.config.device), len(batch.rows) - 1
        terms = [balance_loss(r, ids_T, rows, self.model.config, self.config.balance) for r in routings]
        return loss, torch.stack(terms).sum() if terms else loss.new_zeros(()), routings

    def forward(self, batch: Batch) -> tuple[Tensor, tuple[Routing, ...]]:
        device = self.config.device
        lengths = [b - a for a, b in itertools.pairwise(batch.documents)]
        tokens_T, targets_T, weights_T = (
            to_device(x, device) for x in (batch.tokens_T, batch.targets_T, batch.weights_T)
        )
        hidden_TD, routings = self.model.hidden(tokens_T, ForwardBatch.packed(lengths, device=device))
        return cross_entropy(hidden_TD, self.model.lm_head.weight, targets_T, weights_T), routings

    def _watch(self, batches: list[Batch], loss: float, norm: float) -> None:
        """Stop at the first number that is not one and name where it is, before the optimiser sees it."""
        if math.isfinite(loss) and math.isfinite(norm):
            return
        where = first_not_finite(self.model, [functools.partial(self.forward, batch) for batch in batches])
        raise TrainingError(
            f"step {self.step + 1}: loss {loss}, gradient norm {norm}: not finite, {where}; the checkpoints are "
            "from before, and a lower optimizer.peak_lr or another seed may get past it"
        )

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Held-out loss in nats a token and, for a corpus, bits per byte."""
        self.model.eval()
        total = weight = 0.0
        for batch in self.held_out.batches:
            tokens = float(batch.weights_T.sum())
            total += float(self.forward(batch)[0]) * tokens
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


def load(passes: Sequence[Routing]) -> Tensor:
    """(E,): one layer's experts over a step's passes, each one's share of the pairs times their number, 1 when even."""
    experts = passes[0].scores_TE.shape[1]
    counts_E = sum_of([occurrences(routing.expert_ids_TK.flatten(), experts + 1)[:experts] for routing in passes])
    return counts_E * experts / counts_E.sum().clamp(min=1)


def sum_of(tensors: list[Tensor]) -> Tensor:
    return torch.stack(tensors).sum(0)


STDERR = 2
LOOK_ONLY = {"log_every", "eval_every", "eval_tokens", "save_every", "keep_checkpoints", "threads", "compile", "out"}


def recipe_hash(config: TrainConfig) -> str:
    """Names what the numbers depend on; how often to look, and on how many threads, is not among it."""
    fields = {name: value for name, value in dataclasses.asdict(config).items() if name not in LOOK_ONLY}
    return hashlib.sha256(json.dumps(fields, default=str, sort_keys=True).encode()).hexdigest()
