"""Attention: expanded, within one pass; over pages, absorbed (MLA) or grouped (MHA, GQA, MQA).

Shapes: T tokens of this pass, S sequences, H heads, G key heads, K query and key width, V value width, C latent width,
R row of the cache, L context length. `starts` are the S + 1 offsets of the sequences in the pass, on the host.

Invariant: a query at position p of its sequence sees the keys 0..p of that sequence and nothing else; softmax is
float32.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from leadline.ops.dispatch import op
from leadline.ops.documents import document_attention, spans
from leadline.ops.latent import PackedLatents
from leadline.ops.norm import accumulate_dtype
from leadline.ops.transfer import to_device

SCORES_LIMIT = 1 << 24
"""Scores of one block of queries, in elements: bounds the scratch memory of a long prefill."""

Rows = Tensor | PackedLatents
"""Pages of one layer: rows as they are, or in fewer bits."""

BLOCK_ROWS = 1024
"""Heads x queries of one block: its scores stay in the cache, and what lies in its future is not computed."""


@op
def expanded_attention(q_THK: Tensor, k_TGK: Tensor, v_TGV: Tensor, starts: Sequence[int], scale: float) -> Tensor:
    """Causal attention within each document of the pass, (T, H, V)."""
    groups = q_THK.shape[1] // k_TGK.shape[1]
    outputs = []
    for start, end in spans(starts):
        wide = accumulate_dtype(q_THK)
        q_HLK = q_THK[start:end].to(wide).transpose(0, 1)
        k_HLK = k_TGK[start:end].to(wide).repeat_interleave(groups, dim=1).transpose(0, 1)
        v_HLV = v_TGV[start:end].to(wide).repeat_interleave(groups, dim=1).transpose(0, 1)
        scores_HLL = q_HLK @ k_HLK.transpose(1, 2) * scale
        future_LL = torch.ones(end - start, end - start, dtype=torch.bool, device=q_THK.device).triu(1)
        weights_HLL = scores_HLL.masked_fill(future_LL, float("-inf")).softmax(-1)
        outputs.append((weights_HLL @ v_HLV).transpose(0, 1).to(q_THK.dtype))
    return torch.cat(outputs) if outputs else v_TGV.new_zeros(0, q_THK.shape[1], v_TGV.shape[2])


@expanded_attention.kernel("sdpa", when=lambda q, k, v, starts, scale: q.dtype != torch.float64 and starts[-1] > 0)
def _expanded_sdpa(q_THK: Tensor, k_TGK: Tensor, v_TGV: Tensor, starts: Sequence[int], scale: float) -> Tensor:
    """SDPA a document. Its fast path wants equal widths: values are padded with zeros and cut again, which is exact."""
    value_width, v_TGV = v_TGV.shape[2], _as_wide(v_TGV, q_THK.shape[2])
    grouped = q_THK.shape[1] != k_TGK.shape[1]
    q_1HTK, k_1GTK, v_1GTV = (x.transpose(0, 1).unsqueeze(0) for x in (q_THK, k_TGK, v_TGV))
    outputs = [
        scaled_dot_product_attention(
            q_1HTK[:, :, a:b], k_1GTK[:, :, a:b], v_1GTV[:, :, a:b], is_causal=True, scale=scale, enable_gqa=grouped
        )
        for a, b in spans(starts)
    ]
    return torch.cat(outputs, dim=2)[0, ..., :value_width].transpose(0, 1)


def _as_wide(v_TGV: Tensor, width: int) -> Tensor:
    """Values padded with zeros to the keys' width, where they are narrower."""
    missing = width - v_TGV.shape[2]
    return pad(v_TGV, (0, missing)) if missing > 0 else v_TGV


MAX_FLASH_WIDTH = 256


def _fits_flash(q: Tensor, k: Tensor, v: Tensor, starts: Sequence[int], scale: float) -> bool:
    """Half precision on a GPU, a head of its own for every query, widths that its kernels have."""
    half = q.is_cuda and q.dtype in (torch.bfloat16, torch.float16) and q.shape[1] == k.shape[1]
    return half and starts[-1] > 0 and q.shape[2] % 8 == 0 and v.shape[2] <= q.shape[2] <= MAX_FLASH_WIDTH


@expanded_attention.kernel("flash", when=_fits_flash)
def _expanded_flash(q_THK: Tensor, k_THK: Tensor, v_THV: Tensor, starts: Sequence[int], scale: float) -> Tensor:
    """All documents in one launch of FlashAttention over flat tokens."""
    from torch.nn.attention.varlen import varlen_attn  # brings the whole of torch._dynamo: 1.4 s of a start

    offsets_S = _offsets(tuple(starts), q_THK.device)
    longest = max(end - start for start, end in spans(starts))
    sizes = (offsets_S, offsets_S, longest, longest)
    out_THK = varlen_attn(q_THK, k_THK, _as_wide(v_THV, q_THK.shape[2]), *sizes, scale=scale, window_size=(-1, 0))
    assert isinstance(out_THK, Tensor)
    return out_THK[..., : v_THV.shape[2]]


