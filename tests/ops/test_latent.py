"""Packed latents: sizes, the error a step allows, the bit order that the kernels read, and rows that do not meet."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from leadline.ops.latent import GROUP, LatentBits, LatentFormat, PackedLatents

NAMES: tuple[LatentBits, ...] = ("int8", "6bit")
each_name = pytest.mark.parametrize("name", NAMES)


def rows(count: int, width: int = 576, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def pages(format: LatentFormat, count: int = 3, page_size: int = 64) -> PackedLatents:
    return PackedLatents(torch.zeros(count, page_size * format.row_bytes, dtype=torch.uint8), page_size, format)


def test_published_widths() -> None:
    six, eight = LatentFormat("6bit", 512, 64), LatentFormat("int8", 512, 64)
    assert (six.code_bytes, six.scale_bytes, six.row_bytes, six.bits) == (448, 20, 468, 6.5)
    assert (eight.code_bytes, eight.scale_bytes, eight.row_bytes) == (576, 8, 584)
    assert eight.bits == pytest.approx(8.111, abs=1e-3)
    for format in (six, eight):
        assert format.code_bytes % 64 == 0
        assert 64 * format.row_bytes % 64 == 0


@each_name
@pytest.mark.parametrize(("latent", "rope"), [(512, 64), (16, 8), (64, 16), (128, 32)])
def test_the_error_is_at_most_half_a_step(name: LatentBits, latent: int, rope: int) -> None:
    format = LatentFormat(name, latent, rope)
    x = rows(50, latent + rope) * torch.logspace(-6, 6, 50)[:, None]
    codes, scales = format.encode(x)
    assert (codes.shape, scales.shape) == ((50, format.code_bytes), (50, format.scale_bytes))
    error = (format.decode(codes, scales) - x).abs()
    groups = x[:, :latent].abs().unflatten(1, (-1, format.group)).amax(-1)
    steps = 31 if name == "6bit" else 127
    slack = 1.15 if name == "6bit" else 1.0001  # a bfloat16 scale may be rounded down under the largest
    assert (error[:, :latent].unflatten(1, (-1, format.group)).amax(-1) <= groups / steps / 2 * slack).all()
    assert (error[:, latent:] <= x[:, latent:].abs().amax(1, keepdim=True) / 127 / 2 * 1.0001).all()


@each_name
def test_encoding_again_changes_nothing(name: LatentBits) -> None:
    format = LatentFormat(name, 128, 64)
    codes, scales = format.encode(rows(20, 192))
    decoded = format.decode(codes, scales)
    assert torch.equal(format.decode(*format.encode(decoded)), decoded)


def test_six_bits_lie_as_the_kernels_read_them() -> None:
    format = LatentFormat("6bit", 128, 8)
    x = torch.zeros(1, 136)
    places = {0: 31.0, 32: -31.0, 64: 31.0, 16: -31.0, 48: 5.0, 127: -31.0}
    for place, value in places.items():
        x[0, place] = value
    codes, scales = format.encode(x)
    assert scales[:, :4].contiguous().view(torch.bfloat16).tolist() == [[1.0, 1.0]]
    planes, zero = codes[0], 32
    code = {place: int(value) + zero for place, value in places.items()}
    assert planes[0] == (code[0] & 15) | ((code[32] & 15) << 4)
    assert planes[16] == (code[16] & 15) | ((code[48] & 15) << 4)
    assert planes[32] == (code[64] & 15) | (zero & 15) << 4
    high = planes[64:96]
    assert high[0] == (code[0] >> 4) | (code[16] >> 4) << 2 | (code[32] >> 4) << 4 | (code[48] >> 4) << 6
    assert high[31] >> 6 == code[127] >> 4


@each_name
def test_what_is_not_finite_becomes_finite(name: LatentBits) -> None:
    format = LatentFormat(name, GROUP, 8)
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38, 1e-45, 0.0]).repeat_interleave(12)[None]
    decoded = format.decode(*format.encode(x))
    assert decoded.isfinite().all()
    assert (format.decode(*format.encode(torch.zeros(1, 72))) == 0).all()


@each_name
@hypothesis.given(data=st.data())
def test_rows_are_found_where_they_were_put_and_nowhere_else(name: LatentBits, data: st.DataObject) -> None:
    format = LatentFormat(name, 16, 8)
    packed, size = pages(format, 3, 4), 4
    slots = data.draw(st.lists(st.integers(0, 11), unique=True, min_size=1))
    before = packed.pages_PB.clone()
    x = rows(len(slots), 24)
    packed.write(torch.tensor(slots), x)
    found = packed.gather(torch.arange(3))
    assert torch.equal(found[slots], format.decode(*format.encode(x)))
    others = [slot for slot in range(12) if slot not in slots]
    assert (found[others] == 0).all()
    for row, slot in enumerate(slots):  # alone it has the same bytes
        alone = PackedLatents(before.clone(), size, format)
        alone.write(torch.tensor([slot]), x[row : row + 1])
        assert torch.equal(alone.codes[slot // size, slot % size], packed.codes[slot // size, slot % size])
        assert torch.equal(alone.scales[slot // size, slot % size], packed.scales[slot // size, slot % size])
