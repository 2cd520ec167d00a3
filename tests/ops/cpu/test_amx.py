"""AMX's tiles give AVX-512's bits. Where the processor has no AMX the shipped machine code runs all the same, its tile
instructions executed by an emulator that is held against their definition here."""

from __future__ import annotations

import ctypes
import dataclasses
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from leadline.engine.engine import Engine, EngineConfig
from leadline.engine.scheduler import SchedulerConfig
from leadline.errors import ConfigError
from leadline.model.cpu import CpuModel, handle
from leadline.ops.cpu import native
from leadline.ops.cpu.layout import Format, Layout, Packed, interleave, pack
from tests.engine.models import generate, logprobs, prompt, request, tokens
from tests.engine.vocabulary import ByteTokenizer
from tests.ops.cases import normal
from tests.ops.cpu.amx import compile_emulator, open_emulator, switched_on
from tests.ops.cpu.models import CONFIGS, exact_pair, new_cache, quantised_pair, run, tokens_of
from tests.ops.cpu.test_kernels import linear

NATIVE: Any = native.extension()
ROWS = (1, 2, 15, 16, 17, 33)
INTEGERS: list[tuple[Format, int]] = [("int8", 32), ("int8", 64), ("int4", 32), ("int4", 64)]
LENGTH = 150

each_integer = pytest.mark.parametrize(("format", "group"), INTEGERS)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_emulator(tmp_path_factory.mktemp("amx"))


@pytest.fixture(scope="module")
def emulator(library: Path) -> ctypes.CDLL:
    return open_emulator(library)


@pytest.fixture
def emulated(emulator: ctypes.CDLL) -> Iterator[bool]:
    with switched_on(emulator) as emulated:
        yield emulated


# ---- the instructions --------------------------------------------------------------------------------------------


def shapes_of(*tiles: tuple[int, int], palette: int = 1) -> bytes:
    """LDTILECFG's 64 bytes for tiles of (rows, bytes a row)."""
    bytes_a_row = b"".join(width.to_bytes(2, "little") for _, width in tiles)
    return (
        bytes([palette]) + bytes(15) + bytes_a_row.ljust(32, b"\0") + bytes(rows for rows, _ in tiles).ljust(16, b"\0")
    )


@pytest.mark.parametrize("shape", [(16, 16, 16), (16, 8, 16), (1, 1, 1), (5, 3, 7)])
@pytest.mark.parametrize("signs", range(4))
@pytest.mark.usefixtures("emulated")
def test_a_product_of_tiles_is_the_manuals(emulator: ctypes.CDLL, signs: int, shape: tuple[int, int, int]) -> None:
    """The sum wraps around; what lies outside the shape is zero in tiles and untouched in memory."""
    rows, quads, columns = shape
    generator = torch.Generator().manual_seed(signs)
    a = torch.randint(0, 256, (16, 64), dtype=torch.uint8, generator=generator)
    b = torch.randint(0, 256, (16, 64), dtype=torch.uint8, generator=generator)
    before = torch.randint(-(2**31), 2**31, (16, 16), dtype=torch.int32, generator=generator)
    found = before.clone()
    shapes = shapes_of((rows, 4 * columns), (rows, 4 * quads), (quads, 4 * columns))
    emulator.product(signs, shapes, *(ctypes.c_void_p(each.data_ptr()) for each in (found, a, b)))
    left = (a.view(torch.int8) if signs & 2 else a).long()[:rows, : 4 * quads]
    right = (b.view(torch.int8) if signs & 1 else b).long()[:quads, : 4 * columns].view(quads, columns, 4)
    sums = before[:rows, :columns].long() + torch.einsum("mqi,qni->mn", left.view(rows, quads, 4), right)
    expected = before.clone()
    expected[:rows, :columns] = ((sums + 2**31) % 2**32 - 2**31).int()
    assert torch.equal(found, expected)


@pytest.mark.usefixtures("emulated")
def test_the_shapes_are_kept(emulator: ctypes.CDLL) -> None:
    shapes, back = shapes_of((16, 64), (3, 8), (0, 0), (1, 4)), ctypes.create_string_buffer(64)
    emulator.shapes_back(shapes, back)
    assert back.raw == shapes


