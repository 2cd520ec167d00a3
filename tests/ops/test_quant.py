"""Int8 and int4 codes: the error a step allows, the packing, the sizes that cannot be."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from leadline.errors import CheckpointError
from leadline.ops.quant import BITS, GROUPS, dequantise, quantise

each_bits = pytest.mark.parametrize("bits", BITS)
each_group = pytest.mark.parametrize("group", GROUPS)


@each_bits
@each_group
def test_the_error_is_at_most_half_a_step_of_its_group(bits: int, group: int) -> None:
    weight = torch.randn(9, 192, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 9)[:, None]
    codes, scales = quantise(weight, bits, group)
    assert (codes.shape, codes.dtype) == ((9, 192 * bits // 8), torch.uint8)
    assert (scales.shape, scales.dtype) == ((9, 192 // group), torch.float32)
    error = (dequantise(codes, scales, bits, group) - weight).abs().unflatten(1, (-1, group)).amax(-1)
    assert (error <= scales * 0.5001).all()


@each_bits
def test_what_the_codes_can_say_comes_back_exactly(bits: int) -> None:
    largest = 2 ** (bits - 1) - 1
    steps = torch.randint(-largest, largest + 1, (5, 64), generator=torch.Generator().manual_seed(0)).float()
    steps[:, ::32] = largest
    weight = steps * 0.25
    assert torch.equal(dequantise(*quantise(weight, bits, 32), bits, 32), weight)


@each_bits
def test_zeros_stay_zeros(bits: int) -> None:
    assert (dequantise(*quantise(torch.zeros(2, 64), bits, 64), bits, 64) == 0).all()


def test_int4_packs_the_even_column_low() -> None:
    weight = torch.zeros(1, 32)
    weight[0, :2] = torch.tensor([7.0, -7.0])
    codes, scales = quantise(weight, 4, 32)
    assert codes[0, 0].item() == 15 | (1 << 4)
    assert scales.item() == 1.0


@hypothesis.given(bits=st.sampled_from(BITS), seed=st.integers(0, 1000), scale=st.floats(1e-30, 1e30))
def test_quantising_again_changes_nothing(bits: int, seed: int, scale: float) -> None:
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(seed)) * scale
    codes, scales = quantise(weight, bits, 32)
    again, _ = quantise(dequantise(codes, scales, bits, 32), bits, 32)
    assert torch.equal(again, codes)


@pytest.mark.parametrize(("columns", "group"), [(10944, 32), (10944, 64), (1408, 64), (2048, 64), (12288, 64)])
def test_the_published_widths_can_be_cut(columns: int, group: int) -> None:
    assert quantise(torch.ones(1, columns), 4, group)[1].shape == (1, columns // group)


@pytest.mark.parametrize(
    ("columns", "bits", "group", "message"),
    [(100, 4, 64, "100 columns"), (256, 4, 128, "groups of 128"), (64, 3, 32, "3 bits"), (64, 16, 32, "16 bits")],
)
def test_what_cannot_be_cut_is_one_clear_line(columns: int, bits: int, group: int, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        quantise(torch.ones(2, columns), bits, group)
