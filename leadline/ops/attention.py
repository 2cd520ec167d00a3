"""Attention: expanded, within one pass; over pages, absorbed (MLA) or grouped (MHA, GQA, MQA).

Shapes: T tokens of this pass, S sequences, H heads, G key heads, K query and key width, V value width, C latent width,
R row of the cache, L context length. `starts` are the S + 1 offsets of the sequences in the pass, on the host.

Invariant: a query at position p of its sequence sees the keys 0..p of that sequence and nothing else; softmax is
float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from leadline.ops.dispatch import op
from leadline.ops.norm import accumulate_dtype

SCORES_LIMIT = 1 << 24
"""Scores of one block of queries, in elements: bounds the scratch memory of a long prefill."""


@op
def expanded_attention(q_THK: Tensor, k_TGK: Tensor, v_TGV: Tensor, starts: Sequence[int], scale: float) -> Tensor:
    """Causal attention within each document of the pass, (T, H, V)."""
    groups = q_THK.shape[1] // k_TGK.shape[1]
    outputs = []
    for start, end in _spans(starts):
        wide = accumulate_dtype(q_THK)
        q_HLK = q_THK[start:end].to(wide).transpose(0, 1)
        k_HLK = k_TGK[start:end].to(wide).repeat_interleave(groups, dim=1).transpose(0, 1)
        v_HLV = v_TGV[start:end].to(wide).repeat_interleave(groups, dim=1).transpose(0, 1)
        scores_HLL = q_HLK @ k_HLK.transpose(1, 2) * scale
        future_LL = torch.ones(end - start, end - start, dtype=torch.bool, device=q_THK.device).triu(1)
        weights_HLL = scores_HLL.masked_fill(future_LL, float("-inf")).softmax(-1)
        outputs.append((weights_HLL @ v_HLV).transpose(0, 1).to(q_THK.dtype))
    return torch.cat(outputs) if outputs else v_TGV.new_zeros(0, q_THK.shape[1], v_TGV.shape[2])


def _spans(starts: Sequence[int]) -> Iterator[tuple[int, int]]:
    return ((start, end) for start, end in itertools.pairwise(starts) if end > start)


@op
def causal_softmax(scores_HLL: Tensor, scale: float) -> Tensor:
    """softmax(scale x scores) over the past, in float32, returned in the scores' dtype."""
    place_L = torch.arange(scores_HLL.shape[-1], device=scores_HLL.device)
    wide_HLL = scores_HLL.to(accumulate_dtype(scores_HLL)) * scale
    return wide_HLL.where(place_L[:, None] >= place_L, float("-inf")).softmax(-1).to(scores_HLL.dtype)


@op
def causal_softmax_backward(grad_HLL: Tensor, weights_HLL: Tensor, scale: float) -> Tensor:
    """The gradient of the scores: scale x p (dp - sum p dp)."""
    wide = accumulate_dtype(grad_HLL)
    grad_HLL, p_HLL = grad_HLL.to(wide), weights_HLL.to(wide)
    return ((grad_HLL - (grad_HLL * p_HLL).sum(-1, keepdim=True)) * p_HLL * scale).to(weights_HLL.dtype)


