"""AdamW on float32 masters, and the schedule (section 3.1.2).

The model may compute in bf16: every parameter has a float32 master here which the optimiser moves; after each step the
parameters are the masters rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from leadline.errors import DataError
from leadline.train.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Of step 0, 1, ...: linear warm-up over `warmup_steps`, then a factor at each share of `decay_at`."""
    if step < config.warmup_steps:
        return config.peak_lr * (step + 1) / config.warmup_steps
    passed = sum(step >= share * steps for share in config.decay_at)
    return config.peak_lr * config.decay_factor**passed


class MasterAdamW:
    """Norms and biases are not decayed. A float32 parameter is its own master."""

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self.config = config
        self.parameters = dict(model.named_parameters())
        self.masters = {
            name: nn.Parameter(p.detach().float().clone()) if p.dtype != torch.float32 else p
            for name, p in self.parameters.items()
        }
        decayed = [m for m in self.masters.values() if m.dim() > 1]
        plain = [m for m in self.masters.values() if m.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.adam = torch.optim.AdamW(groups, lr=config.peak_lr, betas=config.betas, fused=True)

    def gradient_norm(self) -> Tensor:
        """Hand the gradients to the masters; their norm over all parameters, before clipping."""
        for name, parameter in self.parameters.items():
            master = self.masters[name]
            if master is not parameter:
                master.grad = None if parameter.grad is None else parameter.grad.float()
        return nn.utils.get_total_norm([m.grad for m in self.masters.values() if m.grad is not None])

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
                master.grad = None
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """Masters and moments by name, for a checkpoint."""
        tensors = {f"master.{name}": master.detach() for name, master in self.masters.items()}
        for name, master in self.masters.items():
            for key, value in self.adam.state.get(master, {}).items():
                tensors[f"{key}.{name}"] = value
        return tensors

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`, to the bit. Tensors of another model are a `DataError`."""
        for name, master in self.masters.items():
            master.copy_(_fitting(tensors, f"master.{name}", master.shape))
            if f"step.{name}" in tensors:  # not in a checkpoint from before the first step
                shapes = {"step": torch.Size(), "exp_avg": master.shape, "exp_avg_sq": master.shape}
                self.adam.state[master] = {
                    key: _fitting(tensors, f"{key}.{name}", shape).to(master.device, copy=True)
                    for key, shape in shapes.items()
                }
        self._round_back()


def _fitting(tensors: dict[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    if name not in tensors:
        raise DataError(f"the checkpoint has no {name}, which the model needs")
    if tensors[name].shape != shape:
        raise DataError(f"{name} is {tuple(tensors[name].shape)} in the checkpoint, {tuple(shape)} in the model")
    return tensors[name]
