"""Each kernel on each instruction set of this machine against its reference, and their bits against each other's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from leadline.errors import ConfigError
from leadline.model.cpu import handle
from leadline.ops.attention import absorbed_attention
from leadline.ops.cpu import native
from leadline.ops.cpu.layout import Format, Layout, Packed, interleave, pack, pack_codes, unpack, unpack_codes
from leadline.ops.experts import swiglu
from leadline.ops.norm import rms_norm
from tests.ops.cases import Paged, normal

SETS = native.instruction_sets()
NATIVE: Any = native.extension()
FORMATS: list[tuple[Format, int]] = [("f32", 0), ("bf16", 0), ("int8", 32), ("int8", 64), ("int4", 32), ("int4", 64)]
ROWS = (1, 2, 15, 16, 17, 33)

each_set = pytest.mark.parametrize("isa", SETS)
each_format = pytest.mark.parametrize(("format", "group"), FORMATS)


def linear(isa: str, packed: Packed, x_TK: Tensor) -> Tensor:
    out_TN = torch.full((len(x_TK), packed.layout.rows), float("nan"))
    x_TK = x_TK.contiguous()
    NATIVE.linear(isa, handle(NATIVE, packed), x_TK.data_ptr(), len(x_TK), out_TN.data_ptr())
    return out_TN


def quantise_rows(isa: str, x_TK: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """(codes (T, K in whole groups) int8, scales (T, G)) as the kernels see them."""
    rows, columns = x_TK.shape
    groups = -(-columns // group)
    codes, scales = torch.empty(rows, groups * group, dtype=torch.int8), torch.empty(rows, groups)
    NATIVE.quantise(isa, x_TK.data_ptr(), rows, columns, group, codes.data_ptr(), scales.data_ptr())
    return codes, scales


def expected_linear(packed: Packed, x_TK: Tensor) -> Tensor:
    """In float64 from the very codes: sums of integers within a group, times both scales."""
    layout = packed.layout
    if not layout.quantised:
        return x_TK.double() @ unpack(packed).double().T
    codes_NK, scales_NG = unpack_codes(packed)
    x_codes, x_scales = quantise_rows(SETS[0], x_TK, layout.group)
    weight: Tensor = (codes_NK.double() - (8 if layout.format == "int4" else 128)).unflatten(1, (-1, layout.group))
    rows: Tensor = x_codes.double().unflatten(1, (-1, layout.group))
    sums = torch.einsum("tgk,ngk->tng", rows, weight)
    return (sums * scales_NG.double() * x_scales.double()[:, None]).sum(-1)


def test_the_sets_of_this_machine_are_named_fastest_first() -> None:
    assert SETS[-1] == "scalar"
    assert native.choose() == SETS[0] or native.choose() is None


def test_a_set_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="sve"):
        native.choose("sve")
    monkeypatch.setenv("LEADLINE_ISA", "scalar")
    assert native.choose() == "scalar"
    monkeypatch.setenv("LEADLINE_ISA", "none")
    assert native.choose() is None


@each_set
@each_format
@pytest.mark.parametrize("shape", [(64, 256), (48, 100), (7, 64), (33, 33)])
def test_linear_is_its_reference(isa: str, format: Format, group: int, shape: tuple[int, int]) -> None:
    packed = pack(normal(*shape, seed=1, dtype=torch.float32), format, group)
    for rows in (1, 5, 13):
        x_TK = normal(rows, shape[1], dtype=torch.float32)
        torch.testing.assert_close(linear(isa, packed, x_TK).double(), expected_linear(packed, x_TK), rtol=0, atol=2e-4)


@each_format
def test_every_set_gives_the_same_bits(format: Format, group: int) -> None:
    packed = pack(normal(80, 192, seed=1, dtype=torch.float32), format, group)
    x_TK = normal(9, 192, dtype=torch.float32)
    first, *others = (linear(isa, packed, x_TK) for isa in SETS)
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("isa", [name for name in SETS if name != "scalar"])
@each_format
@pytest.mark.parametrize("width", [2048, 1408, 10944])
def test_a_rows_bits_do_not_depend_on_how_many_there_are(isa: str, format: Format, group: int, width: int) -> None:
    """At V2-Lite's widths."""
    packed = pack(normal(96, width, seed=1, dtype=torch.float32), format, group)
    x_TK = normal(512, width, dtype=torch.float32)
    whole = linear(isa, packed, x_TK)
    for rows in ROWS:
        assert torch.equal(linear(isa, packed, x_TK[:rows]), whole[:rows]), rows
        assert torch.equal(linear(isa, packed, x_TK[-rows:]), whole[-rows:]), rows


