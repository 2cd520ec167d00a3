"""Latents in fewer bits (section 3.2.3, whose deployment caches 6 bits an element on average).

A row of the cache is the normed latent, C wide, and the roped key, R wide. The key turns with the position and its
error lands on every score, so it always has 8 bits; the latent has 8 or 6.

    format   the latent                                     the key                     bytes a row at C 512, R 64
    int8     8 bits, one float32 scale a row                8 bits, one float32 scale   584   8.11 bits an element
    6bit     6 bits, one bfloat16 scale for 64 elements     8 bits, one float32 scale   468   6.50

A page of rows is planar: the codes of all its rows, then their scales, so that codes lie on cache lines. Codes are
unsigned; a value is (code - 2^(bits - 1)) times its scale, and the largest magnitude meets the largest code. Six bits
lie in two planes, as vector instructions take them apart: of each group of 64, byte i of the low plane holds the low
halves of elements i and 32 + i, byte i of the high plane two bits each of elements i, 16 + i, 32 + i and 48 + i.

Invariant: a row's bytes depend on that row alone, and every stored value is finite.

Shapes: T rows, C latent, R rope, B bytes of codes, P pages.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor

LatentBits = Literal["int8", "6bit"]
GROUP = 64
_ROPE_SCALE_BYTES = 4
_TINY = torch.finfo(torch.float32).tiny


@dataclasses.dataclass(frozen=True, slots=True)
class LatentFormat:
    """How a row of C + R elements is stored."""

    name: LatentBits
    latent: int
    rope: int

    @property
    def group(self) -> int:
        """Elements of the latent that share a scale."""
        return GROUP if self.name == "6bit" and self.latent % GROUP == 0 else self.latent

    @property
    def code_bytes(self) -> int:
        return (self.latent if self.name == "int8" else self.latent * 3 // 4) + self.rope

    @property
    def scale_bytes(self) -> int:
        return _ROPE_SCALE_BYTES + (4 if self.name == "int8" else 2 * self.latent // self.group)

    @property
    def row_bytes(self) -> int:
        return self.code_bytes + self.scale_bytes

    @property
    def bits(self) -> float:
        """An element, scales counted."""
        return self.row_bytes * 8 / (self.latent + self.rope)

    def encode(self, rows_TX: Tensor) -> tuple[Tensor, Tensor]:
        """(codes (T, B) uint8, scales (T, scale_bytes) uint8) of rows that are C + R wide."""
        latent_TC, rope_TR = rows_TX.float().nan_to_num().split((self.latent, self.rope), dim=-1)
        rope_codes, rope_scales = _codes(rope_TR, 8, self.rope, torch.float32)
        if self.name == "int8":
            codes, scales = _codes(latent_TC, 8, self.latent, torch.float32)
        else:
            codes, scales = _codes(latent_TC, 6, self.group, torch.bfloat16)
            codes = _pack_six(codes, self.group)
        return torch.cat((codes, rope_codes), dim=-1), torch.cat((_bytes(scales), _bytes(rope_scales)), dim=-1)

    def decode(self, codes_TB: Tensor, scales_TB: Tensor) -> Tensor:
        """(T, C + R) float32."""
        latent_codes, rope_codes = codes_TB.split((self.code_bytes - self.rope, self.rope), dim=-1)
        latent_scales, rope_scales = scales_TB.split((self.scale_bytes - _ROPE_SCALE_BYTES, _ROPE_SCALE_BYTES), dim=-1)
        rope_TR = _values(rope_codes, _numbers(rope_scales, torch.float32), 8)
        if self.name == "int8":
            latent_TC = _values(latent_codes, _numbers(latent_scales, torch.float32), 8)
        else:
            latent_TC = _values(_unpack_six(latent_codes, self.group), _numbers(latent_scales, torch.bfloat16), 6)
        return torch.cat((latent_TC, rope_TR), dim=-1)


@dataclasses.dataclass(frozen=True)
class PackedLatents:
    """One layer's pages, (P, page bytes) uint8. Stands where a plain cache passes its rows (P, page, C + R)."""

    pages_PB: Tensor
    page_size: int
    format: LatentFormat

    @property
    def is_cuda(self) -> bool:
        return self.pages_PB.is_cuda

    @property
    def dtype(self) -> torch.dtype:
        """What is stored; no arithmetic is done in it."""
        return torch.uint8

    @property
    def codes(self) -> Tensor:
        """(P, page, B), a view."""
        codes: Tensor = self.pages_PB[:, : self.page_size * self.format.code_bytes].unflatten(1, (self.page_size, -1))
        return codes

    @property
    def scales(self) -> Tensor:
        """(P, page, scale_bytes), a view."""
        scales: Tensor = self.pages_PB[:, self.page_size * self.format.code_bytes :].unflatten(1, (self.page_size, -1))
        return scales

    def write(self, slots_T: Tensor, rows_TX: Tensor) -> None:
        """Encode rows into the places `page * page_size + offset`."""
        codes_TB, scales_TB = self.format.encode(rows_TX)
        pages_T, offsets_T = slots_T // self.page_size, slots_T % self.page_size
        self.codes[pages_T, offsets_T] = codes_TB
        self.scales[pages_T, offsets_T] = scales_TB

    def gather(self, pages_N: Tensor) -> Tensor:
        """The rows of these pages end to end, float32."""
        return self.format.decode(self.codes[pages_N].flatten(0, 1), self.scales[pages_N].flatten(0, 1))


