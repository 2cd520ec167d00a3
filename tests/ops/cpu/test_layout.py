"""Matrices in kernel layout: there and back, padding, sizes, and what is refused."""

from __future__ import annotations

import pytest
import torch

from leadline.errors import CheckpointError
from leadline.ops.cpu.layout import (
    Format,
    Layout,
    Packed,
    deinterleave,
    interleave,
    pack,
    pack_codes,
    unpack,
    unpack_codes,
)
from tests.ops.cases import normal

QUANTISED: list[tuple[Format, int]] = [("int8", 32), ("int8", 64), ("int4", 32), ("int4", 64)]
SHAPES = [(16, 64), (48, 192), (5, 64), (17, 100), (1, 1)]


@pytest.mark.parametrize(("format", "dtype"), [("f32", torch.float32), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("shape", SHAPES)
def test_floats_come_back_as_they_were(format: Format, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    weight = normal(*shape, dtype=dtype)
    assert torch.equal(unpack(pack(weight, format)), weight.float())


@pytest.mark.parametrize(("format", "group"), QUANTISED)
@pytest.mark.parametrize("shape", SHAPES)
def test_quantised_weights_are_within_half_a_step(format: Format, group: int, shape: tuple[int, int]) -> None:
    weight = normal(*shape, dtype=torch.float32)
    packed = pack(weight, format, group)
    _, scales_NG = unpack_codes(packed)
    steps_NK = scales_NG.float().repeat_interleave(group, dim=1)[:, : shape[1]]
    assert ((unpack(packed) - weight).abs() <= steps_NK * 0.51).all()


@pytest.mark.parametrize(("format", "group"), QUANTISED)
def test_codes_come_back_as_they_were(format: Format, group: int) -> None:
    top = 16 if format == "int4" else 256
    codes = torch.randint(1, top, (21, 192), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    scales = normal(21, 192 // group, dtype=torch.float16).abs()
    again, scales_again = unpack_codes(pack_codes(codes, scales, format, group))
    assert torch.equal(again, codes)
    assert torch.equal(scales_again, scales)


def test_a_stack_is_its_matrices_one_after_the_other() -> None:
    weights = normal(3, 20, 64, dtype=torch.float32)
    packed = pack(weights, "int4", 32)
    assert packed.count == 3
    for index, weight in enumerate(weights):
        assert torch.equal(packed.part(index).data, pack(weight, "int4", 32).data)
    assert unpack(packed).shape == weights.shape


@pytest.mark.parametrize("inner", [16, 40])
def test_gate_and_up_take_turns_and_come_back(inner: int) -> None:
    gate, up = normal(inner, 8, dtype=torch.float32), normal(inner, 8, seed=1, dtype=torch.float32)
    both = interleave(gate, up)
    assert torch.equal(both[:16], gate[:16])
    assert torch.equal(both[16:32], up[:16])
    gate_again, up_again = deinterleave(both, inner)
    assert torch.equal(gate_again, gate)
    assert torch.equal(up_again, up)


def test_bits_a_weight_count_scales_and_padding() -> None:
    assert Layout("int4", 2816, 2048, 64).bits_per_weight == 4.25
    assert Layout("int4", 2816, 2048, 32).bits_per_weight == 4.5
    assert Layout("int8", 2048, 1408, 64).bits_per_weight == pytest.approx(8.25)
    assert Layout("int4", 2048, 10944, 64).bits_per_weight < 4.26  # 171 groups: one line of padding a panel
    assert Layout("bf16", 2048, 2048).bits_per_weight == 16


@pytest.mark.parametrize(
    "make",
    [
        lambda: Layout("int4", 16, 64, 128),
        lambda: Layout("bf16", 16, 64, 64),
        lambda: Layout("f32", 0, 64),
        lambda: Layout("int3", 16, 64, 32),  # type: ignore[arg-type]
        lambda: Packed(Layout("f32", 16, 2), torch.zeros(5, dtype=torch.uint8)),
        lambda: pack_codes(torch.ones(16, 65, dtype=torch.uint8), torch.ones(16, 1), "int8", 64),
    ],
)
def test_what_is_no_layout_is_refused(make: object) -> None:
    with pytest.raises(CheckpointError):
        make()  # type: ignore[operator]
