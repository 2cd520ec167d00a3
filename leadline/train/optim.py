"""AdamW on float32 masters, and the schedule (section 3.1.2).

The model may compute in bf16: every parameter has a float32 master here which the optimiser moves; after each step the
parameters are the masters rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from leadline.errors import DataError
from leadline.parallel.layout import Layout, local_gradient
from leadline.train.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, steps: int, *, seen: float | None = None) -> float:
    """Of step 0, 1, ...: linear warm-up over `warmup_steps`, then a factor at each share of `decay_at`. The shares are
    of all tokens: `seen` of them before this step, which is step / steps where all batches are of one size."""
    if step < config.warmup_steps:
        return config.peak_lr * (step + 1) / config.warmup_steps
    seen = step / steps if seen is None else seen
    passed = sum(seen >= share for share in config.decay_at)
    return config.peak_lr * config.decay_factor**passed


class MasterAdamW:
    """Norms and biases are not decayed. A float32 parameter is its own master. Over several processes it moves what of
    each parameter is in this one, by the norm of all."""

    def __init__(self, model: nn.Module, config: OptimizerConfig, layout: Layout | None = None) -> None:
        self.config = config
        self.layout = layout or Layout()
        self.sources = dict(model.named_parameters())
        self.parameters = {name: self.layout.here(name, p) for name, p in self.sources.items()}
        self.masters = {
            name: nn.Parameter(p.detach().float().clone()) if p.dtype != torch.float32 else p
            for name, p in self.parameters.items()
        }
        decayed = [m for m in self.masters.values() if m.dim() > 1]
        plain = [m for m in self.masters.values() if m.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.adam = torch.optim.AdamW(groups, lr=config.peak_lr, betas=config.betas, fused=True)

    def gradient_norm(self) -> Tensor:
        """Hand the gradients to the masters and sum them over the processes; their norm over all parameters, before
        clipping."""
        for name, source in self.sources.items():
            gradient = local_gradient(source)
            self.masters[name].grad = None if gradient is None else gradient.float()
        gradients = {name: master.grad for name, master in self.masters.items() if master.grad is not None}
        self.layout.sum_gradients(gradients)
        return self.layout.norm(gradients)

    def step(self, lr: float, norm: Tensor) -> None:
        """Clip by `norm`, move the masters, round them back. Gradients are freed."""
        nn.utils.clip_grads_with_norm_(self.masters.values(), self.config.clip, norm)
        for group in self.adam.param_groups:
            group["lr"] = lr
        self.adam.step()
        self._round_back()

    @torch.no_grad()
    def _round_back(self) -> None:
        for name, parameter in self.parameters.items():
            master = self.masters[name]
            if master is not parameter:
                parameter.copy_(master)
            master.grad = self.sources[name].grad = None

    def state(self) -> dict[str, Tensor]:
        """Whole masters and moments by name, for a checkpoint. Every process must ask, and each gets all."""
        tensors = {}
        for name, master in self.masters.items():
            tensors[f"master.{name}"] = self.layout.whole(name, master.detach())
            for key, value in self.adam.state.get(master, {}).items():
                tensors[f"{key}.{name}"] = self.layout.whole(name, value)
        return tensors

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`, to the bit, at any number of processes. Tensors of another model are a
        `DataError`."""
        for name, master in self.masters.items():
            master.copy_(self._fitting(tensors, "master", name))
            if f"step.{name}" in tensors:  # not in a checkpoint from before the first step
                self.adam.state[master] = {
                    key: self._fitting(tensors, key, name).to(master.device, copy=True)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
        self._round_back()

    def _fitting(self, tensors: dict[str, Tensor], key: str, name: str) -> Tensor:
        """This process's part of a saved tensor."""
        full = f"{key}.{name}"
        if full not in tensors:
            raise DataError(f"the checkpoint has no {full}, which the model needs")
        part = self.layout.part(name, tensors[full])
        shape = torch.Size() if key == "step" else self.masters[name].shape
        if part.shape != shape:
            raise DataError(f"{full} is {tuple(part.shape)} in the checkpoint, {tuple(shape)} in the model")
        return part
