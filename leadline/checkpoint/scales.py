"""Codes and scales of a matrix: the least squared error a group of columns can have.

The largest magnitude of a group need not meet the largest code: a little less range makes every other step smaller.
For int4 several ranges are tried, on both sides since there is one code more below zero than above; each gets the scale
that is best for its codes by least squares, and the one with the least error is kept. Where it is known what columns
are multiplied by, `leadline.checkpoint.compensate` weighs the errors by it.

Invariant: codes are chosen for the scale as it is stored, in float16, and depend on their own group alone.

Shapes: N rows, K columns, G groups, g columns of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leadline.ops.cpu.layout import BITS, Layout, Packed, pack, pack_codes, quantise_symmetric

BLOCK_ELEMENTS = 1 << 20
"""Elements that are searched at a time, so that what is tried stays in the cache."""

_RANGES = (-9.0, -8.5, -8.0, -7.5, -7.0, -6.5, 6.5, 7.0, 7.5, 8.0)
"""int4: the code that a group's extreme value would have, were there enough of them."""

_LARGEST_SCALE = 60000.0  # of float16
_TINY = torch.finfo(torch.float32).tiny


def quantise(matrix_NK: Tensor, layout: Layout, *, search: bool = True) -> Packed:
    """A matrix in kernel layout; `layout` may be of more rows than the matrix has."""
    if not layout.quantised:
        return pack(matrix_NK, layout.format)
    columns = matrix_NK.shape[1]
    if layout.format != "int4" or not search:
        codes_NK, scales_NG = quantise_symmetric(matrix_NK, BITS[layout.format], layout.group)
        return pack_codes(codes_NK, scales_NG, layout.format, layout.group, columns)
    wide_NK = _padded(matrix_NK.float(), layout.padded_columns)
    rows = max(1, BLOCK_ELEMENTS // layout.padded_columns)
    parts = [search_int4(block_NK, layout.group) for block_NK in wide_NK.split(rows)]
    codes, scales = (torch.cat(each) for each in zip(*parts, strict=True))
    return pack_codes(codes, scales, layout.format, layout.group, columns)


def search_int4(matrix_NK: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """(codes (N, K) uint8 in [0, 15], scales (N, G) float16, which may be negative)."""
    x_NGg: Tensor = matrix_NK.unflatten(1, (-1, group))
    scales_NG = best_scales(x_NGg, torch.ones(x_NGg.shape[1:]))
    steps_NGg = x_NGg / _nonzero(scales_NG.float())[..., None]
    codes_NK: Tensor = (steps_NGg.round().clamp(-8, 7) + 8).to(torch.uint8).flatten(1)
    return codes_NK, scales_NG


def best_scales(x_NGg: Tensor, importance_Gg: Tensor) -> Tensor:
    """(N, G) float16: each group's best for int4, errors weighed by `importance_Gg`."""
    w_Gg = importance_Gg.clamp(min=_TINY)
    extreme_NG1 = x_NGg.gather(-1, x_NGg.abs().argmax(-1, keepdim=True))
    wx_NGg = x_NGg * w_Gg
    best_NG = torch.full(extreme_NG1.shape[:-1], -1.0)
    scales_NG = torch.zeros_like(best_NG)
    for reach in _RANGES:
        q_NGg = (x_NGg * (reach / _nonzero(extreme_NG1))).round_().clamp_(-8, 7)
        xq_NG, qq_NG = (wx_NGg * q_NGg).sum(-1), (q_NGg.square() * w_Gg).sum(-1)
        gain_NG = xq_NG.square() / qq_NG.clamp(min=_TINY)  # how much of the sum of w x^2 is met
        better_NG = gain_NG > best_NG
        best_NG = torch.where(better_NG, gain_NG, best_NG)
        scales_NG = torch.where(better_NG, xq_NG / qq_NG.clamp(min=_TINY), scales_NG)
    return scales_NG.clamp(-_LARGEST_SCALE, _LARGEST_SCALE).half()


def _nonzero(x: Tensor) -> Tensor:
    return torch.where(x == 0, _TINY, x)


def _padded(matrix_NK: Tensor, columns: int) -> Tensor:
    if matrix_NK.shape[1] == columns:
        return matrix_NK
    wide = matrix_NK.new_zeros(matrix_NK.shape[0], columns)
    wide[:, : matrix_NK.shape[1]] = matrix_NK
    return wide
