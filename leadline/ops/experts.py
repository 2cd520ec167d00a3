"""Routing and the routed experts (sections 2.2.1, 2.2.2).

Shapes: T tokens, E routed experts, K experts a token, D hidden, F expert width, N = T * K token-expert pairs in expert
order.

Invariant: affinities are a float32 softmax over all experts before any choice; gates are not renormalised unless the
config says so; pairs whose expert id is E (dropped by the trainer) compute nothing and contribute zero.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm, linear, pad, silu

from leadline.ops.dispatch import op
from leadline.ops.norm import accumulate_dtype, residual_dtype


@op
def route(
    logits_TE: Tensor, top_k: int, groups: int, keep_groups: int, normalise: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose experts: (ids_TK int64, gates_TK, affinities_TE).

    With `groups` > 1 only the `keep_groups` groups of highest single affinity are eligible (2.2.2).
    """
    scores_TE = logits_TE.softmax(-1)
    eligible_TE = scores_TE.detach() if groups == 1 else _keep_groups(scores_TE.detach(), groups, keep_groups)
    ids_TK = eligible_TE.topk(top_k, dim=-1).indices
    return ids_TK, gates(scores_TE, ids_TK, normalise, scale), scores_TE


def gates(scores_TE: Tensor, ids_TK: Tensor, normalise: bool, scale: float) -> Tensor:
    """(T, K): the gates of chosen experts. A normalised gate is not scaled: the published weights use one or the
    other."""
    gates_TK = scores_TE.gather(1, ids_TK)
    if normalise and ids_TK.shape[1] > 1:
        return gates_TK / (gates_TK.sum(-1, keepdim=True) + 1e-20)
    return gates_TK * scale


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
    return ExpertOrder(order_N, place_N.view_as(ids_TK), occurrences(flat_N, experts + 1)[:experts])


def occurrences(ids_N: Tensor, size: int) -> Tensor:
    """(size,) int64: how often each of 0..size-1 is among `ids_N`. On a GPU `bincount` would wait for the device."""
    if not ids_N.is_cuda:
        return torch.bincount(ids_N, minlength=size)
    return torch.zeros(size, dtype=torch.int64, device=ids_N.device).scatter_add_(0, ids_N, torch.ones_like(ids_N))


MANY = 1 << 14
"""Elements from which memory costs more than calls do: a slot at a time then, without the (T, K, D) between."""


@op
def sum_slots(rows_ND: Tensor, place_TK: Tensor) -> Tensor:
    """(T, D): the sum over each token's K sorted rows, in float32. What scattering back would give, by gathering."""
    rows_TKD = rows_ND[place_TK]
    return rows_TKD.to(accumulate_dtype(rows_ND)).sum(1).to(rows_ND.dtype)


@op
def gated_sum(rows_ND: Tensor, gates_TK: Tensor, place_TK: Tensor) -> Tensor:
    """(T, D): sum_k gate x row, in float32 (eq. 20)."""
    rows_TKD = rows_ND[place_TK].to(accumulate_dtype(rows_ND))
    return (rows_TKD * gates_TK[:, :, None]).sum(1).to(residual_dtype(rows_ND))


def _many_on_cpu(rows: Tensor, *_: Tensor) -> bool:
    return not rows.is_cuda and rows.numel() >= MANY


@sum_slots.kernel("slots", when=_many_on_cpu)
def _sum_slots(rows_ND: Tensor, place_TK: Tensor) -> Tensor:
    total_TD = rows_ND.new_zeros(place_TK.shape[0], rows_ND.shape[1], dtype=accumulate_dtype(rows_ND))
    for place_T in place_TK.unbind(1):
        total_TD += rows_ND.index_select(0, place_T)
    return total_TD.to(rows_ND.dtype)


@gated_sum.kernel("slots", when=_many_on_cpu)
def _gated_sum_slots(rows_ND: Tensor, gates_TK: Tensor, place_TK: Tensor) -> Tensor:
    wide = accumulate_dtype(rows_ND)
    total_TD = rows_ND.new_zeros(place_TK.shape[0], rows_ND.shape[1], dtype=wide)
    for place_T, gate_T in zip(place_TK.unbind(1), gates_TK.unbind(1), strict=True):
        total_TD.addcmul_(rows_ND.index_select(0, place_T).to(wide), gate_T[:, None])
    return total_TD.to(residual_dtype(rows_ND))


