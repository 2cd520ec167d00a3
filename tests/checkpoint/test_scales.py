"""Scales by search: never worse than the plain ones, exact where the codes can say it, each group for itself."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from leadline.checkpoint.scales import quantise, search_int4
from leadline.ops.cpu.layout import Format, Layout, unpack


def weight(rows: int = 24, columns: int = 96, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


def error(exact: Tensor, layout: Layout, *, search: bool) -> float:
    return float((unpack(quantise(exact, layout, search=search)) - exact).square().sum())


def test_a_search_is_better_by_a_quarter_of_the_squared_error() -> None:
    exact = weight(64, 512)
    layout = Layout("int4", 64, 512, 32)
    assert error(exact, layout, search=True) < 0.75 * error(exact, layout, search=False)


@hypothesis.given(seed=st.integers(0, 1000), scale=st.floats(1e-4, 1e3), tail=st.booleans())
def test_a_search_is_never_worse(seed: int, scale: float, tail: bool) -> None:
    exact = weight(16, 64, seed) * scale
    if tail:
        exact[:, 3] *= 20
    layout = Layout("int4", 16, 64, 32)
    assert error(exact, layout, search=True) <= error(exact, layout, search=False) * 1.001


def test_what_sixteen_codes_can_say_comes_back_exactly() -> None:
    steps = torch.randint(-8, 8, (12, 64), generator=torch.Generator().manual_seed(1)).float()
    steps[:, ::32] = -8.0
    for sign in (0.25, -0.25):
        exact = steps * sign
        assert torch.equal(unpack(quantise(exact, Layout("int4", 12, 64, 32))), exact)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30])
def test_edges_stay_finite(value: float) -> None:
    exact = torch.full((3, 32), value)
    assert unpack(quantise(exact, Layout("int4", 3, 32, 32))).isfinite().all()


def test_a_group_does_not_feel_its_neighbours() -> None:
    exact = weight(8, 96)
    codes, scales = search_int4(exact, 32)
    alone, one = search_int4(exact[3:4, 32:64], 32)
    assert torch.equal(codes[3:4, 32:64], alone)
    assert torch.equal(scales[3:4, 1:2], one)


@pytest.mark.parametrize(("format", "group"), [("f32", 0), ("bf16", 0), ("int8", 64), ("int8", 32), ("int4", 32)])
def test_every_format_is_close_and_padded_away(format: Format, group: int) -> None:
    exact = weight(21, 90).bfloat16().float()
    packed = quantise(exact, Layout(format, 21, 90, group))
    limit = {"f32": 0.0, "bf16": 0.0, "int8": 0.01, "int4": 0.12}[format]
    assert unpack(packed).shape == exact.shape
    assert float((unpack(packed) - exact).norm() / exact.norm()) <= limit
