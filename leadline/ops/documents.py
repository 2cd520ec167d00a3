"""Attention over many short documents on a CPU, for training: those of like length together, as plain batched GEMMs.

Shapes: T tokens of the pass, N padded places, H heads, B heads x documents of a group, L their length, Q queries of a
block, K query and key width, V value width.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from leadline.ops.norm import accumulate_dtype


def spans(starts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(start, end) of each document that has tokens."""
    return ((start, end) for start, end in itertools.pairwise(starts) if end > start)


@dataclasses.dataclass(frozen=True)
class DocumentGroups:
    """Documents of like length, padded to a common one.

    gather_N   the token at each padded place; pads read their document's last token, which the causal order keeps from
               every real query
    place_T    the padded place of each token, the inverse
    shapes     (documents, length) of each group; groups lie one after the other
    """

    gather_N: Tensor
    place_T: Tensor
    shapes: tuple[tuple[int, int], ...]


QUERY_BLOCK = 64
"""Queries of a document that are met with the keys up to their own end at a time: what lies in their future is not
computed, and their scores stay in the cache between the products and the softmax."""


def _rounded(length: int) -> int:
    """Up to whole blocks, or sixteenths of them: a product of a shape not seen before costs a compiler run of 0.5
    ms."""
    step = QUERY_BLOCK if length > QUERY_BLOCK else 16
    return -(-length // step) * step


@functools.lru_cache(maxsize=64)
def group_documents(starts: tuple[int, ...], waste: float = 1.15) -> DocumentGroups:
    """Sort by length and open a new group where padding would waste more than `waste` times the tokens."""
    by_length = sorted(spans(starts), key=lambda span: span[1] - span[0])
    groups: list[list[tuple[int, int]]] = [[]]
    for span in by_length:
        trial = [*groups[-1], span]
        if groups[-1] and len(trial) * (span[1] - span[0]) > waste * sum(b - a for a, b in trial):
            groups.append([])
        groups[-1].append(span)
    gather, place, shapes, base = [], torch.empty(starts[-1], dtype=torch.long), [], 0
    for group in groups:
        length = _rounded(group[-1][1] - group[-1][0])
        shapes.append((len(group), length))
        for a, b in group:
            gather.append(torch.arange(a, a + length).clamp(max=b - 1))
            place[a:b] = torch.arange(base, base + b - a)
            base += length
    return DocumentGroups(torch.cat(gather), place, tuple(shapes))


class _DocumentAttention(torch.autograd.Function):
    """Documents of like length at a time, as plain batched GEMMs over blocks of queries: on a CPU several times faster
    than SDPA, a call a document. The attention weights are kept: about H L^2 / 2 elements a document."""

    @staticmethod
    def forward(ctx: Any, q_THK: Tensor, k_THK: Tensor, v_THV: Tensor, groups: DocumentGroups, scale: float) -> Tensor:
        q_HNK, k_HNK, v_HNV = (_padded(x, groups.gather_N) for x in (q_THK * scale, k_THK, v_THV))
        out_HNV = torch.empty_like(v_HNV)
        weights: list[Tensor] = []
        for rows, shape in _group_rows(groups):
            q_BLK, k_BLK, v_BLV = (x[:, rows].reshape(-1, shape[1], x.shape[2]) for x in (q_HNK, k_HNK, v_HNV))
            out_BLV = torch.empty_like(v_BLV)
            for a, b in _blocks(shape[1]):
                scores_BQL = torch.bmm(q_BLK[:, a:b], k_BLK[:, :b].transpose(1, 2))
                scores_BQL[:, :, a:] += _future(b - a, scores_BQL.dtype)
                weights.append(scores_BQL.softmax(-1))
                out_BLV[:, a:b] = torch.bmm(weights[-1], v_BLV[:, :b])
            out_HNV[:, rows] = out_BLV.view(q_HNK.shape[0], -1, v_HNV.shape[2])
        ctx.save_for_backward(q_HNK, k_HNK, v_HNV, *weights)
        ctx.groups, ctx.scale = groups, scale
        return out_HNV[:, groups.place_T].transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_HNK, k_HNK, v_HNV, *weights = ctx.saved_tensors
        heads, places = q_HNK.shape[0], ctx.groups.place_T
        grad_HNV = torch.zeros_like(v_HNV)
        grad_HNV[:, places] = grads[0].transpose(0, 1)
        results = [torch.empty_like(x) for x in (q_HNK, k_HNK, v_HNV)]
        kept = iter(weights)
        for rows, shape in _group_rows(ctx.groups):
            q, k, v, grad_out = (x[:, rows].reshape(-1, shape[1], x.shape[2]) for x in (q_HNK, k_HNK, v_HNV, grad_HNV))
            blocks = [(a, b, next(kept)) for a, b in _blocks(shape[1])]
            for result, grad in zip(results, _block_gradients(q, k, v, grad_out, blocks), strict=True):
                result[:, rows] = grad.view(heads, -1, grad.shape[2])
        q_grad, k_grad, v_grad = (grad[:, places].transpose(0, 1) for grad in results)
        return q_grad * ctx.scale, k_grad, v_grad, None, None


def _block_gradients(
    q_BLK: Tensor, k_BLK: Tensor, v_BLV: Tensor, grad_BLV: Tensor, blocks: list[tuple[int, int, Tensor]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the scaled queries, the keys and the values. Those of the keys and values are sums over blocks, in float32."""
    wide = accumulate_dtype(q_BLK)
    q_grad = torch.empty_like(q_BLK)
    k_grad, v_grad = (torch.zeros_like(x, dtype=wide) for x in (k_BLK, v_BLV))
    for a, b, weights_BQL in blocks:
        out_grad = grad_BLV[:, a:b]
        weights_grad = torch.bmm(out_grad, v_BLV[:, :b].transpose(1, 2))
        scores_grad = torch._softmax_backward_data(weights_grad, weights_BQL, -1, weights_BQL.dtype)
        torch.bmm(scores_grad, k_BLK[:, :b], out=q_grad[:, a:b])
        k_grad[:, :b] += torch.bmm(scores_grad.transpose(1, 2), q_BLK[:, a:b])
        v_grad[:, :b] += torch.bmm(weights_BQL.transpose(1, 2), out_grad)
    return q_grad, k_grad.to(q_BLK.dtype), v_grad.to(v_BLV.dtype)


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(a, min(a + QUERY_BLOCK, length)) for a in range(0, length, QUERY_BLOCK)]


@functools.lru_cache(maxsize=64)
def _future(size: int, dtype: torch.dtype) -> Tensor:
    """(Q, Q): what hides a block's own later tokens from its queries."""
    return torch.full((size, size), float("-inf"), dtype=dtype).triu(1)


def _padded(x_THX: Tensor, gather_N: Tensor) -> Tensor:
    """(H, N, X), the groups' layout."""
    return x_THX[gather_N].transpose(0, 1).contiguous()


def _group_rows(groups: DocumentGroups) -> Iterator[tuple[slice, tuple[int, int]]]:
    start = 0
    for documents, length in groups.shapes:
        yield slice(start, start + documents * length), (documents, length)
        start += documents * length


def document_attention(q_THK: Tensor, k_THK: Tensor, v_THV: Tensor, starts: Sequence[int], scale: float) -> Tensor:
    """Causal attention within each document, (T, H, V), differentiable; every query has a head of keys of its own."""
    groups = group_documents(tuple(starts))
    out_THV: Tensor = _DocumentAttention.apply(q_THK, k_THK, v_THV, groups, scale)  # type: ignore[no-untyped-call]
    return out_THV