@functools.lru_cache(maxsize=8)
def _offsets(starts: tuple[int, ...], device: torch.device) -> Tensor:
    """`starts` where the kernels of every layer read them: copied once a pass."""
    return to_device(torch.tensor(starts, dtype=torch.int32), device)


DOCUMENT_LIMIT = 1024
"""Beyond this length the kept weights outgrow what the plain GEMMs save, and SDPA takes over."""


def _short_documents(q: Tensor, k: Tensor, v: Tensor, starts: Sequence[int], scale: float) -> bool:
    trains = torch.is_grad_enabled() and not q.is_cuda and q.shape[1] == k.shape[1] and starts[-1] > 0
    return trains and max(b - a for a, b in spans(starts)) <= DOCUMENT_LIMIT


expanded_attention.kernel("documents", when=_short_documents)(document_attention)


@op
def absorbed_attention(
    q_THR: Tensor,
    rows_PBR: Rows,
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
    return torch.cat(outputs) if outputs else q_THR.new_zeros(0, q_THR.shape[1], value_width)


def gather_rows(rows_PBR: Rows, pages_P: Tensor, length: int) -> Tensor:
    """The first `length` rows of a sequence in order."""
    return gather_pages(rows_PBR, pages_P, length)[:length]


def gather_pages(rows_PBR: Rows, pages_P: Tensor, length: int) -> Tensor:
    """The pages that hold the first `length` rows, laid end to end; a view where they happen to lie side by side."""
    needed = -(-length // _page_size(rows_PBR))
    if isinstance(rows_PBR, PackedLatents):
        return rows_PBR.gather(pages_P[:needed])
    pages = pages_P[:needed].tolist()
    first = pages[0] if pages else 0
    if pages == list(range(first, first + needed)):
        return rows_PBR[first : first + needed].flatten(0, 1)
    return rows_PBR[pages_P[:needed]].flatten(0, 1)


def _page_size(rows_PBR: Rows) -> int:
    return rows_PBR.page_size if isinstance(rows_PBR, PackedLatents) else rows_PBR.shape[1]


def _causal(scores_THL: Tensor, context: int) -> Tensor:
    """Hide the future, and what lies past it in the last page, from the last T of `context` positions."""
    tokens, keys = scores_THL.shape[0], scores_THL.shape[2]
    if tokens == 1 and keys == context:
        return scores_THL
    key_L = torch.arange(keys, device=scores_THL.device)
    query_T = torch.arange(context - tokens, context, device=scores_THL.device)
    return scores_THL.masked_fill((key_L > query_T[:, None])[:, None, :], float("-inf"))


def _in_half(q: Tensor, rows: Rows, *_: object) -> bool:
    packed = isinstance(rows, PackedLatents)
    return (packed or q.dtype == rows.dtype) and q.dtype in (torch.bfloat16, torch.float16, torch.float32)


@absorbed_attention.kernel("matmul", when=_in_half)
def _absorbed_matmul(
    q_THR: Tensor,
    rows_PBR: Rows,
    page_tables_SP: Tensor,
    context_lens: Sequence[int],
    starts: Sequence[int],
    value_width: int,
    scale: float,
) -> Tensor:
    """Both products as GEMMs over heads x queries in the cache's own type, in blocks of queries; softmax in float32.

    Over whole pages: a length of its own for every token would have oneDNN compile two kernels of its own for it, 1.6
    ms. The rows past the context get no weight; `PagedCache` keeps them finite.
    """
    heads, page_size = q_THR.shape[1], _page_size(rows_PBR)
    out_THC = q_THR.new_empty(q_THR.shape[0], heads, value_width)
    for s, (start, end) in enumerate(itertools.pairwise(starts)):
        rows_LR = gather_pages(rows_PBR, page_tables_SP[s], context_lens[s]).to(q_THR.dtype)
        block = max(1, min(BLOCK_ROWS, SCORES_LIMIT // max(1, context_lens[s])) // heads)
        for a in range(start, end, block):
            b = min(a + block, end)
            seen = context_lens[s] - (end - b)
            keys_LR = rows_LR[: -(-seen // page_size) * page_size]
            scores_NL = (q_THR[a:b].flatten(0, 1) @ keys_LR.T).float().mul_(scale)
            scores_THL = _causal(scores_NL.view(b - a, heads, -1), seen)
            weights_NL = scores_THL.softmax(-1).to(q_THR.dtype).flatten(0, 1)
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
    return torch.cat(outputs) if outputs else torch.zeros_like(q_THK)
