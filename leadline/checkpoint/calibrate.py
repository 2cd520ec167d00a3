"""What each matrix is multiplied by, over a text: the mean of x x^T over its inputs.

The text goes through the model layer by layer: a layer's inputs come from the layers before it as they were quantised,
so that it makes up for their errors as far as it can; of the original one layer is held.

Shapes: T tokens, D hidden, F expert width, X columns of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from leadline.checkpoint.compensate import Moment, Moments
from leadline.checkpoint.quality import Walk
from leadline.model.moe import MoE, Routing
from leadline.model.transformer import DecoderLayer
from leadline.ops.experts import swiglu

TOKENS = 16384
"""Of a text that are used."""

_FEW = 16
"""An expert that met fewer tokens than this is judged by what the whole layer met."""

_TRUST = 4
"""Correlations of X columns that were seen in T tokens count by T / (T + X / 4): few tokens show some that are not
there."""

_LINEARS = {
    "self_attn.q_proj": "q",
    "self_attn.q_a_proj": "q_a",
    "self_attn.q_b_proj": "q_b",
    "self_attn.kv_a_proj_with_mqa": "kv_a",
    "self_attn.kv_b_proj": "v_b",
    "self_attn.o_proj": "o",
    "mlp.gate_proj": "gate_up",
    "mlp.down_proj": "down",
    "mlp.shared_experts.gate_proj": "shared_gate_up",
    "mlp.shared_experts.down_proj": "shared_down",
}
"""v_b has the latents themselves, not attention's means of them; k_b, whose inputs never meet a weight here, is left
to the search alone."""


@torch.inference_mode()
def layer_moments(walk: Walk, index: int) -> Moments:
    """Of the walk's next layer. The walk does not move."""
    layer = walk.load(index)
    inputs: dict[str, Tensor] = {}
    routed: list[tuple[Tensor, Tensor]] = []
    handles = []
    for name, module in layer.named_modules():
        if name in _LINEARS:
            handles.append(module.register_forward_pre_hook(_keep_input(inputs, f"layers.{index}.{_LINEARS[name]}")))
        elif isinstance(module, MoE):
            handles.append(module.register_forward_hook(_keep_routing(routed)))
    layer(walk.states_TD, walk.rope, walk.batch)
    for handle in handles:
        handle.remove()
    found = {name: _same(x_TX) for name, x_TX in inputs.items()}
    for x_TD, ids_TK in routed:
        found |= _of_experts(f"layers.{index}.", layer, x_TD, ids_TK)
    return found


@torch.inference_mode()
def head_moments(walk: Walk) -> Moments:
    """Of the head, when the walk has been through every layer."""
    return {"head": _same(walk.normed())}


def _keep_input(inputs: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        inputs[name] = given[0]

    return hook


def _keep_routing(routed: list[tuple[Tensor, Tensor]]) -> Callable[..., None]:
    def hook(module: nn.Module, given: tuple[Tensor, ...], output: tuple[Tensor, Routing]) -> None:
        routed.append((given[0], output[1].expert_ids_TK))

    return hook


def _same(x_TX: Tensor) -> Moment:
    """Whatever the index: heads share their inputs."""
    return lambda index: second_moment(x_TX)


def _of_experts(prefix: str, layer: DecoderLayer, x_TD: Tensor, ids_TK: Tensor) -> dict[str, Moment]:
    assert isinstance(layer.mlp, MoE)
    gate_up_EFD = layer.mlp.experts.gate_up_proj.detach()

    def rows(index: int) -> Tensor:
        mine_ND = x_TD[(ids_TK == index).any(1)]
        return (mine_ND if len(mine_ND) >= _FEW else x_TD).to(gate_up_EFD.dtype)

    return {
        f"{prefix}experts_gate_up": lambda index: second_moment(rows(index)),
        f"{prefix}experts_down": lambda index: second_moment(swiglu(linear(rows(index), gate_up_EFD[index]))),
    }


def second_moment(x_TX: Tensor) -> Tensor:
    """(X, X) float32."""
    x_TX = x_TX.float()
    tokens, columns = x_TX.shape
    moment_XX = x_TX.T @ x_TX / tokens
    mean_squares_X = moment_XX.diagonal().clone()
    moment_XX *= tokens / (tokens + columns / _TRUST)
    moment_XX.diagonal().copy_(mean_squares_X)
    return moment_XX
