"""Codes chosen one after the other, each rounding error made up for by what is rounded after it.

What a matrix W of N outputs and K inputs is rounded to matters by what it is multiplied with and by what its outputs
are for. With H (K, K) the mean of x x^T over its inputs and G (N, N) the mean of g g^T over the loss's gradients at its
outputs, a change dW costs about tr(G dW H dW^T). When the columns up to k of a row are rounded, the least cost has
later columns move by

    - (w_k - q_k) / U_kk * U_k,k+1..      with H^-1 = U^T U, U upper triangular

(the optimal brain surgeon's step, in the order and by the Cholesky factor of GPTQ, arXiv 2210.17323), and when a block
of rows is rounded later rows move likewise by G's factor (both sides as in YAQA, arXiv 2505.22988). The groups and the
search for their scales are those of `leadline.checkpoint.scales`, the matrix as it was.

Invariant: without G rows are rounded each by itself; an H without correlations gives what the plain search gives.

Shapes: N rows, K columns, g columns of a group, B rows of a block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from leadline.checkpoint.scales import best_scales
from leadline.ops.cpu.layout import BITS, Layout, Packed, pack_codes

DAMPING = 0.02
"""Of the mean of H's diagonal, added to it: the calibration is not all that a matrix will meet."""

ROW_DAMPING = 0.2
"""The same of G, which is known less well."""

ROW_BLOCKS = 16
"""Blocks of rows of a matrix; within one no row makes up for another. More blocks take as much more time."""

BLOCK_COLUMNS = 64
"""Columns after which all later ones move at once."""

_TINY = torch.finfo(torch.float32).tiny


@dataclasses.dataclass(frozen=True)
class Moment:
    """Means over a text, for one matrix.

    inputs_KK      x x^T of what it is multiplied with: H
    outputs_NN     g g^T, g the gradients at its outputs: G; one for each of two matrices that take turns. None: rows
                   are rounded each by itself
    """

    inputs_KK: Tensor
    outputs_NN: tuple[Tensor | None, ...] = (None, None)


Moments = Mapping[str, Callable[[int], Moment]]
"""By region (`leadline.checkpoint.regions`), of its matrix of an index. Made when it is asked for: of many experts only
one lies in memory."""


@dataclasses.dataclass(frozen=True)
class Ties:
    """A moment as rounding needs it. Columns are rounded in `order_K`, those first that meet most; `columns_KK` is the
    factor of H^-1 in this order, `importance_K`, in the matrix's own, what an error costs that later columns cannot
    make up for; `rows` has each G's order and factor."""

    order_K: Tensor
    columns_KK: Tensor
    importance_K: Tensor
    rows: tuple[tuple[Tensor, Tensor] | None, ...] = (None, None)


def ties(moment: Moment, layout: Layout) -> Ties:
    """K in whole groups. Columns that met nothing, pads too, have no ties to others."""
    spare = layout.padded_columns - layout.columns
    h_KK = damped(pad(moment.inputs_KK, (0, spare, 0, spare)), DAMPING)
    rows = tuple(None if g_NN is None else ordered(damped(g_NN, ROW_DAMPING)) for g_NN in moment.outputs_NN)
    importance_K = factor(h_KK).diagonal().square().reciprocal()
    return Ties(*ordered(h_KK), importance_K, rows)


def ordered(moment_XX: Tensor) -> tuple[Tensor, Tensor]:
    """(order_X, the factor in this order): what counts most is rounded first, while most can make up for it."""
    order_X = moment_XX.diagonal().argsort(descending=True, stable=True)
    return order_X, factor(moment_XX[order_X][:, order_X])


def damped(moment_XX: Tensor, share: float) -> Tensor:
    """In float64."""
    damped_XX = moment_XX.double()
    diagonal_X = damped_XX.diagonal()
    mean = diagonal_X.mean() if bool(diagonal_X.any()) else 1.0
    diagonal_X.add_(share * mean)
    return damped_XX


def factor(moment_XX: Tensor) -> Tensor:
    """U, float32, with the moment's inverse = U^T U."""
    inverse_XX = torch.cholesky_inverse(torch.linalg.cholesky(moment_XX))
    upper_XX: Tensor = torch.linalg.cholesky(inverse_XX, upper=True)
    return upper_XX.float()


