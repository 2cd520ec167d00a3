"""What each matrix is multiplied by, and what its outputs are for, over a text (`leadline.checkpoint.compensate`).

A layer's inputs are those that the layers before it, as they were quantised, make of the text. What outputs are for
comes from the original: gradients go back through it, of the log-probability of a token drawn from the model's own
distribution in every place. Their second moments are the Fisher information, so that it is the KL divergence from the
original, to second order, that rounding is done for.

Both walk layer by layer: of the original one layer is held at a time, and one vector of every token at every layer.

Shapes: T tokens, D hidden, F expert width, n tokens of an expert, X columns or outputs of a matrix.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from leadline.checkpoint.compensate import Moment, Moments
from leadline.checkpoint.quality import LOGIT_ROWS, Part, Source, Walk
from leadline.model.config import ModelConfig
from leadline.model.moe import Experts, MoE, Routing
from leadline.model.transformer import DecoderLayer
from leadline.ops.experts import swiglu, swiglu_backward

TOKENS = 32768
"""Of a text that are used."""

_FEW = 16
"""An expert that met fewer tokens than this is judged by what the whole layer met."""

_TRUST = 4
"""Correlations of X columns that were seen in T tokens count by T / (T + X / 4): few tokens show some that are not
there."""

_LINEARS = {
    "self_attn.q_proj": ("q", 0),
    "self_attn.q_a_proj": ("q_a", 0),
    "self_attn.q_b_proj": ("q_b", 0),
    "self_attn.kv_a_proj_with_mqa": ("kv_a", 0),
    "self_attn.kv_b_proj": ("v_b", 0),
    "self_attn.o_proj": ("o", 0),
    "mlp.gate_proj": ("gate_up", 0),
    "mlp.up_proj": ("gate_up", 1),
    "mlp.down_proj": ("down", 0),
    "mlp.shared_experts.gate_proj": ("shared_gate_up", 0),
    "mlp.shared_experts.up_proj": ("shared_gate_up", 1),
    "mlp.shared_experts.down_proj": ("shared_down", 0),
}
"""Region and turn. v_b has the latents themselves, not attention's means of them;
k_b, whose inputs never meet a weight here, is left to the search alone."""


class Calibration:
    """A text on its way through a model. `four_bits` are the regions whose outputs matter: 8 bits need no more than
    their inputs, and a recipe without any leaves the gradients out."""

    def __init__(
        self,
        config: ModelConfig,
        source: Source,
        sequences: Sequence[Sequence[int]],
        dtype: torch.dtype,
        four_bits: Collection[str],
    ) -> None:
        self.exact, self.changed = (Walk(config, source, sequences, dtype) for _ in range(2))
        self.four_bits = four_bits
        self._gradients = output_gradients(Walk(config, source, sequences, dtype)) if four_bits else None

    def layer(self, index: int) -> Moments:
        """Of the layer that both are before."""
        layer = self.exact.load(index).requires_grad_(False)
        meetings = _Meetings(f"layers.{index}.", self.four_bits)
        for part in self.exact.parts:
            with torch.no_grad(), _watching(layer) as seen:
                layer(self.changed.states_TD[part.rows], part.rope, part.batch)
            meetings.add_inputs(seen)
            if self._gradients is not None:
                self._add_outputs(layer, part, self._gradients[index][part.rows], meetings)
        return meetings.moments(layer)

    def _add_outputs(self, layer: DecoderLayer, part: Part, gradient_TD: Tensor, meetings: _Meetings) -> None:
        with torch.enable_grad(), _watching(layer) as seen:
            states_TD = self.exact.states_TD[part.rows].clone().requires_grad_()
            output_TD, _ = layer(states_TD, part.rope, part.batch)
        names = [name for name in seen.linears if meetings.needs_outputs(name)]
        found = torch.autograd.grad(output_TD, [seen.linears[name][1] for name in names], gradient_TD) if names else ()
        meetings.add_outputs(seen, dict(zip(names, found, strict=True)), gradient_TD)

    @torch.no_grad()
    def step(self, index: int, quantised: Source) -> None:
        """Both are after the layer, one of them as it was quantised."""
        if self._gradients is not None:
            self.exact.step(self.exact.load(index))
        self.changed.step(self.changed.load(index, quantised))

    @torch.no_grad()
    def head(self) -> Moments:
        """When both have been through every layer."""
        sums = _Sums()
        sums.add_inputs(self.changed.normed())
        return {"head": _same(sums.moment())}


@torch.no_grad()
def output_gradients(walk: Walk) -> list[Tensor]:
    """For each layer (T, D): the gradients at its output."""
    layers = range(walk.config.num_hidden_layers)
    states = []
    for index in layers:
        states.append(walk.states_TD.clone())
        walk.step(walk.load(index))
    gradient_TD = _gradient_of_top(walk)
    for index in reversed(layers):
        states[index], gradient_TD = gradient_TD, _gradient_of_layer(walk, index, states[index], gradient_TD)
    return states


def _gradient_of_top(walk: Walk) -> Tensor:
    """softmax - one-hot of a drawn token, times the head, through the norm."""
    generator = torch.Generator().manual_seed(0)
    head_VD = walk.head()
    gradients = []
    for x_RD in walk.states_TD.split(LOGIT_ROWS):
        with torch.enable_grad():
            x_RD = x_RD.clone().requires_grad_()
            normed_RD = walk.norm(x_RD)
        p_RV = (normed_RD.detach().to(walk.dtype) @ head_VD.T).float().softmax(-1)
        drawn_R1 = torch.multinomial(p_RV, 1, generator=generator)
        error_RV = p_RV.scatter_add_(1, drawn_R1, torch.full_like(p_RV[:, :1], -1.0))
        gradient_RD = (error_RV.to(walk.dtype) @ head_VD).to(normed_RD.dtype)
        gradients.append(torch.autograd.grad(normed_RD, x_RD, gradient_RD)[0])
    return torch.cat(gradients)


def _gradient_of_layer(walk: Walk, index: int, states_TD: Tensor, gradient_TD: Tensor) -> Tensor:
    layer = walk.load(index).requires_grad_(False)
    before_TD = torch.empty_like(states_TD)
    for part in walk.parts:
        with torch.enable_grad():
            x_TD = states_TD[part.rows].clone().requires_grad_()
            output_TD, _ = layer(x_TD, part.rope, part.batch)
        before_TD[part.rows] = torch.autograd.grad(output_TD, x_TD, gradient_TD[part.rows])[0]
    return before_TD


# ---- what is seen in one pass --------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Seen:
    """By module: a linear layer's (inputs, outputs), and the MoE's (inputs, routing)."""

    linears: dict[str, tuple[Tensor, Tensor]] = dataclasses.field(default_factory=dict)
    routed: tuple[Tensor, Routing] | None = None


@contextmanager
def _watching(layer: DecoderLayer) -> Iterator[_Seen]:
    seen = _Seen()

    def keep(name: str, module: nn.Module, given: tuple[Tensor, ...], output: Any) -> None:
        if isinstance(module, MoE):
            seen.routed = given[0].detach(), output[1]
        else:
            seen.linears[name] = given[0].detach(), output

    handles = [
        module.register_forward_hook(functools.partial(keep, name))
        for name, module in layer.named_modules()
        if name in _LINEARS or isinstance(module, MoE)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


# ---- summed over the text ------------------------------------------------------------------------------------------


class _Sums:
    """Of one matrix, or of two that take turns."""

    def __init__(self) -> None:
        self.tokens = 0
        self.inputs_XX: Tensor | float = 0.0
        self.outputs: dict[int, Tensor] = {}

    def add_inputs(self, x_TX: Tensor, weights_T: Tensor | None = None) -> None:
        x_TX = x_TX.float()
        weighed_TX = x_TX if weights_T is None else x_TX * weights_T[:, None]
        self.tokens += len(x_TX)
        self.inputs_XX = self.inputs_XX + x_TX.T @ weighed_TX

    def add_outputs(self, turn: int, gradient_TX: Tensor) -> None:
        gradient_TX = gradient_TX.float()
        square_XX = gradient_TX.T @ gradient_TX
        self.outputs[turn] = self.outputs[turn] + square_XX if turn in self.outputs else square_XX

    def moment(self) -> Moment:
        assert isinstance(self.inputs_XX, Tensor)
        outputs = (self.outputs.get(turn) for turn in (0, 1))
        return Moment(
            trusted(self.inputs_XX / self.tokens, self.tokens),
            tuple(None if each is None else trusted(each / self.tokens, self.tokens) for each in outputs),
        )


class _Meetings:
    """Of one layer."""

    def __init__(self, prefix: str, four_bits: Collection[str]) -> None:
        self.prefix, self.four_bits = prefix, four_bits
        self.sums: dict[str, _Sums] = {}
        self.routed: list[_Routed] = []
        self.wanted: list[_Routed] = []

    def needs_outputs(self, linear_name: str) -> bool:
        return self.prefix + _LINEARS[linear_name][0] in self.four_bits

    def add_inputs(self, seen: _Seen) -> None:
        """Of the quantised model."""
        for name, (x_TX, _) in seen.linears.items():
            kind, turn = _LINEARS[name]
            if turn == 0:
                self.sums.setdefault(self.prefix + kind, _Sums()).add_inputs(x_TX)
        if seen.routed is not None:
            self.routed.append(_Routed.of(*seen.routed))

    def add_outputs(self, seen: _Seen, gradients: Mapping[str, Tensor], gradient_TD: Tensor) -> None:
        """Of the original: at each linear layer's output, and at the whole layer's."""
        for name, gradient_TX in gradients.items():
            kind, turn = _LINEARS[name]
            self.sums[self.prefix + kind].add_outputs(turn, gradient_TX)
        if seen.routed is not None:
            self.wanted.append(_Routed.of(*seen.routed, gradient_TD))

    def moments(self, layer: DecoderLayer) -> Moments:
        found = {name: _same(sums.moment()) for name, sums in self.sums.items()}
        if self.routed:
            assert isinstance(layer.mlp, MoE)
            wanted = _Routed.join(self.wanted) if self.wanted else None
            experts = _Experts(_Routed.join(self.routed), wanted, layer.mlp.experts)
            for kind, moment in (("experts_gate_up", experts.gate_up), ("experts_down", experts.down)):
                name = self.prefix + kind
                found[name] = functools.partial(moment, outputs=name in self.four_bits)
        return found


def _same(moment: Moment) -> Callable[[int], Moment]:
    """Whatever the index: heads share their inputs."""
    return lambda index: moment


def trusted(moment_XX: Tensor, tokens: int) -> Tensor:
    """As far as so many tokens can show it."""
    shrunk_XX = moment_XX * (tokens / (tokens + len(moment_XX) / _TRUST))
    shrunk_XX.diagonal().copy_(moment_XX.diagonal())
    return shrunk_XX


# ---- routed experts ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Routed:
    """A MoE layer's inputs, the experts' gates, zero for those that were not chosen, and perhaps the gradients at its
    output."""

    x_TD: Tensor
    gates_TE: Tensor
    gradient_TD: Tensor

    @staticmethod
    def of(x_TD: Tensor, routing: Routing, gradient_TD: Tensor | None = None) -> _Routed:
        none_TE = torch.zeros_like(routing.scores_TE.detach())
        gates_TE = none_TE.scatter_(1, routing.expert_ids_TK, routing.weights_TK.detach().to(none_TE.dtype))
        return _Routed(x_TD, gates_TE, x_TD.new_zeros(len(x_TD), 0) if gradient_TD is None else gradient_TD)

    @staticmethod
    def join(parts: Sequence[_Routed]) -> _Routed:
        names = [field.name for field in dataclasses.fields(_Routed)]
        return _Routed(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def expert(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """(inputs (n, D), gates (n,), gradients (n, D)) of an expert's tokens."""
        gates_T, rows_n = _chosen(self.gates_TE, index)
        return self.x_TD[rows_n], gates_T[rows_n], self.gradient_TD[rows_n]


