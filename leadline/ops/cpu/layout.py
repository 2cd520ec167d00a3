"""How the CPU kernels want a matrix: panels of 16 outputs, read once from front to end.

A weight of N rows (outputs) and K columns is cut into panels of 16 rows. A panel's bytes lie together, and the panels
of a matrix, and the matrices of a stack (experts, heads), lie one after the other, so that a matrix-vector product is
one linear stream. N is padded to whole panels and K to whole groups with zeros, which add nothing.

    format   a panel                                                    bits a weight
    f32      [K][16] float32                                            32
    bf16     [K / 2][16][2] bfloat16: two columns of each output        16
    int8     [G][16] float16 scales, [K / 4][16][4] codes               8.5 or 8.25, in groups of 32 or 64
    int4     [G][16] float16 scales, [K / 8][16][4] pairs of codes      4.5 or 4.25

Scales are padded to 64 bytes, so that codes are read in whole cache lines. Four columns of 16 outputs are the 64 bytes
that VNNI, and a row of an AMX tile, take at once. Codes are unsigned, 8 or 128 over their value, since these
instructions multiply unsigned by signed. A byte of int4 holds column k in its low half and column k + 4 in its high
half: one mask and one shift unpack 128 weights.

A SwiGLU's gate and up projections are one matrix whose panels take turns, gate and up (`interleave`): a thread that has
both for the same 16 columns can apply the activation at once.

Everything here is PyTorch and is the reference of the layout; `csrc/layout.h` reads it.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from leadline.errors import CheckpointError
from leadline.ops.quant import GROUPS

Format = Literal["f32", "bf16", "int8", "int4"]

PANEL = 16
LINE = 64
BITS: dict[str, int] = {"f32": 32, "bf16": 16, "int8": 8, "int4": 4}
INTEGER = ("int8", "int4")


@dataclasses.dataclass(frozen=True)
class Layout:
    """The shape of one matrix in kernel layout, without its bytes. `group` is 0 for f32 and bf16."""

    format: Format
    rows: int
    columns: int
    group: int = 0

    def __post_init__(self) -> None:
        if self.format not in BITS:
            raise CheckpointError(f"format {self.format!r} is not one of {', '.join(BITS)}")
        if self.group not in (GROUPS if self.quantised else (0,)):
            raise CheckpointError(f"{self.format} in groups of {self.group} is not a kernel layout")
        if self.rows < 1 or self.columns < 1:
            raise CheckpointError(f"a matrix of {self.rows} by {self.columns} is empty")

    @property
    def quantised(self) -> bool:
        return self.format in INTEGER

    @property
    def panels(self) -> int:
        return -(-self.rows // PANEL)

    @property
    def padded_columns(self) -> int:
        step = self.group if self.quantised else 2
        return -(-self.columns // step) * step

    @property
    def groups(self) -> int:
        return self.padded_columns // self.group if self.quantised else 0

    @property
    def scale_bytes(self) -> int:
        """Of one panel, with the padding."""
        return -(-self.groups * PANEL * 2 // LINE) * LINE

    @property
    def panel_bytes(self) -> int:
        return self.scale_bytes + self.padded_columns * PANEL * BITS[self.format] // 8

    @property
    def nbytes(self) -> int:
        return self.panels * self.panel_bytes

    @property
    def bits_per_weight(self) -> float:
        """All told: scales and padding counted."""
        return self.nbytes * 8 / (self.rows * self.columns)


@dataclasses.dataclass(frozen=True)
class Packed:
    """`count` matrices of one layout; `data` is (count * layout.nbytes,) uint8, and begins on a cache line."""

    layout: Layout
    data: Tensor
    count: int = 1

    def __post_init__(self) -> None:
        if self.data.dtype != torch.uint8 or self.data.shape != (self.count * self.layout.nbytes,):
            raise CheckpointError(
                f"{self.count} matrices of {self.layout} take {self.count * self.layout.nbytes:,} bytes, not "
                f"{tuple(self.data.shape)} of {self.data.dtype}"
            )

    @property
    def nbytes(self) -> int:
        return self.data.numel()

    def part(self, index: int) -> Packed:
        """One matrix of the stack, a view."""
        size = self.layout.nbytes
        return Packed(self.layout, self.data[index * size : (index + 1) * size])

    @staticmethod
    def stack(parts: list[Packed]) -> Packed:
        """The parts one after the other, copied."""
        return Packed(parts[0].layout, torch.cat([part.data for part in parts]), sum(part.count for part in parts))


def pack(weight: Tensor, format: Format, group: int = 0) -> Packed:
    """A weight (N, K), or a stack (E, N, K), in kernel layout; integers are quantised by the largest of each group."""
    if weight.dim() == 3:
        return Packed.stack([pack(each, format, group) for each in weight])
    layout = Layout(format, weight.shape[0], weight.shape[1], group)
    if layout.quantised:
        return pack_codes(*quantise_symmetric(weight, BITS[format], group), format, group, weight.shape[1])
    return Packed(layout, _float_panels(weight, layout))


def quantise_symmetric(weight_NK: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """(codes_NK uint8, scales_NG float16) of the weight, K padded to whole groups; codes are chosen for the rounded
    scale."""
    padded_NK = _padded(weight_NK.float(), weight_NK.shape[0], -(-weight_NK.shape[1] // group) * group)
    groups_NGg: Tensor = padded_NK.unflatten(1, (-1, group))
    largest = 2 ** (bits - 1) - 1
    scales_NG = (groups_NGg.abs().amax(-1) / largest).half()
    return codes_for(groups_NGg, scales_NG, bits), scales_NG


def codes_for(groups_NGg: Tensor, scales_NG: Tensor, bits: int) -> Tensor:
    """(N, K) uint8: the nearest code to each weight at these scales."""
    largest = 2 ** (bits - 1) - 1
    steps_NGg: Tensor = groups_NGg / scales_NG.float().clamp(min=torch.finfo(torch.float32).tiny)[:, :, None]
    codes_NGg: Tensor = (steps_NGg.round().clamp(-largest, largest) + (largest + 1)).to(torch.uint8)
    return codes_NGg.flatten(1)


def pack_codes(codes_NK: Tensor, scales_NG: Tensor, format: Format, group: int, columns: int | None = None) -> Packed:
    """Codes that are there already: uint8 in [1, 15] or [1, 255], 8 or 128 over their value; K in whole groups.
    `columns` is the width before padding."""
    layout = Layout(format, codes_NK.shape[0], columns or codes_NK.shape[1], group)
    if codes_NK.shape[1] != layout.padded_columns or scales_NG.shape != (layout.rows, layout.groups):
        raise CheckpointError(f"codes {tuple(codes_NK.shape)} and scales {tuple(scales_NG.shape)} are not {layout}")
    zero = 1 << (BITS[format] - 1)
    codes = torch.full((layout.panels * PANEL, layout.padded_columns), zero, dtype=torch.uint8)
    codes[: layout.rows] = codes_NK
    scales = torch.zeros(layout.panels * PANEL, layout.groups, dtype=torch.float16)
    scales[: layout.rows] = scales_NG
    data = torch.zeros(layout.panels, layout.panel_bytes, dtype=torch.uint8)
    scale_bytes = scales.unflatten(0, (-1, PANEL)).transpose(1, 2).contiguous().view(torch.uint8).flatten(1)
    data[:, : scale_bytes.shape[1]] = scale_bytes
    data[:, layout.scale_bytes :] = _code_panels(codes, format)
    return Packed(layout, data.flatten())


def _code_panels(codes_NK: Tensor, format: Format) -> Tensor:
    """(panels, bytes)."""
    quads: Tensor = codes_NK.unflatten(0, (-1, PANEL)).unflatten(2, (-1, 4)).transpose(1, 2)  # panel, K / 4, 16, 4
    if format == "int4":
        quads = quads[:, 0::2] | (quads[:, 1::2] << 4)
    return quads.flatten(1)


def _float_panels(weight_NK: Tensor, layout: Layout) -> Tensor:
    dtype = torch.float32 if layout.format == "f32" else torch.bfloat16
    step = 1 if layout.format == "f32" else 2
    padded = _padded(weight_NK.to(dtype), layout.panels * PANEL, layout.padded_columns)
    panels: Tensor = padded.unflatten(0, (-1, PANEL)).unflatten(2, (-1, step)).transpose(1, 2)
    return panels.flatten().view(torch.uint8)


def _padded(weight_NK: Tensor, rows: int, columns: int) -> Tensor:
    padded = weight_NK.new_zeros(rows, columns)
    padded[: weight_NK.shape[0], : weight_NK.shape[1]] = weight_NK
    return padded


def unpack(packed: Packed) -> Tensor:
    """The dequantised weight in float32, (N, K), or (E, N, K) of a stack: what the kernels compute with."""
    if packed.count > 1:
        return torch.stack([unpack(packed.part(index)) for index in range(packed.count)])
    layout = packed.layout
    if layout.quantised:
        codes_NK, scales_NG = unpack_codes(packed)
        values = codes_NK.float() - (1 << (BITS[layout.format] - 1))
        weight: Tensor = (values.unflatten(1, (-1, layout.group)) * scales_NG.float()[:, :, None]).flatten(1)
        return weight[:, : layout.columns].contiguous()
    dtype, step = (torch.float32, 1) if layout.format == "f32" else (torch.bfloat16, 2)
    panels: Tensor = packed.data.view(dtype).view(layout.panels, -1, PANEL, step)
    return panels.transpose(1, 2).reshape(layout.panels * PANEL, -1)[: layout.rows, : layout.columns].float()


def unpack_codes(packed: Packed) -> tuple[Tensor, Tensor]:
    """(codes_NK, scales_NG) of one quantised matrix, K in whole groups: `pack_codes` backwards."""
    layout = packed.layout
    data = packed.data.view(layout.panels, layout.panel_bytes)
    scales = data[:, : layout.groups * PANEL * 2].contiguous().view(torch.float16)
    scales_NG = scales.view(layout.panels, layout.groups, PANEL).transpose(1, 2).flatten(0, 1)[: layout.rows]
    quads = data[:, layout.scale_bytes :].reshape(layout.panels, -1, PANEL, 4)
    if layout.format == "int4":
        quads = torch.stack((quads & 15, quads >> 4), dim=2).flatten(1, 2)
    return quads.transpose(1, 2).reshape(layout.panels * PANEL, -1)[: layout.rows], scales_NG


def interleave(gate_FD: Tensor, up_FD: Tensor) -> Tensor:
    """One weight (2F', D) whose panels take turns; F' is F in whole panels, the pads zero."""
    padded = -(-gate_FD.shape[0] // PANEL) * PANEL
    pair = torch.stack([_padded(each, padded, each.shape[1]) for each in (gate_FD, up_FD)])
    turns: Tensor = pair.unflatten(1, (-1, PANEL)).transpose(0, 1)
    return turns.flatten(0, 2)


def deinterleave(weight_XD: Tensor, inner: int) -> tuple[Tensor, Tensor]:
    """(gate_FD, up_FD): `interleave` backwards."""
    turns: Tensor = weight_XD.unflatten(0, (-1, 2, PANEL))
    gate, up = turns.unbind(1)
    return gate.flatten(0, 1)[:inner], up.flatten(0, 1)[:inner]
