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
import time
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from leadline.errors import ConfigError, TrainingError
from leadline.model.balance import balance_losses, sequence_ids
from leadline.model.batch import ForwardBatch
from leadline.model.config import ModelConfig
from leadline.model.dropping import Dropping
from leadline.model.moe import Routing
from leadline.model.transformer import DeepseekV2
from leadline.ops import inductor
from leadline.ops.cpu import training
from leadline.ops.transfer import to_device
from leadline.parallel.layout import distribute, forget_gathered, sum_after_this_pass
from leadline.parallel.recompute import recompute
from leadline.parallel.world import World
from leadline.train import checkpoints
from leadline.train.config import TrainConfig
from leadline.train.data import Batch, DataSource, Feed, exempt_sequences
from leadline.train.loss import cross_entropy
from leadline.train.metrics import Metrics, warn
from leadline.train.optim import MasterAdamW, learning_rate
from leadline.train.stopping import Stopping
from leadline.train.totals import Totals
from leadline.train.watch import verdicts

Network = TypeVar("Network", bound=nn.Module)


class Prepared(Protocol):
    """What every stage says of where and how it runs."""

    @property
    def out(self) -> Path: ...
    @property
    def device(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def compile(self) -> bool: ...
    def check(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Batches to measure on; with `bytes` the loss is also told in bits per byte."""

    batches: list[Batch]
    bytes: int | None = None


def prepare(config: Prepared) -> None:
    """Check what can be checked before any work; threads, compiled ops, and an allocator that keeps what it has instead
    of returning large blocks to the system and faulting them in again."""
    config.check()
    _check_places(config)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    torch.manual_seed(config.seed)
    if config.compile and not inductor.enable(config.device):
        warn("no compiler works here: training goes on without compiled ops, more slowly")
    training.enable()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)


def _check_places(config: Prepared) -> None:
    try:
        torch.empty(0, device=config.device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch that was built without it
        raise ConfigError(f"device {config.device!r} cannot be used here: {str(error).splitlines()[0]}") from None
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out: cannot make the folder {config.out}: {error.strerror}") from None


def cast(model: Network, dtype: torch.dtype) -> Network:
    """To the training dtype, the gates staying in float32 where they are computed."""
    model.to(dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("mlp.gate.weight"):
            parameter.data = parameter.data.float()
    return model


class Trainer:
    """One run in `config.out`. `run` returns when all tokens were seen or a signal asked it to save and stop.

    In a world of several processes each has a trainer, which makes every so manieth pass of a step; only the first
    writes and tells.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: DeepseekV2,
        data: DataSource,
        held_out: HeldOut,
        world: World | None = None,
    ) -> None:
        self.config, self.data, self.held_out = config, data, held_out
        self.world = world or World()
        self.schedule = config.schedule
        self.model = cast(model, getattr(torch, config.dtype)).to(config.device).train()
        recompute(self.model, config.recompute)
        self.layout = distribute(self.model, config.parallel, self.world)
        self.optimizer = MasterAdamW(self.model, config.optimizer, self.layout)
        self.metrics = Metrics(config, self.model.config, silent=not self.world.is_first)
        self.feed = Feed(self.batches, ahead=config.device != "cpu")
        self.writer = checkpoints.Writer(self.folder, config.keep_checkpoints)
        self.step = self.tokens = 0
        self.stopping = Stopping()
        if self.world.is_first:
            for line in warnings(config, self.model.config):
                warn(line)

    # ---- running -----------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """True when the run is complete, False when it was interrupted (and saved)."""
        self.resume()
        self.metrics.rewind(self.step)
        with self.stopping, self.metrics, self.writer:
            self.metrics.started(self.step, self.world.size)
            while self.step < self.schedule.steps and not self.world.any(self.stopping.asked):
                self.train_step()
                self._after_step()
            self.save()
        return self.step >= self.schedule.steps

    def _after_step(self) -> None:
        last = self.step == self.schedule.steps
        if self.step % self.config.eval_every == 0 or last:
            self.metrics.evaluated(self.step, self.tokens, self.evaluate())
        if self.step % self.config.save_every == 0 and not last:
            self.save()

    def train_step(self) -> None:
        """One optimiser step over the schedule's passes, dealt to the processes.

        The host waits for the device once, when everything up to the gradient's norm is under way.
        """
        started = time.perf_counter()
        seen = self.schedule.share(self.step)
        lr = learning_rate(self.config.optimizer, self.step, self.schedule.steps, seen=seen)
        batches = self.feed.take(self.step)
        totals = self.accumulate(batches)
        gradient_norm = self.optimizer.gradient_norm()
        told, norm = totals.over(self.world), float(gradient_norm)
        self._watch(batches, told.loss, norm)
        self.optimizer.step(lr, gradient_norm)
        self.step += 1
        self.tokens += told.tokens
        seconds = time.perf_counter() - started
        self.metrics.stepped(told, step=self.step, tokens=self.tokens, lr=lr, grad_norm=norm, seconds=seconds)

    def batches(self, step: int) -> list[Batch]:
        """This process's passes of a step."""
        first, passes = self.schedule.first(step), self.schedule.passes(step)
        batches = []
        for place, counts in self.world.deal(passes):
            batch = dataclasses.replace(self.data.batch(first + place), index=first + place)
            batches.append(batch if counts else batch.uncounted())
        return batches

    def accumulate(self, batches: list[Batch]) -> Totals:
        """Forward and backward of each pass, its gradient added to the others': what these passes came to.

        A pass counts by its trained tokens, and for balance by its sequences, so that the gradient is the one of all
        passes of all processes in one, however unevenly answers or document ends fall.
        """
        weight, rows = self.world.total(
            torch.tensor([[b.trained_tokens, b.sequences] for b in batches], dtype=torch.float64).sum(0)
        ).tolist()
        totals = Totals(self.config.device)
        for number, batch in enumerate(batches, 1):
            sum_after_this_pass(self.model, is_last=number == len(batches))
            loss, balances, routings = self.losses(batch)
            loss = loss * (batch.trained_tokens / max(weight, 1e-9))
            balances = balances * (batch.sequences / max(rows, 1))
            (loss + balances.sum()).backward()
            totals.add(batch, loss, balances, routings)
        return totals

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor, tuple[Routing, ...]]:
        """Cross-entropy, the three balance losses summed over the layers (3,), and the routing of a training pass."""
        loss, routings = self.forward(batch, self.dropping(batch))
        ids_T, rows = sequence_ids(batch.rows, self.config.device), len(batch.rows) - 1
        terms = [balance_losses(r, ids_T, rows, self.model.config, self.config.balance) for r in routings]
        return loss, torch.stack(terms).sum(0) if terms else loss.new_zeros(3), routings

    def forward(self, batch: Batch, dropping: Dropping | None = None) -> tuple[Tensor, tuple[Routing, ...]]:
        device = self.config.device
        lengths = [b - a for a, b in itertools.pairwise(batch.documents)]
        tokens_T, targets_T, weights_T = (
            to_device(x, device) for x in (batch.tokens_T, batch.targets_T, batch.weights_T)
        )
        place = dataclasses.replace(ForwardBatch.packed(lengths, device=device), dropping=dropping)
        hidden_TD, routings = self.model.hidden(tokens_T, place)
        return cross_entropy(hidden_TD, self.model.lm_head.weight, targets_T, weights_T), routings

    def dropping(self, batch: Batch) -> Dropping | None:
        """How a training pass drops tokens (2.2.4): a function of the pass's number, so the same wherever it is
        made."""
        config = self.config.dropping
        if not config.capacity_factor or self.model.config.n_group == 1:
            return None
        lengths_S = torch.tensor(batch.rows).diff()
        exempt_S = torch.from_numpy(exempt_sequences(self.config.seed, batch.index, len(lengths_S), config.exempt))
        return Dropping(config.capacity_factor, to_device(exempt_S.repeat_interleave(lengths_S), self.config.device))

    def _watch(self, batches: list[Batch], loss: float, norm: float) -> None:
        """Stop at the first number that is not one and name where it is, before the optimiser sees it."""
        if math.isfinite(loss) and math.isfinite(norm):
            return
        passes = [functools.partial(self.forward, batch, self.dropping(batch)) for batch in batches]
        found = self.world.gather(verdicts(self.model, passes)[0])
        where = min(found)[1]
        raise TrainingError(
            f"step {self.step + 1}: loss {loss}, gradient norm {norm}: not finite, {where}; the checkpoints are "
            "from before, and a lower optimizer.peak_lr or another seed may get past it"
        )

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Held-out loss in nats a token and, for a corpus, bits per byte. Nothing is dropped here."""
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        held = self.held_out.batches
        for place, counts in self.world.deal(len(held)):
            tokens = held[place].trained_tokens if counts else 0.0
            sums += torch.tensor([float(self.forward(held[place])[0]) * tokens, tokens], dtype=torch.float64)
        forget_gathered(self.model)
        self.model.train()
        total, weight = self.world.total(sums).tolist()
        scores = {"held_out_loss": total / max(weight, 1.0)}
        if self.held_out.bytes:
            scores["bits_per_byte"] = total / math.log(2) / self.held_out.bytes
        return scores

    # ---- checkpoints -------------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        return self.config.out / "checkpoints"

    def save(self) -> None:
        """Every process hands over what it has; the first writes it while training goes on."""
        tensors = self.optimizer.state()
        if self.world.is_first:
            state = checkpoints.TrainState(self.step, self.tokens, recipe_hash(self.config))
            self.writer.save(state, tensors)

    def resume(self) -> None:
        """Continue from the newest checkpoint in `out`, if there is one, and only under the same recipe; at how many
        processes it was written does not matter."""
        found = checkpoints.newest(self.world.gather(checkpoints.complete(self.folder))[0], recipe_hash(self.config))
        if found is not None:
            state, tensors = found
            self.optimizer.load(tensors)
            self.step, self.tokens = state.step, state.tokens


LOOK_ONLY = {
    "log_every", "eval_every", "eval_tokens", "save_every", "keep_checkpoints", "threads", "compile", "out",
    "parallel", "recompute", "tensorboard", "peak_tflops",
}  # fmt: skip


def warnings(config: TrainConfig, model: ModelConfig) -> list[str]:
    """What a run can do without and its owner may not have meant. Device and communication balance, and dropping,
    matter where experts are grouped by device."""
    if not any(model.is_moe_layer(layer) for layer in range(model.num_hidden_layers)):
        return []
    wanted = ("expert",) if model.n_group == 1 else ("expert", "device", "communication")
    missing = [name for name in wanted if not getattr(config.balance, name)]
    lines = [f"balance.{name} is 0: nothing keeps the {name} load even" for name in missing]
    if config.dropping.capacity_factor and model.n_group == 1:
        lines.append("dropping.capacity_factor drops nothing: the model's experts are in one device group (n_group)")
    return lines


def recipe_hash(config: Any) -> str:
    """Of a stage's dataclass: names what the numbers depend on. How often to look, and on how many threads or
    processes, is not among it."""
    fields = {name: value for name, value in dataclasses.asdict(config).items() if name not in LOOK_ONLY}
    return hashlib.sha256(json.dumps(fields, default=str, sort_keys=True).encode()).hexdigest()
