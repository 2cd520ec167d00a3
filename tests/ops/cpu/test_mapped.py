"""Weights that are there at once, and lie in memory of their own soon after, at the same addresses."""

from __future__ import annotations

import gc
import itertools
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from leadline.ops.cpu import mapped
from leadline.ops.cpu.memory import HUGE

pytestmark = pytest.mark.skipif(not mapped.supported(), reason="moves pages by a call that only Linux has")

OFFSET, SIZE = 4096, 7 * HUGE + 12345


@pytest.fixture(autouse=True)
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "PIECE", 2 * HUGE)


@pytest.fixture
def content() -> Tensor:
    return torch.randint(0, 256, (SIZE,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def file(tmp_path: Path, content: Tensor) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"h" * OFFSET + content.numpy().tobytes())
    return path


def mappings(start: int) -> list[str]:
    """What lies at the addresses of a block, line by line of /proc/self/maps."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(each, 16) for each in line.split()[0].split("-"))
        if first < start + SIZE and start < last:
            found.append(line)
    return found


def test_the_same_bytes_at_once_and_in_memory_of_their_own(file: Path, content: Tensor) -> None:
    block = mapped.map_moving(file, OFFSET, SIZE)
    assert torch.equal(block, content)
    assert mapped.settle()
    assert torch.equal(block, content)
    assert block.data_ptr() % HUGE == 0
    assert not any(str(file) in line for line in mappings(block.data_ptr()))
    block.zero_()
    assert file.read_bytes()[OFFSET:] == content.numpy().tobytes()


def test_readers_never_see_anything_else(file: Path, content: Tensor) -> None:
    wrong, rounds, over = [], itertools.count(), threading.Event()

    def read(block: Tensor) -> None:
        while not over.is_set():
            next(rounds)
            if not torch.equal(block, content):
                wrong.append(block)

    for _ in range(5):
        over.clear()
        block = mapped.map_moving(file, OFFSET, SIZE)
        readers = [threading.Thread(target=read, args=(block,)) for _ in range(3)]
        for reader in readers:
            reader.start()
        assert mapped.settle()
        over.set()
        for reader in readers:
            reader.join()
        assert torch.equal(block, content)
    assert wrong == []
    assert next(rounds) >= 15


@pytest.mark.parametrize("settled", [True, False])
def test_nothing_is_left_when_the_tensor_is_gone(file: Path, settled: bool) -> None:
    block = mapped.map_moving(file, OFFSET, SIZE)
    (moving,) = (each for each in mapped._all if each.address == block.data_ptr())
    part = block[100:200]
    if settled:
        mapped.settle()
    del block
    gc.collect()
    before = moving.gone  # a part keeps the whole
    del part
    gc.collect()
    moving.wait()
    assert (before, moving.gone) == (False, True)
    assert not any(str(file) in line for line in mappings(moving.address))


@pytest.mark.parametrize("failing", ["madvise", "mremap"])
def test_what_cannot_be_moved_stays_mapped(
    failing: str, file: Path, content: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, count = mapped._call, itertools.count()

    def refuse(name: str, *arguments: int | None) -> int:
        if name == failing and next(count) == 1:  # the second piece
            raise OSError("not here")
        return call(name, *arguments)

    monkeypatch.setattr(mapped, "_call", refuse)
    block = mapped.map_moving(file, OFFSET, SIZE)
    assert not mapped.settle()
    assert torch.equal(block, content)
    assert sum(str(file) in line for line in mappings(block.data_ptr())) > 0
