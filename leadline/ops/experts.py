"""Routing and the routed experts (sections 2.2.1, 2.2.2).

Shapes: T tokens, E routed experts, K experts a token, D hidden, F expert width, N = T * K token-expert pairs in expert order.

Invariant: affinities are a float32 softmax over all experts before any choice; gates are not renormalised unless the
config says so; pairs whose expert id is E (dropped by the trainer) compute nothing and contribute zero.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from leadline.ops.dispatch import op
from leadline.ops.norm import accumulate_dtype


@op
def route(
    logits_TE: Tensor, top_k: int, groups: int, keep_groups: int, normalise: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose experts: (ids_TK int64, gates_TK, affinities_TE).

    With `groups` > 1 only the `keep_groups` groups of highest single affinity are eligible (2.2.2). A normalised gate is
    not scaled: the published weights use one or the other.
    """
    scores_TE = logits_TE.softmax(-1)
    eligible_TE = scores_TE.detach() if groups == 1 else _keep_groups(scores_TE.detach(), groups, keep_groups)
    ids_TK = eligible_TE.topk(top_k, dim=-1).indices
    gates_TK = scores_TE.gather(1, ids_TK)
    if normalise and top_k > 1:
        return ids_TK, gates_TK / (gates_TK.sum(-1, keepdim=True) + 1e-20), scores_TE
    return ids_TK, gates_TK * scale, scores_TE


