"""Linear layers over int8 and int4 weights (section 3.2.3 serves fp8; a CPU reads a half or a quarter of bf16's bytes).

A row of the weight is cut into groups of 32 or 64 columns with one scale each: 10,944 and 1,408, the widths of V2-Lite,
are no multiples of 128. Codes are symmetric around zero and stored unsigned, two int4 codes to a byte with the even
column in the low half.

Shapes: T tokens, D columns, O rows of the weight, B = D * bits / 8 bytes a row, G = D / group.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from leadline.errors import CheckpointError
from leadline.ops.dispatch import op

GROUPS = (32, 64)
BITS = (4, 8)


@op
def quantised_linear(x_TD: Tensor, codes_OB: Tensor, scales_OG: Tensor, bits: int, group: int) -> Tensor:
    """(T, O): x times the dequantised weight, in x's dtype."""
    return linear(x_TD, dequantise(codes_OB, scales_OG, bits, group).to(x_TD.dtype))


def quantise(weight_OD: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """(codes (O, B) uint8, scales (O, G) float32): each group's largest magnitude meets the largest code."""
    _check(weight_OD.shape[1], bits, group)
    groups_OGg: Tensor = weight_OD.float().unflatten(1, (-1, group))
    largest = 2 ** (bits - 1) - 1
    scales_OG = groups_OGg.abs().amax(-1) / largest
    steps_OGg = groups_OGg / scales_OG.clamp(min=torch.finfo(torch.float32).tiny)[:, :, None]
    codes_OD = (steps_OGg.round().clamp(-largest, largest) + largest + 1).to(torch.uint8).flatten(1)
    return _pack(codes_OD) if bits == 4 else codes_OD, scales_OG


def dequantise(codes_OB: Tensor, scales_OG: Tensor, bits: int, group: int) -> Tensor:
    """(O, D) in the scales' dtype."""
    codes_OD = _unpack(codes_OB) if bits == 4 else codes_OB
    steps_OGg: Tensor = (codes_OD.to(scales_OG.dtype) - 2 ** (bits - 1)).unflatten(1, (-1, group))
    return (steps_OGg * scales_OG[:, :, None]).flatten(1)


def _check(columns: int, bits: int, group: int) -> None:
    if bits not in BITS or group not in GROUPS:
        raise CheckpointError(f"{bits} bits in groups of {group} is not one of 4 or 8 bits in groups of 32 or 64")
    if columns % group:
        raise CheckpointError(f"a weight of {columns} columns cannot be cut into groups of {group}")


def _pack(codes_OD: Tensor) -> Tensor:
    low, high = codes_OD[:, 0::2], codes_OD[:, 1::2]
    return low | (high << 4)


def _unpack(codes_OB: Tensor) -> Tensor:
    return torch.stack((codes_OB & 15, codes_OB >> 4), dim=-1).flatten(1)