class _DocumentAttention(torch.autograd.Function):
    """A document at a time as three plain GEMMs: on a CPU several times faster backward than SDPA's, whose documents
    are short in training. The weights are kept: L^2 H elements a document."""

    @staticmethod
    def forward(ctx: Any, q_THK: Tensor, k_THK: Tensor, v_THV: Tensor, starts: Sequence[int], scale: float) -> Tensor:
        q_HTK, k_HTK, v_HTV = (x.transpose(0, 1).contiguous() for x in (q_THK, k_THK, v_THV))
        out_HTV = torch.empty_like(v_HTV)
        weights = []
        for a, b in _spans(starts):
            weights.append(causal_softmax(torch.bmm(q_HTK[:, a:b], k_HTK[:, a:b].transpose(1, 2)), scale))
            torch.bmm(weights[-1], v_HTV[:, a:b], out=out_HTV[:, a:b])
        ctx.save_for_backward(q_HTK, k_HTK, v_HTV, *weights)
        ctx.starts, ctx.scale = starts, scale
        return out_HTV.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_HTK, k_HTK, v_HTV, *weights = ctx.saved_tensors
        grad_HTV = grads[0].transpose(0, 1).contiguous()
        q_grad, k_grad, v_grad = map(torch.empty_like, (q_HTK, k_HTK, v_HTV))
        for (a, b), p_HLL in zip(_spans(ctx.starts), weights, strict=True):
            torch.bmm(p_HLL.transpose(1, 2), grad_HTV[:, a:b], out=v_grad[:, a:b])
            p_grad = torch.bmm(grad_HTV[:, a:b], v_HTV[:, a:b].transpose(1, 2))
            scores_grad = causal_softmax_backward(p_grad, p_HLL, ctx.scale)
            torch.bmm(scores_grad, k_HTK[:, a:b], out=q_grad[:, a:b])
            torch.bmm(scores_grad.transpose(1, 2), q_HTK[:, a:b], out=k_grad[:, a:b])
        return q_grad.transpose(0, 1), k_grad.transpose(0, 1), v_grad.transpose(0, 1), None, None


@expanded_attention.kernel("sdpa", when=lambda q, k, v, starts, scale: q.dtype != torch.float64 and starts[-1] > 0)
def _expanded_sdpa(q_THK: Tensor, k_TGK: Tensor, v_TGV: Tensor, starts: Sequence[int], scale: float) -> Tensor:
    """SDPA a document. Its fast path wants equal widths: values are padded with zeros and cut again, which is exact."""
    value_width, missing = v_TGV.shape[2], q_THK.shape[2] - v_TGV.shape[2]
    if missing > 0:
        v_TGV = pad(v_TGV, (0, missing))
    grouped = q_THK.shape[1] != k_TGK.shape[1]
    q_1HTK, k_1GTK, v_1GTV = (x.transpose(0, 1).unsqueeze(0) for x in (q_THK, k_TGK, v_TGV))
    outputs = [
        scaled_dot_product_attention(
            q_1HTK[:, :, a:b], k_1GTK[:, :, a:b], v_1GTV[:, :, a:b], is_causal=True, scale=scale, enable_gqa=grouped
        )
        for a, b in _spans(starts)
    ]
    return torch.cat(outputs, dim=2)[0, ..., :value_width].transpose(0, 1)


DOCUMENT_LIMIT = 1024
"""Beyond this length the kept weights outgrow what the plain GEMMs save, and SDPA takes over."""


def _short_documents(q: Tensor, k: Tensor, v: Tensor, starts: Sequence[int], scale: float) -> bool:
    trains = torch.is_grad_enabled() and not q.is_cuda and q.shape[1] == k.shape[1] and starts[-1] > 0
    return trains and max(b - a for a, b in _spans(starts)) <= DOCUMENT_LIMIT


@expanded_attention.kernel("documents", when=_short_documents)
def _expanded_documents(q_THK: Tensor, k_THK: Tensor, v_THV: Tensor, starts: Sequence[int], scale: float) -> Tensor:
    out_THV: Tensor = _DocumentAttention.apply(q_THK, k_THK, v_THV, starts, scale)  # type: ignore[no-untyped-call]
    return out_THV


@op
def absorbed_attention(
    q_THR: Tensor,
    rows_PBR: Tensor,
    page_tables_SP: Tensor,
    context_lens: Sequence[int],
    starts: Sequence[int],
    value_width: int,
    scale: float,
) -> Tensor:
    """Attention of absorbed queries against cached latents: keys are whole rows, values their first `value_width`
    columns.

    Returns (T, H, value_width). Every head reads the same rows: multi-query attention over 576 wide keys in V2
    (appendix C).
    """
    outputs = []
    for s, (start, end) in enumerate(itertools.pairwise(starts)):
        wide = accumulate_dtype(q_THR)
        rows_LR = gather_rows(rows_PBR, page_tables_SP[s], context_lens[s]).to(wide)
        scores_THL = q_THR[start:end].to(wide) @ rows_LR.T * scale
        weights_THL = _causal(scores_THL, context_lens[s]).softmax(-1)
        outputs.append((weights_THL @ rows_LR[:, :value_width]).to(q_THR.dtype))
    return torch.cat(outputs)