def _keep_groups(scores_TE: Tensor, groups: int, keep: int) -> Tensor:
    best_TG = scores_TE.unflatten(-1, (groups, -1)).amax(-1)
    kept_TG = torch.zeros_like(best_TG, dtype=torch.bool).scatter_(1, best_TG.topk(keep, dim=-1).indices, True)
    return scores_TE.masked_fill(~kept_TG.repeat_interleave(scores_TE.shape[1] // groups, dim=1), 0.0)


@dataclasses.dataclass(frozen=True)
class ExpertOrder:
    """Where each token-expert pair goes when pairs are sorted by expert.

    order_N    pair (token * K + slot) at each sorted place
    place_TK   sorted place of each pair, the inverse
    counts_E   pairs of each expert; their sum is less than N when pairs were dropped
    """

    order_N: Tensor
    place_TK: Tensor
    counts_E: Tensor


def sort_by_expert(ids_TK: Tensor, experts: int) -> ExpertOrder:
    """A stable sort: within an expert, tokens keep their order; dropped pairs (id E) come last."""
    flat_N = ids_TK.flatten()
    order_N = flat_N.argsort(stable=True)
    place_N = torch.empty_like(order_N)
    place_N[order_N] = torch.arange(len(order_N), device=order_N.device)
    counts_E = torch.bincount(flat_N, minlength=experts + 1)[:experts]
    return ExpertOrder(order_N, place_N.view_as(ids_TK), counts_E)


class _Permute(torch.autograd.Function):
    """Rows to expert order. Backward sums each token's K gradients by gathering: no atomic or serial scatter."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, order_N: Tensor, place_TK: Tensor) -> Tensor:
        ctx.save_for_backward(place_TK)
        return x_TD.index_select(0, order_N // place_TK.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (place_TK,) = ctx.saved_tensors
        return grads[0].index_select(0, place_TK.flatten()).view(*place_TK.shape, -1).sum(1), None, None


def permute(x_TD: Tensor, order: ExpertOrder) -> Tensor:
    """(N, D): the token of each pair, in expert order."""
    permuted: Tensor = _Permute.apply(x_TD, order.order_N, order.place_TK)  # type: ignore[no-untyped-call]
    return permuted


class _Combine(torch.autograd.Function):
    """sum_k gate x expert output, in float32. Backward scatters by the sort's own order: again only gathers."""

    @staticmethod
    def forward(ctx: Any, y_ND: Tensor, gates_TK: Tensor, order_N: Tensor, place_TK: Tensor) -> Tensor:
        ctx.save_for_backward(y_ND, gates_TK, order_N, place_TK)
        y_TKD = y_ND.index_select(0, place_TK.flatten()).view(*place_TK.shape, -1)
        wide = accumulate_dtype(y_ND)
        return torch.einsum("tkd,tk->td", y_TKD.to(wide), gates_TK.to(wide)).to(y_ND.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        y_ND, gates_TK, order_N, place_TK = ctx.saved_tensors
        grad_ND = grads[0].index_select(0, order_N // place_TK.shape[1])
        gates_N = gates_TK.flatten()[order_N]
        wide = accumulate_dtype(y_ND)
        gates_grad_N = torch.linalg.vecdot(grad_ND.to(wide), y_ND.to(wide))
        return grad_ND * gates_N[:, None].to(grad_ND.dtype), gates_grad_N[place_TK].to(gates_TK.dtype), None, None


def combine(y_ND: Tensor, gates_TK: Tensor, order: ExpertOrder) -> Tensor:
    """(T, D): each token's gated sum over its experts (eq. 20)."""
    combined: Tensor = _Combine.apply(y_ND, gates_TK, order.order_N, order.place_TK)  # type: ignore[no-untyped-call]
    return combined


@op
def swiglu(gate_up_TF2: Tensor) -> Tensor:
    """SiLU(gate) x up from the two halves side by side."""
    gate_TF, up_TF = gate_up_TF2.chunk(2, dim=-1)
    return silu(gate_TF) * up_TF


@op
def grouped_ffn(x_ND: Tensor, counts_E: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor) -> Tensor:
    """Each expert's SwiGLU on its own rows; rows past the sum of `counts_E` give zero. gate_up is (E, 2F, D)."""
    y_ND = []
    start = 0
    for expert, count in enumerate(counts_E.tolist()):
        rows = x_ND[start : start + count]
        y_ND.append(linear(swiglu(linear(rows, gate_up_EFD[expert])), down_EDF[expert]))
        start += count
    y_ND.append(torch.zeros_like(x_ND[start:]))
    return torch.cat(y_ND)


class _GroupedFFN(torch.autograd.Function):
    """The experts' forward and backward without a graph node an expert, whose gradients would each be as large as the whole
    stack of weights. `down` is not needed to find the gates' gradients, so only the first product is kept."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, counts_E: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor) -> Tensor:
        counts = counts_E.tolist()
        hidden_NF2 = x_ND.new_empty(x_ND.shape[0], gate_up_EFD.shape[1])
        y_ND = torch.empty_like(x_ND)
        y_ND[sum(counts) :] = 0
        start = 0
        for expert, count in enumerate(counts):
            rows = slice(start, start + count)
            if count:
                torch.mm(x_ND[rows], gate_up_EFD[expert].T, out=hidden_NF2[rows])
                torch.mm(_swiglu(hidden_NF2[rows]), down_EDF[expert].T, out=y_ND[rows])
            start += count
        ctx.save_for_backward(x_ND, hidden_NF2, gate_up_EFD, down_EDF)
        ctx.counts = counts
        return y_ND

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        x_ND, hidden_NF2, gate_up_EFD, down_EDF = ctx.saved_tensors
        x_grad_ND, gate_up_grad, down_grad = map(torch.empty_like, (x_ND, gate_up_EFD, down_EDF))
        x_grad_ND[sum(ctx.counts) :] = 0
        start = 0
        for expert, count in enumerate(ctx.counts):
            rows = slice(start, start + count)
            start += count
            if not count:  # no tokens: a zero gradient, but the expert takes part
                gate_up_grad[expert], down_grad[expert] = 0, 0
                continue
            grad_nD = grads[0][rows]
            act_nF, hidden_grad_nF2 = _swiglu_backward(hidden_NF2[rows], grad_nD @ down_EDF[expert])
            torch.mm(grad_nD.T, act_nF, out=down_grad[expert])
            torch.mm(hidden_grad_nF2.T, x_ND[rows], out=gate_up_grad[expert])
            torch.mm(hidden_grad_nF2, gate_up_EFD[expert], out=x_grad_ND[rows])
        return x_grad_ND, None, gate_up_grad, down_grad


def _swiglu(hidden_nF2: Tensor) -> Tensor:
    gate_nF, up_nF = hidden_nF2.chunk(2, dim=-1)
    return silu(gate_nF).mul_(up_nF)


def _swiglu_backward(hidden_nF2: Tensor, grad_nF: Tensor) -> tuple[Tensor, Tensor]:
    """The activation again, and the gradient of its input: d silu(g) = s + g s (1 - s), s = sigmoid(g)."""
    gate_nF, up_nF = hidden_nF2.chunk(2, dim=-1)
    silu_nF = silu(gate_nF)
    gate_grad_nF = torch.ops.aten.silu_backward(grad_nF * up_nF, gate_nF)
    return silu_nF * up_nF, torch.cat((gate_grad_nF, grad_nF * silu_nF), dim=-1)


@grouped_ffn.kernel("autograd", when=lambda x, counts, gate_up, down: torch.is_grad_enabled() and not x.is_cuda)
def _grouped_autograd(x_ND: Tensor, counts_E: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor) -> Tensor:
    y_ND: Tensor = _GroupedFFN.apply(x_ND, counts_E, gate_up_EFD, down_EDF)  # type: ignore[no-untyped-call]
    return y_ND


@op
def routed_experts(x_TD: Tensor, ids_TK: Tensor, gates_TK: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor) -> Tensor:
    """The coarse op: sort, compute, combine. (T, D), the routed part of eq. 20."""
    order = sort_by_expert(ids_TK, gate_up_EFD.shape[0])
    y_ND = grouped_ffn(permute(x_TD, order), order.counts_E, gate_up_EFD, down_EDF)
    return combine(y_ND, gates_TK, order)


def _one_token(x: Tensor, ids: Tensor, gates: Tensor, gate_up: Tensor, down: Tensor) -> bool:
    return x.shape[0] == 1 and not torch.is_grad_enabled() and not x.is_cuda


@routed_experts.kernel("single", when=_one_token)
def _routed_single(x_TD: Tensor, ids_TK: Tensor, gates_TK: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor) -> Tensor:
    """Decode of one sequence: nothing to sort. Summed by slot, as the sorted form does."""
    out_D = torch.zeros(x_TD.shape[1], dtype=accumulate_dtype(x_TD))
    for expert, gate in zip(ids_TK[0].tolist(), gates_TK[0].tolist(), strict=True):
        if expert < gate_up_EFD.shape[0]:
            y_1D = linear(swiglu(linear(x_TD, gate_up_EFD[expert])), down_EDF[expert])
            out_D.add_(y_1D[0], alpha=gate)
    return out_D.to(x_TD.dtype)[None]
