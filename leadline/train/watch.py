"""Where numbers stopped being numbers: named before the optimiser spreads them over every tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from leadline.model.moe import Routing
from leadline.parallel.layout import local, local_gradient


def first_not_finite(model: nn.Module, passes: Iterable[Callable[[], object]]) -> str:
    """The first cause in the order of computing: a weight, an activation of a repeated pass, a gradient."""
    return verdicts(model, passes)[0][1]


def verdicts(model: nn.Module, passes: Iterable[Callable[[], object]]) -> list[tuple[int, str]]:
    """All causes found, by their place in the order of computing. Every pass is run, whatever the ones before showed:
    the processes of a run meet in each."""
    parameters = [(name, parameter, local_gradient(parameter)) for name, parameter in model.named_parameters()]
    weights = [name for name, parameter, _ in parameters if not is_finite(local(parameter))]
    modules = [module for run in passes if (module := _first_activation(model, run)) is not None]
    gradients = [name for name, _, gradient in reversed(parameters) if gradient is not None and not is_finite(gradient)]
    found = [(0, f"first in the weight {name}") for name in weights[:1]]
    found += [(1, f"first in what {module} computes") for module in modules[:1]]
    found += [(2, f"first in the gradient of {name}") for name in gradients[:1]]
    return [*found, (3, "first in the loss")]


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