def gather_rows(rows_PBR: Tensor, pages_P: Tensor, length: int) -> Tensor:
    """The first `length` rows of a sequence in order; a view where its pages happen to lie side by side."""
    page_size = rows_PBR.shape[1]
    needed = -(-length // page_size)
    pages = pages_P[:needed].tolist()
    if pages == list(range(pages[0], pages[0] + needed)):
        return rows_PBR[pages[0] : pages[0] + needed].flatten(0, 1)[:length]
    return rows_PBR[pages_P[:needed]].flatten(0, 1)[:length]


def _causal(scores_THL: Tensor, context: int) -> Tensor:
    """Hide the future from the last T of `context` positions."""
    tokens = scores_THL.shape[0]
    if tokens == 1:
        return scores_THL
    key_L = torch.arange(context, device=scores_THL.device)
    query_T = torch.arange(context - tokens, context, device=scores_THL.device)
    return scores_THL.masked_fill((key_L > query_T[:, None])[:, None, :], float("-inf"))


def _in_half(q: Tensor, rows: Tensor, *_: object) -> bool:
    return q.dtype == rows.dtype and q.dtype in (torch.bfloat16, torch.float16, torch.float32)


@absorbed_attention.kernel("matmul", when=_in_half)
def _absorbed_matmul(
    q_THR: Tensor,
    rows_PBR: Tensor,
    page_tables_SP: Tensor,
    context_lens: Sequence[int],
    starts: Sequence[int],
    value_width: int,
    scale: float,
) -> Tensor:
    """Both products as GEMMs over heads x queries in the cache's own type, in blocks of queries; softmax in float32."""
    heads = q_THR.shape[1]
    out_THC = q_THR.new_empty(q_THR.shape[0], heads, value_width)
    for s, (start, end) in enumerate(itertools.pairwise(starts)):
        rows_LR = gather_rows(rows_PBR, page_tables_SP[s], context_lens[s])
        block = max(1, SCORES_LIMIT // (heads * context_lens[s]))
        for a in range(start, end, block):
            b = min(a + block, end)
            seen = context_lens[s] - (end - b)
            keys_LR = rows_LR[:seen]
            scores_NL = (q_THR[a:b].flatten(0, 1) @ keys_LR.T).float().mul_(scale)
            weights_NL = _causal(scores_NL.view(b - a, heads, seen), seen).softmax(-1).to(q_THR.dtype).flatten(0, 1)
            out_THC[a:b] = (weights_NL @ keys_LR[:, :value_width]).view(b - a, heads, value_width)
    return out_THC


@op
def paged_attention(
    q_THK: Tensor,
    rows_PBR: Tensor,
    page_tables_SP: Tensor,
    context_lens: Sequence[int],
    starts: Sequence[int],
    scale: float,
) -> Tensor:
    """Attention over cached keys and values of G heads: a row is (k ; v), 2 G K wide. Returns (T, H, K)."""
    heads, width = q_THK.shape[1:]
    outputs = []
    for s, (start, end) in enumerate(itertools.pairwise(starts)):
        wide = accumulate_dtype(q_THK)
        rows_LR = gather_rows(rows_PBR, page_tables_SP[s], context_lens[s]).to(wide)
        k_LGK, v_LGK = rows_LR.unflatten(-1, (2, -1, width)).unbind(1)
        groups = heads // k_LGK.shape[1]
        k_HLK, v_HLK = (x.repeat_interleave(groups, dim=1).transpose(0, 1) for x in (k_LGK, v_LGK))
        scores_THL = (q_THK[start:end].to(wide).transpose(0, 1) @ k_HLK.transpose(1, 2) * scale).transpose(0, 1)
        weights_HTL = _causal(scores_THL, context_lens[s]).softmax(-1).transpose(0, 1)
        outputs.append((weights_HTL @ v_HLK).transpose(0, 1).to(q_THK.dtype))
    return torch.cat(outputs)