class _Experts:
    """Moments of one expert at a time. Its errors count by the squares of the gates; but few tokens have large ones,
    and by the gates themselves more of them have a say."""

    def __init__(self, routed: _Routed, wanted: _Routed | None, experts: Experts) -> None:
        self.routed, self.wanted = routed, wanted
        self.gate_up_EFD, self.down_EDF = experts.gate_up_proj, experts.down_proj

    @torch.no_grad()
    def gate_up(self, index: int, *, outputs: bool) -> Moment:
        sums = _Sums()
        x_nD, gates_n, _ = self.routed.expert(index)
        sums.add_inputs(x_nD, gates_n)
        if outputs:
            x_nD, gradient_nD = self._gradients(index)
            hidden_nF2 = linear(x_nD, self.gate_up_EFD[index])
            _, hidden_grad_nF2 = swiglu_backward(hidden_nF2, gradient_nD @ self.down_EDF[index])
            for turn, gradient_nF in enumerate(hidden_grad_nF2.chunk(2, dim=-1)):
                sums.add_outputs(turn, gradient_nF)
        return sums.moment()

    @torch.no_grad()
    def down(self, index: int, *, outputs: bool) -> Moment:
        sums = _Sums()
        x_nD, gates_n, _ = self.routed.expert(index)
        sums.add_inputs(swiglu(linear(x_nD, self.gate_up_EFD[index])), gates_n)
        if outputs:
            sums.add_outputs(0, self._gradients(index)[1])
        return sums.moment()

    def _gradients(self, index: int) -> tuple[Tensor, Tensor]:
        """(the original's inputs, the gradients at the expert's output), both (n, D)."""
        assert self.wanted is not None
        x_nD, gates_n, gradient_nD = self.wanted.expert(index)
        return x_nD, gradient_nD * gates_n[:, None].sqrt().to(gradient_nD.dtype)


def _chosen(gates_TE: Tensor, index: int) -> tuple[Tensor, Tensor]:
    """(gates (T,), the expert's tokens). One that met too few is taken to have met all alike."""
    gates_T = gates_TE[:, index]
    rows_n = gates_T.nonzero()[:, 0]
    if len(rows_n) < _FEW:
        return torch.ones_like(gates_T), torch.arange(len(gates_T))
    return gates_T, rows_n