WRONG = {
    "a sum narrower than its columns": (shapes_of((4, 16), (4, 8), (2, 20)), signal.SIGILL),
    "rows that do not meet": (shapes_of((4, 16), (5, 8), (2, 16)), signal.SIGILL),
    "a depth that does not fit": (shapes_of((4, 16), (4, 8), (3, 16)), signal.SIGILL),
    "a tile without a shape": (shapes_of((4, 16), (4, 8)), signal.SIGILL),
    "a row too long": (shapes_of((4, 68), (4, 8), (2, 68)), signal.SIGSEGV),
    "a palette that is not there": (shapes_of((4, 16), (4, 8), (2, 16), palette=9), signal.SIGSEGV),
}
CALL = """
import ctypes, faulthandler, sys
faulthandler.enable()
emulator = ctypes.CDLL(sys.argv[1])
emulator.install()
if sys.argv[2] == "unknown":
    emulator.unknown_instruction()
tiles = [ctypes.create_string_buffer(1024) for _ in range(3)]
emulator.product(3, bytes.fromhex(sys.argv[2]), *tiles)
"""


def end_of(library: Path, what: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", CALL, str(library), what], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", WRONG)
def test_what_a_processor_refuses_ends_the_process(library: Path, name: str) -> None:
    """The emulator knows one signal, a processor two."""
    shapes, fault = WRONG[name]
    assert -end_of(library, shapes.hex()).returncode in (signal.SIGILL, fault)


def test_other_unknown_instructions_go_to_the_handler_before(library: Path) -> None:
    ended = end_of(library, "unknown")
    assert -ended.returncode == signal.SIGILL
    assert "Illegal instruction" in ended.stderr


# ---- the choice --------------------------------------------------------------------------------------------------


def test_without_amx_the_choice_is_as_ever(emulator: ctypes.CDLL) -> None:
    there = native.instruction_sets()
    if "amx" not in there:
        with pytest.raises(ConfigError, match="amx"):
            native.choose("amx")
    with switched_on(emulator):
        assert native.instruction_sets()[:2] == ("amx", "avx512")
        assert native.choose("amx") == "amx"
    assert native.instruction_sets() == there


SMALL_STACK = """
import ctypes
class Stack(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
memory = ctypes.create_string_buffer(4096)
ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(ctypes.addressof(memory), 0, 4096)), None)
from leadline.ops.cpu import native
print(native.instruction_sets()[0], native.choose("avx512"))
"""