@op
def gated_sum_backward(
    grad_TD: Tensor, rows_ND: Tensor, gates_TK: Tensor, order_N: Tensor, place_TK: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of the rows and of the gates."""
    grad_ND = grad_TD.index_select(0, order_N // place_TK.shape[1]).to(accumulate_dtype(rows_ND))
    rows_grad_ND = grad_ND * gates_TK.flatten()[order_N][:, None]
    gates_grad_N = (grad_ND * rows_ND).sum(-1)
    return rows_grad_ND.to(rows_ND.dtype), gates_grad_N[place_TK].to(gates_TK.dtype)


class _Permute(torch.autograd.Function):
    """Rows to expert order; backward gathers, so that nothing is scattered atomically or serially."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, order_N: Tensor, place_TK: Tensor) -> Tensor:
        ctx.save_for_backward(place_TK)
        return x_TD.index_select(0, order_N // place_TK.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return sum_slots(grads[0], *ctx.saved_tensors), None, None


def permute(x_TD: Tensor, order: ExpertOrder) -> Tensor:
    """(N, D): the token of each pair, in expert order."""
    permuted: Tensor = _Permute.apply(x_TD, order.order_N, order.place_TK)  # type: ignore[no-untyped-call]
    return permuted


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_ND: Tensor, gates_TK: Tensor, order_N: Tensor, place_TK: Tensor) -> Tensor:
        ctx.save_for_backward(y_ND, gates_TK, order_N, place_TK)
        return gated_sum(y_ND, gates_TK, place_TK)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return *gated_sum_backward(grads[0], *ctx.saved_tensors), None, None


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
def swiglu_backward(gate_up_TF2: Tensor, grad_TF: Tensor) -> tuple[Tensor, Tensor]:
    """The activation again, and the gradient of its input: d silu(g) = s + g s (1 - s), s = sigmoid(g)."""
    gate_TF, up_TF = gate_up_TF2.to(accumulate_dtype(gate_up_TF2)).chunk(2, dim=-1)
    sigmoid_TF = gate_TF.sigmoid()
    silu_TF = gate_TF * sigmoid_TF
    gate_grad_TF = grad_TF * up_TF * (sigmoid_TF + silu_TF * (1 - sigmoid_TF))
    grad_TF2 = torch.cat((gate_grad_TF, grad_TF * silu_TF), dim=-1)
    return (silu_TF * up_TF).to(grad_TF.dtype), grad_TF2.to(grad_TF.dtype)


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
    """The experts' forward and backward without a graph node an expert, whose gradients would each be as large as the
    whole stack of weights. The gates' gradients need no more than the output, so the activation is made again, not
    kept."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, counts_E: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor) -> Tensor:
        counts = counts_E.tolist()
        hidden_NF2 = _grouped_mm(x_ND, counts, gate_up_EFD.transpose(1, 2))
        ctx.save_for_backward(x_ND, hidden_NF2, gate_up_EFD, down_EDF)
        ctx.counts = counts
        return _grouped_mm(swiglu(hidden_NF2), counts, down_EDF.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        x_ND, hidden_NF2, gate_up_EFD, down_EDF = ctx.saved_tensors
        act_grad_NF = _grouped_mm(grads[0], ctx.counts, down_EDF)
        act_NF, hidden_grad_NF2 = swiglu_backward(hidden_NF2, act_grad_NF)
        x_grad_ND = _grouped_mm(hidden_grad_NF2, ctx.counts, gate_up_EFD)
        gate_up_grad = _grouped_outer(hidden_grad_NF2, x_ND, ctx.counts)
        return x_grad_ND, None, gate_up_grad, _grouped_outer(grads[0], act_NF, ctx.counts)


WINDOW = 64
"""Rows that products in bf16 come in multiples of. For each new number of rows oneDNN compiles a kernel, 0.5 ms, three
times what an expert's product takes; and experts have other numbers of rows at every step."""


def _window(x: Tensor, count: int) -> int:
    return -(-count // WINDOW) * WINDOW if x.dtype == torch.bfloat16 else count


def _grouped_mm(rows_NX: Tensor, counts: list[int], weights_EXY: Tensor) -> Tensor:
    """Each expert's rows times its matrix; the rows of dropped pairs, at the end, give zero.

    A window's rows past its expert's own are the next expert's, which writes them after it.
    """
    out_NY = rows_NX.new_empty(rows_NX.shape[0], weights_EXY.shape[2])
    start = 0
    for expert, count in enumerate(counts):
        end = start + _window(rows_NX, count)
        if count and end <= len(rows_NX):
            torch.mm(rows_NX[start:end], weights_EXY[expert], out=out_NY[start:end])
        elif count:
            padded_CX = _padded(rows_NX[start : start + count])
            out_NY[start : start + count] = torch.mm(padded_CX, weights_EXY[expert])[:count]
        start += count
    out_NY[start:] = 0
    return out_NY


def _padded(rows_CX: Tensor) -> Tensor:
    """A whole window, zeros below."""
    return pad(rows_CX, (0, 0, 0, _window(rows_CX, len(rows_CX)) - len(rows_CX)))


def _grouped_outer(left_NX: Tensor, right_NY: Tensor, counts: list[int]) -> Tensor:
    """Each expert's left^T right, (E, X, Y); an expert without rows takes part with zeros."""
    out_EXY = left_NX.new_empty(len(counts), left_NX.shape[1], right_NY.shape[1])
    start = 0
    for expert, count in enumerate(counts):
        left_CX, right_CY = _padded(left_NX[start : start + count]), _padded(right_NY[start : start + count])
        torch.mm(left_CX.T, right_CY, out=out_EXY[expert])
        start += count
    return out_EXY


@grouped_ffn.kernel("loop", when=lambda x, counts, gate_up, down: not x.is_cuda)
def _grouped_loop(x_ND: Tensor, counts_E: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor) -> Tensor:
    y_ND: Tensor = _GroupedFFN.apply(x_ND, counts_E, gate_up_EFD, down_EDF)  # type: ignore[no-untyped-call]
    return y_ND


def _fits_grouped_mm(x: Tensor, *others: Tensor) -> bool:
    """bf16 on a GPU, with every row of every matrix, the last of which is `down`, beginning on 16 bytes."""
    return x.is_cuda and x.dtype == torch.bfloat16 and x.shape[1] % 8 == 0 and others[-1].shape[2] % 8 == 0


@grouped_ffn.kernel("grouped_mm", when=_fits_grouped_mm)
def grouped_ffn_on_gpu(x_ND: Tensor, counts_E: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor) -> Tensor:
    """Two launches for all experts, and the host never waits for the counts. Inside, the rows of dropped pairs hold
    anything: they are cut off at both ends, which cuts off their gradients too."""
    ends_E = counts_E.cumsum(0).to(torch.int32)
    kept_N1 = (torch.arange(x_ND.shape[0], device=x_ND.device) < ends_E[-1])[:, None]
    return _two_grouped_mm(x_ND.where(kept_N1, 0), ends_E, gate_up_EFD, down_EDF).where(kept_N1, 0)


def _two_grouped_mm(x_ND: Tensor, ends_E: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor) -> Tensor:
    hidden_NF2 = grouped_mm(x_ND, gate_up_EFD.transpose(1, 2), offs=ends_E)
    return grouped_mm(swiglu(hidden_NF2), down_EDF.transpose(1, 2), offs=ends_E)


@op
def routed_experts(x_TD: Tensor, ids_TK: Tensor, gates_TK: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor) -> Tensor:
    """The coarse op: sort, compute, combine. (T, D), the routed part of eq. 20."""
    order = sort_by_expert(ids_TK, gate_up_EFD.shape[0])
    y_ND = grouped_ffn(permute(x_TD, order), order.counts_E, gate_up_EFD, down_EDF)
    return combine(y_ND, gates_TK, order)


@routed_experts.kernel("grouped_mm", when=_fits_grouped_mm)
def routed_experts_on_gpu(
    x_TD: Tensor, ids_TK: Tensor, gates_TK: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor
) -> Tensor:
    """Dropped pairs go through the last expert with a gate of zero: no row has to be hidden from the products, which
    costs four passes over all of them."""
    experts = gate_up_EFD.shape[0]
    order = sort_by_expert(ids_TK.clamp(max=experts - 1), experts)
    ends_E = order.counts_E.cumsum(0).to(torch.int32)
    y_ND = _two_grouped_mm(permute(x_TD, order), ends_E, gate_up_EFD, down_EDF)
    return combine(y_ND, gates_TK.where(ids_TK < experts, 0), order)


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
    return out_D.to(residual_dtype(x_TD))[None]
