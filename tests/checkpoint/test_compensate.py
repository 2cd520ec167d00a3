"""Rounding one after the other: less error where it matters, nothing else when nothing is tied, each row for itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from leadline.checkpoint.compensate import Moment, compensated, ties
from leadline.checkpoint.scales import quantise
from leadline.ops.cpu.layout import BITS, Format, Layout, Packed, unpack, unpack_codes

ROWS, COLUMNS = 48, 160


def matrices(seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight, and inputs that a third as many directions make up for the most part."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(ROWS, COLUMNS, generator=generator) * 0.05
    mixed = torch.randn(4000, COLUMNS // 3, generator=generator) @ torch.randn(
        COLUMNS // 3, COLUMNS, generator=generator
    )
    return weight, mixed + 0.3 * torch.randn(4000, COLUMNS, generator=generator)


def second_moment(x_TX: Tensor) -> Tensor:
    return x_TX.T @ x_TX / len(x_TX)


def damage(packed: Packed, weight: Tensor, inputs: Tensor) -> float:
    return float((inputs @ (unpack(packed) - weight).T).square().mean() / (inputs @ weight.T).square().mean())


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_outputs_on_other_inputs_of_the_kind_are_nearer_by_half(format: Format) -> None:
    weight, inputs = matrices()
    layout = Layout(format, ROWS, COLUMNS, 32)
    packed = compensated(weight, layout, ties(Moment(second_moment(inputs[:2000])), layout))
    assert damage(packed, weight, inputs[2000:]) < 0.5 * damage(quantise(weight, layout), weight, inputs[2000:])


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_inputs_without_ties_give_what_the_search_gives(format: Format) -> None:
    weight, _ = matrices()
    layout = Layout(format, ROWS, COLUMNS, 32)
    packed = compensated(weight, layout, ties(Moment(torch.eye(COLUMNS)), layout))
    assert torch.equal(packed.data, quantise(weight, layout).data)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    weight, inputs = matrices()
    layout = Layout("int4", ROWS, COLUMNS, 32)
    found = ties(Moment(second_moment(inputs)), layout)
    whole = unpack(compensated(weight, layout, found))
    part = unpack(compensated(weight[16:32], Layout("int4", 16, COLUMNS, 32), found))
    torch.testing.assert_close(whole[16:32], part, atol=0, rtol=0)


@pytest.mark.parametrize("columns", [150, 32])
@pytest.mark.parametrize("format", ["int8", "int4"])
def test_pads_and_columns_that_met_nothing(columns: int, format: Format) -> None:
    weight, inputs = (each[:, :columns] for each in matrices())
    inputs = inputs.clone()
    inputs[:, 3] = 0.0
    layout = Layout(format, ROWS, columns, 32)
    for moment in (second_moment(inputs), torch.zeros(columns, columns)):
        found = unpack(compensated(weight, layout, ties(Moment(moment), layout)))
        assert found.shape == weight.shape
        assert float((found - weight).abs().max()) < 3 * float(weight.abs().max()) / 2 ** (BITS[format] - 1)


@pytest.mark.parametrize("rows", [ROWS, 37, 5])
def test_later_rows_make_up_for_earlier_ones(rows: int) -> None:
    """The outputs are for few directions: errors go where nobody looks."""
    weight, inputs = matrices()
    weight = weight[:rows]
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(2000, max(rows // 3, 1), generator=generator)
    gradients = mixed @ torch.randn(max(rows // 3, 1), rows, generator=generator)
    gradients += 0.3 * torch.randn(2000, rows, generator=generator)
    layout = Layout("int4", rows, COLUMNS, 32)
    h, g = second_moment(inputs), second_moment(gradients)

    def errors(outputs: Tensor | None) -> Tensor:
        found = ties(Moment(h, (outputs, None)), layout)
        return unpack(compensated(weight, layout, found)) - weight

    def loss(error: Tensor) -> float:
        return float(torch.trace(g @ error @ h @ error.T))

    assert loss(errors(g)) < 0.7 * loss(errors(None))
    same = errors(torch.eye(rows)) == errors(None)
    assert float(same.float().mean()) > 0.9  # all, but for ties that another order of adding decides


def test_what_takes_turns_has_outputs_of_its_own() -> None:
    weight, inputs = matrices()
    layout = Layout("int4", ROWS, COLUMNS, 32)
    tied = second_moment(torch.randn(200, ROWS, generator=torch.Generator().manual_seed(2)) @ torch.ones(ROWS, ROWS))
    found = ties(Moment(second_moment(inputs), (None, tied)), layout)
    plain = compensated(weight, layout, ties(Moment(second_moment(inputs)), layout))
    assert torch.equal(compensated(weight, layout, found, turn=0).data, plain.data)
    assert not torch.equal(compensated(weight, layout, found, turn=1).data, plain.data)


@pytest.mark.parametrize("columns", [160, 150])
def test_what_meets_most_is_rounded_first(columns: int) -> None:
    """One column meets hundreds of times what others meet: it is exact to half a step, and others take its error."""
    weight, inputs = (each[:, :columns].clone() for each in matrices())
    inputs[:, 77] = 30 * (inputs[:, 77] + inputs[:, 78])
    layout = Layout("int4", ROWS, columns, 32)
    found = ties(Moment(second_moment(inputs)), layout)
    assert found.order_K[0] == 77
    assert sorted(found.order_K.tolist()) == list(range(160))
    packed = compensated(weight, layout, found)
    _, scales_NG = unpack_codes(packed)
    errors_N = (unpack(packed) - weight)[:, 77].abs()
    assert bool((errors_N <= 0.5001 * scales_NG[:, 77 // 32].float().abs()).all())
