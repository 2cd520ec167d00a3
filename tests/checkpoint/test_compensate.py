"""Rounding column by column: less error in the outputs, nothing else when inputs have no ties, each row for itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from leadline.checkpoint.calibrate import second_moment
from leadline.checkpoint.compensate import compensated, factor
from leadline.checkpoint.scales import quantise
from leadline.ops.cpu.layout import BITS, Format, Layout, Packed, unpack

ROWS, COLUMNS = 48, 160


def matrices(seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight, and inputs that a third as many directions make up for the most part."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(ROWS, COLUMNS, generator=generator) * 0.05
    mixed = torch.randn(4000, COLUMNS // 3, generator=generator) @ torch.randn(
        COLUMNS // 3, COLUMNS, generator=generator
    )
    return weight, mixed + 0.3 * torch.randn(4000, COLUMNS, generator=generator)


def damage(packed: Packed, weight: Tensor, inputs: Tensor) -> float:
    return float((inputs @ (unpack(packed) - weight).T).square().mean() / (inputs @ weight.T).square().mean())


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_outputs_on_other_inputs_of_the_kind_are_nearer_by_half(format: Format) -> None:
    weight, inputs = matrices()
    layout = Layout(format, ROWS, COLUMNS, 32)
    packed = compensated(weight, layout, factor(second_moment(inputs[:2000]), layout))
    assert damage(packed, weight, inputs[2000:]) < 0.5 * damage(quantise(weight, layout), weight, inputs[2000:])


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_inputs_without_ties_give_what_the_search_gives(format: Format) -> None:
    weight, _ = matrices()
    layout = Layout(format, ROWS, COLUMNS, 32)
    packed = compensated(weight, layout, factor(torch.eye(COLUMNS), layout))
    assert torch.equal(packed.data, quantise(weight, layout).data)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    weight, inputs = matrices()
    layout = Layout("int4", ROWS, COLUMNS, 32)
    ties = factor(second_moment(inputs), layout)
    whole = unpack(compensated(weight, layout, ties))
    part = unpack(compensated(weight[16:32], Layout("int4", 16, COLUMNS, 32), ties))
    torch.testing.assert_close(whole[16:32], part, atol=0, rtol=0)


@pytest.mark.parametrize("columns", [150, 32])
@pytest.mark.parametrize("format", ["int8", "int4"])
def test_pads_and_columns_that_met_nothing(columns: int, format: Format) -> None:
    weight, inputs = (each[:, :columns] for each in matrices())
    inputs = inputs.clone()
    inputs[:, 3] = 0.0
    layout = Layout(format, ROWS, columns, 32)
    for moment in (second_moment(inputs), torch.zeros(columns, columns)):
        found = unpack(compensated(weight, layout, factor(moment, layout)))
        assert found.shape == weight.shape
        assert float((found - weight).abs().max()) < 3 * float(weight.abs().max()) / 2 ** (BITS[format] - 1)


def test_few_tokens_are_believed_little() -> None:
    few = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    moment = second_moment(few)
    plain = few.T @ few / 8
    torch.testing.assert_close(moment.diagonal(), plain.diagonal())
    torch.testing.assert_close(moment[0, 1], plain[0, 1] / 3)
