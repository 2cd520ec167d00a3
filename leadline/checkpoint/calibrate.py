"""What each matrix is multiplied by, over a text: the mean square of every column of its input.

An error in a weight counts by what it is multiplied with. Layer by layer, so that one layer of the original is held.

Shapes: T tokens, D hidden, F expert width, E experts, X columns.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from leadline.checkpoint.quality import Source, Walk
from leadline.model.config import ModelConfig
from leadline.model.moe import MoE, Routing
from leadline.model.transformer import DecoderLayer
from leadline.ops.experts import swiglu

_FEW = 16
"""An expert that met fewer tokens than this is judged by what the whole layer met."""

_LINEARS = {
    "self_attn.q_proj": "q",
    "self_attn.q_a_proj": "q_a",
    "self_attn.q_b_proj": "q_b",
    "self_attn.kv_a_proj_with_mqa": "kv_a",
    "self_attn.o_proj": "o",
    "mlp.gate_proj": "gate_up",
    "mlp.down_proj": "down",
    "mlp.shared_experts.gate_proj": "shared_gate_up",
    "mlp.shared_experts.down_proj": "shared_down",
}


@torch.inference_mode()
def measure_importance(
    config: ModelConfig, source: Source, sequences: Sequence[Sequence[int]], dtype: torch.dtype
) -> dict[str, Tensor]:
    """By region, (X,) or (E, X): see `leadline.checkpoint.regions`."""
    found: dict[str, Tensor] = {}
    walk = Walk(config, source, sequences, dtype)
    for index in range(config.num_hidden_layers):
        layer = walk.load(index)
        with _watched(layer, f"layers.{index}.", found):
            walk.step(layer)
    found["head"] = _mean_square(walk.states_TD)
    return found


@contextmanager
def _watched(layer: DecoderLayer, prefix: str, found: dict[str, Tensor]) -> Iterator[None]:
    handles = []
    for name, module in layer.named_modules():
        if name in _LINEARS:
            watch = functools.partial(_watch_linear, found, prefix + _LINEARS[name])
            handles.append(module.register_forward_pre_hook(watch))
        elif isinstance(module, MoE):
            handles.append(module.register_forward_hook(functools.partial(_watch_experts, found, prefix)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watch_linear(found: dict[str, Tensor], name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    found[name] = _mean_square(inputs[0])


def _watch_experts(
    found: dict[str, Tensor], prefix: str, module: MoE, inputs: tuple[Tensor, ...], output: tuple[Any, Routing]
) -> None:
    x_TD, ids_TK = inputs[0], output[1].expert_ids_TK
    whole_D = _mean_square(x_TD)
    into, through = [], []
    for expert, gate_up_FD in enumerate(module.experts.gate_up_proj):
        rows_ND = x_TD[(ids_TK == expert).any(1)]
        rows_ND = rows_ND if len(rows_ND) >= _FEW else x_TD
        into.append(_mean_square(rows_ND) if len(rows_ND) < len(x_TD) else whole_D)
        through.append(_mean_square(swiglu(linear(rows_ND.to(gate_up_FD.dtype), gate_up_FD))))
    found[f"{prefix}experts_gate_up"], found[f"{prefix}experts_down"] = torch.stack(into), torch.stack(through)


def _mean_square(x_TX: Tensor) -> Tensor:
    return x_TX.float().square().mean(0)
