"""Attention: expanded, within one pass; over pages, absorbed (MLA) or grouped (MHA, GQA, MQA).

Shapes: T tokens of this pass, S sequences, H heads, G key heads, K query and key width, V value width, C latent width,
R row of the cache, L context length. `starts` are the S + 1 offsets of the sequences in the pass, on the host.

Invariant: a query at position p of its sequence sees the keys 0..p of that sequence and nothing else; softmax is
float32.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from leadline.ops.dispatch import op
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
    spans = sorted(_spans(starts), key=lambda span: span[1] - span[0])
    groups: list[list[tuple[int, int]]] = [[]]
    for span in spans:
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
        for a, b in _spans(starts)
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
    longest = max(end - start for start, end in _spans(starts))
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
    return trains and max(b - a for a, b in _spans(starts)) <= DOCUMENT_LIMIT


@expanded_attention.kernel("documents", when=_short_documents)
def _expanded_documents(q_THK: Tensor, k_THK: Tensor, v_THV: Tensor, starts: Sequence[int], scale: float) -> Tensor:
    groups = group_documents(tuple(starts))
    out_THV: Tensor = _DocumentAttention.apply(q_THK, k_THK, v_THV, groups, scale)  # type: ignore[no-untyped-call]
    return out_THV


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