@each_set
@pytest.mark.parametrize("format", ["int4", "int8"])
def test_negative_scales_and_every_code(isa: str, format: Format) -> None:
    """int4 codes run from -8 to 7; int8 codes from -127."""
    layout = Layout(format, 16, 64, 32)
    data = torch.randint(0 if format == "int4" else 1, 256, (layout.nbytes,), dtype=torch.uint8)
    data[: layout.scale_bytes] = (
        torch.tensor([-0.25], dtype=torch.float16).view(torch.uint8).repeat(layout.scale_bytes // 2)
    )
    packed, x_TK = Packed(layout, data), normal(3, 64, dtype=torch.float32) * 3
    torch.testing.assert_close(linear(isa, packed, x_TK).double(), expected_linear(packed, x_TK), rtol=1e-5, atol=1e-3)


@each_set
@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_the_greatest_sums_of_int4_are_exact(isa: str, group: int, rows: int) -> None:
    """Every code 15 or 0 and every activation at the end of its range: where a sum is kept in 16 bits it must fit."""
    codes_NK = torch.full((16, 192), 15, dtype=torch.uint8)
    codes_NK[1::2] = 0
    packed = pack_codes(codes_NK, torch.ones(16, 192 // group, dtype=torch.float16), "int4", group, 192)
    x_TK = torch.ones(rows, 192) * torch.tensor([1.0, -1.0] * rows)[:rows, None]
    expected_TN = 192 * torch.tensor([7.0, -8.0] * 8) * x_TK[:, :1]
    torch.testing.assert_close(linear(isa, packed, x_TK), expected_TN, rtol=1e-6, atol=0)


@each_set
@pytest.mark.parametrize("group", [32, 64])
def test_rows_are_quantised_to_the_nearest_code(isa: str, group: int) -> None:
    x_TK = normal(5, 150, dtype=torch.float32)
    x_TK[1] = 0.0
    codes, scales = quantise_rows(isa, x_TK, group)
    assert (codes[1] == 0).all()
    assert (scales[1] == 0).all()
    values = codes.float() * scales.repeat_interleave(group, dim=1)
    assert (values[:, 150:] == 0).all()
    error = (values[:, :150] - x_TK).abs()
    assert (error <= scales.repeat_interleave(group, dim=1)[:, :150] * 0.5001).all()


@each_set
@each_format
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_number_is_not_lost(isa: str, format: Format, group: int, value: float) -> None:
    packed = pack(normal(16, 128, seed=1, dtype=torch.float32), format, group)
    x_TK = normal(3, 128, dtype=torch.float32)
    healthy = linear(isa, packed, x_TK)
    x_TK[1, 5] = value
    broken = linear(isa, packed, x_TK)
    assert not broken[1].isfinite().any()
    assert torch.equal(broken[::2], healthy[::2])


@each_set
@each_format
@pytest.mark.parametrize("inner", [64, 48, 160])
def test_swiglu_is_its_reference(isa: str, format: Format, group: int, inner: int) -> None:
    gate, up = (normal(inner, 96, seed=seed, dtype=torch.float32) for seed in (1, 2))
    packed, x_TD = pack(interleave(gate, up), format, group), normal(40, 96, dtype=torch.float32)
    out = torch.zeros(40, -(-inner // 64) * 64)
    NATIVE.swiglu(isa, handle(NATIVE, packed), x_TD.data_ptr(), 40, out.data_ptr())
    both: Tensor = expected_linear(packed, x_TD).unflatten(1, (-1, 2, 16)).transpose(1, 2).flatten(1, 1)
    expected = swiglu(both.flatten(1))
    torch.testing.assert_close(out[:, :inner].double(), expected[:, :inner], rtol=1e-5, atol=2e-3)


@each_set
@pytest.mark.parametrize("width", [64, 100, 7])
def test_the_norm_is_its_reference(isa: str, width: int) -> None:
    x_TD, weight = normal(4, width, dtype=torch.float32), normal(width, seed=1, dtype=torch.float32)
    out = torch.empty_like(x_TD)
    NATIVE.norm(isa, x_TD.data_ptr(), weight.data_ptr(), 1e-6, 4, width, out.data_ptr())
    torch.testing.assert_close(out, rms_norm(x_TD, weight, 1e-6), rtol=1e-5, atol=1e-6)


def attend(isa: str, q_HR: Tensor, rows_PBR: Tensor, pages: Tensor, length: int, values: int, scale: float) -> Tensor:
    heads, width = q_HR.shape
    out = torch.empty(heads, values)
    half = rows_PBR.dtype == torch.bfloat16
    q_HR, pages = q_HR.contiguous(), pages.contiguous()
    NATIVE.attend(
        isa, q_HR.data_ptr(), heads, width, values, scale, rows_PBR.data_ptr(), half, pages.data_ptr(),
        rows_PBR.shape[1], length, out.data_ptr(),
    )  # fmt: skip
    return out


@each_set
@pytest.mark.parametrize("heads", [4, 11, 16])
@pytest.mark.parametrize("widths", [(48, 32), (44, 36), (576, 512)])
def test_attention_over_pages_is_its_reference(isa: str, heads: int, widths: tuple[int, int]) -> None:
    """Contexts that end within a block of tokens, at a segment's end and beyond it."""
    paged = Paged(((1, 1), (13, 1), (128, 1), (301, 1)), page_size=16)
    rows = paged.rows(widths[0], torch.float32)
    tables, contexts, starts = paged.places()
    q = normal(len(contexts), heads, widths[0], dtype=torch.float32)
    expected = absorbed_attention.reference(q, rows, tables, contexts, starts, widths[1], 0.11)
    for s, length in enumerate(contexts):
        actual = attend(isa, q[s], rows, tables[s], length, widths[1], 0.11)
        torch.testing.assert_close(actual, expected[s], rtol=1e-4, atol=1e-5)


@each_set
@pytest.mark.parametrize("heads", [4, 11, 16])
@pytest.mark.parametrize("widths", [(48, 32), (44, 36), (576, 512)])
def test_attention_over_bfloat16_rounds_queries_and_weights(isa: str, heads: int, widths: tuple[int, int]) -> None:
    """A weight and the sum of the weights move by at most 2^-9 of themselves each, so a value by 2^-8 of the mean
    magnitude."""
    paged = Paged(((1, 1), (13, 1), (128, 1), (301, 1)), page_size=16)
    rows = paged.rows(widths[0], torch.bfloat16)
    tables, contexts, starts = paged.places()
    q = normal(len(contexts), heads, widths[0], dtype=torch.float32)
    rounded = q.bfloat16().double(), rows.double()
    expected = absorbed_attention.reference(*rounded, tables, contexts, starts, widths[1], 0.11)
    magnitudes = rows.double()
    for s, length in enumerate(contexts):
        context = magnitudes[tables[s]].flatten(0, 1)[:length]
        weights = torch.softmax(rounded[0][s] @ context.T * 0.11, dim=-1)
        bound = 2**-8 * (weights @ context[:, : widths[1]].abs()) + 1e-5
        actual = attend(isa, q[s], rows, tables[s], length, widths[1], 0.11)
        assert ((actual - expected[s]).abs() <= bound).all(), length


def test_rounding_queries_and_weights_costs_no_more_than_rounding_the_cache() -> None:
    """At V2-Lite's widths, against exact attention over rows that were never rounded."""
    paged = Paged(((1000, 1),), page_size=64)
    exact, (tables, contexts, starts) = paged.rows(576, torch.float32), paged.places()
    q = normal(1, 16, 576, dtype=torch.float32)
    stored = exact.bfloat16()
    true, cached = (
        absorbed_attention.reference(q.double(), rows.double(), tables, contexts, starts, 512, 0.05)
        for rows in (exact, stored)
    )
    actual = attend(SETS[0], q[0], stored, tables[0], 1000, 512, 0.05)
    assert (actual - true[0]).norm() < 1.6 * (cached[0] - true[0]).norm()


WITHOUT_BF16 = ["avx512 without bf16"] if "avx512" in SETS else []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("widths", [(44, 36), (576, 512)])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (1e-19, 1e-19), (1.0, 3e-38), (1e-38, 1.0)])
def test_attention_gives_the_same_bits_on_every_set(
    dtype: torch.dtype, widths: tuple[int, int], scales: tuple[float, float]
) -> None:
    """With VDPBF16PS and without it; also where its zero for what is below 2^-126 matters."""
    paged = Paged(((301, 1),), page_size=64)
    rows, (tables, _, _) = (paged.rows(widths[0], torch.float32) * scales[1]).to(dtype), paged.places()
    q = normal(11, widths[0], dtype=torch.float32) * scales[0]
    first, *others = (attend(isa, q, rows, tables[0], 301, widths[1], 0.11) for isa in (*SETS, *WITHOUT_BF16))
    assert all(torch.equal(first, other) for other in others)
    assert float(torch.tensor(1e-40) * 1) > 0  # the thread's own denormals are as they were


@each_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_broken_query_breaks_its_own_head(isa: str, dtype: torch.dtype) -> None:
    paged = Paged(((20, 1),), page_size=64)
    rows, (tables, _, _) = paged.rows(48, dtype), paged.places()
    q = normal(4, 48, dtype=torch.float32)
    healthy = attend(isa, q, rows, tables[0], 20, 32, 0.11)
    q[1, 3] = float("nan")
    broken = attend(isa, q, rows, tables[0], 20, 32, 0.11)
    assert broken[1].isnan().all()
    assert torch.equal(broken[[0, 2, 3]], healthy[[0, 2, 3]])


@each_set
def test_far_scores_do_not_overflow(isa: str) -> None:
    rows, (tables, _, _) = (
        Paged(((200, 1),), page_size=64).rows(32, torch.float32),
        Paged(((200, 1),), page_size=64).places(),
    )
    q = normal(4, 32, dtype=torch.float32) * 1000
    expected = absorbed_attention.reference(q[None], rows, tables, (200,), (0, 1), 16, 1.0)[0]
    torch.testing.assert_close(attend(isa, q, rows, tables[0], 200, 16, 1.0), expected, rtol=1e-4, atol=1e-4)


@each_set
@pytest.mark.parametrize("width", [5, 64, 1000])
def test_the_likeliest_is_the_first_of_the_greatest(isa: str, width: int) -> None:
    logits = normal(4, width, dtype=torch.float32)
    logits[1, 2] = logits[1, 4] = 9.0
    logits[2, 3] = float("nan")
    logits[3] = float("-inf")
    peaks, places = torch.empty(4), torch.empty(4, dtype=torch.int64)
    NATIVE.likeliest(isa, logits.data_ptr(), 4, width, width, peaks.data_ptr(), places.data_ptr())
    assert places[:2].tolist() == [int(logits[0].argmax()), 2]
    assert peaks[:2].tolist() == [float(logits[0].max()), 9.0]
    assert peaks[2].isnan()
    assert float(peaks[3]) == float("-inf")