def test_where_the_system_refuses_tiles_avx512_stays() -> None:
    """A signal stack on which tiles could not be saved is one of its reasons."""
    found = subprocess.run([sys.executable, "-c", SMALL_STACK], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["avx512", "avx512"]


# ---- the kernels -------------------------------------------------------------------------------------------------


@each_integer
@pytest.mark.parametrize("width", [2048, 1408, 10944])
def test_tiles_give_the_bits_of_vnni_for_any_number_of_rows(
    emulator: ctypes.CDLL, emulated: bool, format: Format, group: int, width: int
) -> None:
    """At V2-Lite's widths; the last panel is not full."""
    packed = pack(normal(40, width, seed=1, dtype=torch.float32), format, group)
    x_TK = normal(512, width, dtype=torch.float32)
    whole = linear("avx512", packed, x_TK)
    count = emulator.executed_count()
    for rows in {2048: ROWS, 1408: (7, 8, 9, 24, 512), 10944: (23,)}[width]:
        assert torch.equal(linear("amx", packed, x_TK[:rows]), whole[:rows]), rows
    assert emulator.executed_count() > count or not emulated


@each_integer
@pytest.mark.usefixtures("emulated")
def test_tiles_give_the_bits_of_plain_code(format: Format, group: int) -> None:
    """Strips of groups that are not full, columns that do not fill a group."""
    for columns in (20, 100, 64 * 5):
        packed = pack(normal(33, columns, seed=1, dtype=torch.float32), format, group)
        x_TK = normal(29, columns, dtype=torch.float32)
        assert torch.equal(linear("amx", packed, x_TK), linear("scalar", packed, x_TK)), columns


@pytest.mark.parametrize("format", ["int4", "int8"])
@pytest.mark.usefixtures("emulated")
def test_every_code_and_negative_scales(format: Format) -> None:
    layout = Layout(format, 16, 128, 32)
    data = torch.arange(layout.nbytes).to(torch.uint8)
    data[: layout.scale_bytes] = torch.tensor([-0.25]).half().view(torch.uint8).repeat(layout.scale_bytes // 2)
    packed, x_TK = Packed(layout, data), normal(16, 128, dtype=torch.float32) * 3
    assert torch.equal(linear("amx", packed, x_TK), linear("scalar", packed, x_TK))


@each_integer
@pytest.mark.usefixtures("emulated")
def test_a_broken_row_does_not_touch_its_neighbours(format: Format, group: int) -> None:
    packed, x_TK = (
        pack(normal(16, 128, seed=1, dtype=torch.float32), format, group),
        normal(16, 128, dtype=torch.float32),
    )
    healthy = linear("amx", packed, x_TK)
    x_TK[3, 5] = float("nan")
    broken = linear("amx", packed, x_TK)
    assert not broken[3].isfinite().any()
    assert torch.equal(broken[4:], healthy[4:])


@each_integer
@pytest.mark.usefixtures("emulated")
def test_swiglu_in_tiles(format: Format, group: int) -> None:
    gate, up = (normal(80, 96, seed=seed, dtype=torch.float32) for seed in (1, 2))
    packed, x_TD = pack(interleave(gate, up), format, group), normal(150, 96, dtype=torch.float32)

    def made(isa: str) -> Tensor:
        out = torch.zeros(150, 128)
        NATIVE.swiglu(isa, handle(NATIVE, packed), x_TD.data_ptr(), 150, out.data_ptr())
        return out

    assert torch.equal(made("amx"), made("avx512"))


# ---- whole models ------------------------------------------------------------------------------------------------


def models(name: str, mode: str) -> tuple[CpuModel, CpuModel]:
    """The same weights on AMX and on AVX-512."""

    def bound(isa: str) -> CpuModel:
        if mode == "exact":
            return exact_pair(CONFIGS[name], isa=isa)[0]
        return quantised_pair(CONFIGS[name], mode, isa=isa)[0]  # type: ignore[arg-type]

    return bound("amx"), bound("avx512")


@pytest.mark.parametrize("mode", ["exact", "int8", "int4"])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.usefixtures("emulated")
def test_a_model_gives_the_same_logits_cut_anywhere(name: str, mode: str) -> None:
    """Every expert has its own number of rows; passes of one token are VNNI's."""
    config, ids, pages = CONFIGS[name], tokens_of(CONFIGS[name], LENGTH), [4, 0, 9, 2, 7]
    tiles, vectors = models(name, mode)
    expected = run(vectors, new_cache(config), ids, [0], [LENGTH], [pages])
    for cuts in ([], [1, 18, 64, 65, 149]):
        cache, parts = new_cache(config), []
        for start, end in zip([0, *cuts], [*cuts, LENGTH], strict=True):
            parts.append(run(tiles, cache, ids[start:end], [start], [end - start], [pages]))
        assert torch.equal(torch.cat(parts), expected), cuts


@pytest.mark.usefixtures("emulated")
def test_answers_of_eight_at_once_with_preemption_are_those_of_avx512() -> None:
    """All eight need a second page at about the same time, and there is none."""
    requests = [request(f"r{i}", prompt(56 + i, i), logprobs=0, max_tokens=12) for i in range(8)]
    said, preempted = [], []
    for model in models("lite", "int4"):
        config = EngineConfig(name="lite", cache_tokens=64 * 8, prefix_cache=False)
        engine = Engine(model, ByteTokenizer(), dataclasses.replace(config, scheduler=SchedulerConfig(8, 64)))
        outputs = generate(engine, *requests)
        said.append({key: (tokens(each), logprobs(each)) for key, each in outputs.items()})
        preempted.append(engine.scheduler.preemptions)
    assert said[0] == said[1]
    assert min(preempted) > 0
