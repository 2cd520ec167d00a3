"""Codes chosen column by column, each column's rounding error made up for by the columns after it.

What a matrix W is rounded to matters by what it is multiplied with: with H the mean of x x^T over its inputs, a change
dW costs the outputs tr(dW H dW^T). When the columns up to k are rounded, the least cost has later columns move by

    - (w_k - q_k) / U_kk * U_k,k+1..      with H^-1 = U^T U, U upper triangular

(the optimal brain surgeon's step, in the order and by the Cholesky factor of GPTQ, arXiv 2210.17323). The groups and
the search for their scales are those of `leadline.checkpoint.scales`; a group's scales are chosen when its turn comes,
for its columns as they have moved.

Invariant: rows are rounded each by itself; an H without correlations gives what the plain search gives.

Shapes: N rows, K columns, g columns of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from leadline.checkpoint.scales import best_scales
from leadline.ops.cpu.layout import BITS, Layout, Packed, pack_codes

Moment = Callable[[int], Tensor]
"""(K, K) float32, the mean of x x^T for one matrix of a region, by its index. Made when it is asked for: of many
experts only one lies in memory."""

Moments = Mapping[str, Moment]
"""By region; see `leadline.checkpoint.regions`."""

DAMPING = 0.02
"""Of the mean of H's diagonal, added to it: the calibration is not all that a matrix will meet."""

_TINY = torch.finfo(torch.float32).tiny


def factor(moment_KK: Tensor, layout: Layout) -> Tensor:
    """U, (K, K) for K in whole groups. Columns that met nothing, pads too, have no ties to others."""
    spare = layout.padded_columns - layout.columns
    h_KK = pad(moment_KK.double(), (0, spare, 0, spare))
    diagonal_K = h_KK.diagonal()
    mean = diagonal_K.mean() if bool(diagonal_K.any()) else 1.0
    diagonal_K.add_(DAMPING * mean)
    inverse_KK = torch.cholesky_inverse(torch.linalg.cholesky(h_KK))
    upper_KK: Tensor = torch.linalg.cholesky(inverse_KK, upper=True)
    return upper_KK.float()


def compensated(matrix_NK: Tensor, layout: Layout, factor_KK: Tensor) -> Packed:
    """The matrix in kernel layout."""
    rest_NK = pad(matrix_NK.float(), (0, layout.padded_columns - layout.columns)).clone()
    bits, group = BITS[layout.format], layout.group
    codes, scales = [], []
    for start in range(0, layout.padded_columns, group):
        block = slice(start, start + group)
        u_gg = factor_KK[block, block]
        scale_N = _scales(rest_NK[:, block], u_gg.diagonal().square().reciprocal(), bits)
        codes_Ng, errors_Ng = _round(rest_NK[:, block], scale_N.float(), u_gg, bits)
        rest_NK[:, start + group :] -= errors_Ng @ factor_KK[block, start + group :]
        codes.append(codes_Ng)
        scales.append(scale_N)
    return pack_codes(torch.cat(codes, dim=1), torch.stack(scales, dim=1), layout.format, group, layout.columns)


def _scales(x_Ng: Tensor, importance_g: Tensor, bits: int) -> Tensor:
    """(N,) float16. An error in a column costs what later columns cannot make up for: 1 / U_kk^2."""
    if bits == 4:
        return best_scales(x_Ng[:, None], importance_g[None])[:, 0]
    scale_N: Tensor = x_Ng.abs().amax(-1) / (2 ** (bits - 1) - 1)
    return scale_N.half()


def _round(x_Ng: Tensor, scale_N: Tensor, u_gg: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(codes (N, g) uint8, errors over U_kk (N, g))."""
    zero = 1 << (bits - 1)
    least = -8 if bits == 4 else 1 - zero
    step_N = torch.where(scale_N == 0, _TINY, scale_N)
    rest_gN = x_Ng.T.contiguous()
    codes_gN, errors_gN = torch.empty_like(rest_gN, dtype=torch.uint8), torch.empty_like(rest_gN)
    for k, column_N in enumerate(rest_gN):
        q_N = (column_N / step_N).round_().clamp_(least, zero - 1)
        codes_gN[k] = (q_N + zero).to(torch.uint8)
        errors_gN[k] = (column_N - q_N * scale_N) / u_gg[k, k]
        rest_gN[k + 1 :] -= u_gg[k, k + 1 :, None] * errors_gN[k]
    return codes_gN.T, errors_gN.T
