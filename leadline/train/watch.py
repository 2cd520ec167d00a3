"""Where numbers stopped being numbers: named before the optimiser spreads them over every tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from leadline.model.moe import Routing


def first_not_finite(model: nn.Module, passes: Iterable[Callable[[], object]]) -> str:
    """The first cause in the order of computing: a weight, an activation of a repeated pass, a gradient."""
    for name, parameter in model.named_parameters():
        if not is_finite(parameter):
            return f"first in the weight {name}"
    for run in passes:
        if (module := _first_activation(model, run)) is not None:
            return f"first in what {module} computes"
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and not is_finite(parameter.grad):
            return f"first in the gradient of {name}"
    return "first in the loss"


@torch.no_grad()
def _first_activation(model: nn.Module, run: Callable[[], object]) -> str | None:
    found: list[str] = []

    def observe(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and not all(map(is_finite, _tensors(output))):
                found.append(name)

        return hook

    hooks = [module.register_forward_hook(observe(name)) for name, module in model.named_modules() if name]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def is_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, tuple):
        for item in output:
            yield from _tensors(item)
    elif isinstance(output, Routing):
        yield output.scores_TE