def compensated(matrix_NK: Tensor, layout: Layout, found: Ties, turn: int = 0) -> Packed:
    """The matrix in kernel layout."""
    wanted_NK = pad(matrix_NK.float(), (0, layout.padded_columns - layout.columns))
    rows = found.rows[turn]
    if rows is None:
        codes_NK, scales_NG = _rounded(wanted_NK, layout, found)
    else:
        codes_NK, scales_NG = _rounded_by_rows(wanted_NK, layout, found, *rows)
    return pack_codes(codes_NK, scales_NG, layout.format, layout.group, layout.columns)


def _rounded_by_rows(
    wanted_NK: Tensor, layout: Layout, found: Ties, order_N: Tensor, u_NN: Tensor
) -> tuple[Tensor, Tensor]:
    """`_rounded`, a block of rows at a time. The rows after a block move by - U_Br^T U_BB^-T E, E its errors."""
    rest_NK = wanted_NK[order_N]
    codes, scales = [], []
    step = max(1, -(-len(rest_NK) // ROW_BLOCKS))
    for start in range(0, len(rest_NK), step):
        block = slice(start, min(start + step, len(rest_NK)))
        codes_BK, scales_BG = _rounded(rest_NK[block], layout, found)
        errors_BK = rest_NK[block] - _values(codes_BK, scales_BG, layout)
        scaled_BK = torch.linalg.solve_triangular(u_NN[block, block].T, errors_BK, upper=False)
        rest_NK[block.stop :] -= u_NN[block, block.stop :].T @ scaled_BK
        codes.append(codes_BK)
        scales.append(scales_BG)
    back_N = order_N.argsort()
    return torch.cat(codes)[back_N], torch.cat(scales)[back_N]


def _values(codes_NK: Tensor, scales_NG: Tensor, layout: Layout) -> Tensor:
    values_NK = codes_NK.float() - (1 << (BITS[layout.format] - 1))
    scaled: Tensor = (values_NK.unflatten(1, (-1, layout.group)) * scales_NG.float()[:, :, None]).flatten(1)
    return scaled


def _rounded(wanted_NK: Tensor, layout: Layout, found: Ties) -> tuple[Tensor, Tensor]:
    """(codes (N, K) uint8, scales (N, G) float16), each row by itself."""
    bits, order_K, u_KK = BITS[layout.format], found.order_K, found.columns_KK
    scales_NG = _scales(wanted_NK.unflatten(1, (-1, layout.group)), found.importance_K, bits)
    rest_KN = wanted_NK.T[order_K]
    scales_KN = scales_NG.float().T[order_K // layout.group]
    codes_KN = torch.empty_like(rest_KN, dtype=torch.uint8)
    for start in range(0, layout.padded_columns, BLOCK_COLUMNS):
        block = slice(start, start + BLOCK_COLUMNS)
        codes_gN, errors_gN = _round(rest_KN[block], scales_KN[block], u_KK[block, block], bits)
        rest_KN[block.stop :] -= u_KK[block, block.stop :].T @ errors_gN
        codes_KN[order_K[block]] = codes_gN
    return codes_KN.T, scales_NG


def _scales(x_NGg: Tensor, importance_K: Tensor, bits: int) -> Tensor:
    """(N, G) float16."""
    if bits == 4:
        return best_scales(x_NGg, importance_K.view(x_NGg.shape[1:]))
    scales_NG: Tensor = x_NGg.abs().amax(-1) / (2 ** (bits - 1) - 1)
    return scales_NG.half()


def _round(rest_gN: Tensor, scales_gN: Tensor, u_gg: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(codes (g, N) uint8, errors over U_kk (g, N)); `rest_gN` is used up. A column's operations are so small that
    their number is what counts."""
    zero = 1 << (bits - 1)
    least = -8 if bits == 4 else 1 - zero
    steps_gN = torch.where(scales_gN == 0, _TINY, scales_gN)
    q_gN, errors_gN = torch.empty_like(rest_gN), torch.empty_like(rest_gN)
    diagonal_g = u_gg.diagonal()
    shares = (u_gg / diagonal_g[:, None]).unbind()
    columns = zip(
        rest_gN.unbind(), steps_gN.unbind(), scales_gN.unbind(), q_gN.unbind(), errors_gN.unbind(), strict=True
    )
    for k, (x_N, step_N, scale_N, q_N, error_N) in enumerate(columns):
        torch.div(x_N, step_N, out=q_N).round_().clamp_(least, zero - 1)
        torch.addcmul(x_N, q_N, scale_N, value=-1, out=error_N)
        rest_gN[k + 1 :].addr_(shares[k][k + 1 :], error_N, alpha=-1)
    return (q_gN + zero).to(torch.uint8), errors_gN / diagonal_g[:, None]