def _codes(values_TX: Tensor, bits: int, group: int, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """(codes (T, X) uint8, scales (T, X / group) in `kind`): codes are chosen for the scale as it is stored."""
    largest = 2 ** (bits - 1) - 1
    groups_TGg: Tensor = values_TX.unflatten(-1, (-1, group))
    scales_TG = (groups_TGg.abs().amax(-1) / largest).clamp(max=torch.finfo(torch.float32).max / 256).to(kind)
    steps_TGg = groups_TGg / scales_TG.float().clamp(min=_TINY)[..., None]
    codes_TX: Tensor = (steps_TGg.round().clamp(-largest, largest) + (largest + 1)).to(torch.uint8).flatten(-2)
    return codes_TX, scales_TG


def _values(codes_TX: Tensor, scales_TG: Tensor, bits: int) -> Tensor:
    steps_TGg: Tensor = (codes_TX.float() - 2 ** (bits - 1)).unflatten(-1, (scales_TG.shape[-1], -1))
    values_TX: Tensor = (steps_TGg * scales_TG.float()[..., None]).flatten(-2)
    return values_TX


def _bytes(scales_TG: Tensor) -> Tensor:
    return scales_TG.contiguous().view(torch.uint8)


def _numbers(scales_TB: Tensor, kind: torch.dtype) -> Tensor:
    return scales_TB.clone(memory_format=torch.contiguous_format).view(kind)


def _pack_six(codes_TC: Tensor, group: int) -> Tensor:
    """(T, C / 2 + C / 4): the low plane, then the high one."""
    groups: Tensor = codes_TC.unflatten(-1, (-1, group))
    first, second = (groups & 15).unflatten(-1, (2, -1)).unbind(-2)
    parts = (groups >> 4).unflatten(-1, (4, -1)).unbind(-2)
    high = parts[0] | (parts[1] << 2) | (parts[2] << 4) | (parts[3] << 6)
    return torch.cat(((first | (second << 4)).flatten(-2), high.flatten(-2)), dim=-1)


def _unpack_six(planes_TB: Tensor, group: int) -> Tensor:
    columns = planes_TB.shape[-1] * 4 // 3
    low, high = planes_TB.split((columns // 2, columns // 4), dim=-1)
    low, high = low.unflatten(-1, (-1, group // 2)), high.unflatten(-1, (-1, group // 4))
    nibbles = torch.cat((low & 15, low >> 4), dim=-1)
    tops = torch.cat([(high >> shift) & 3 for shift in (0, 2, 4, 6)], dim=-1)
    codes_TC: Tensor = (nibbles | (tops << 4)).flatten(-2)
    return codes_TC
