"""Memory for weights: on cache lines, zero, private and asked for in huge pages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from torch import Tensor

from leadline.ops.cpu.memory import HUGE, allocate

SMAPS = Path("/proc/self/smaps")


def mapping_flags(block: Tensor) -> set[str]:
    """The kernel's two-letter flags (proc(5), VmFlags) of the mapping that `block` begins in."""
    inside = False
    for line in SMAPS.read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, end = (int(each, 16) for each in first.split("-"))
            inside = start <= block.data_ptr() < end
        elif inside and first == "VmFlags:":
            return set(line.split()[1:])
    raise AssertionError("no mapping holds the block")


@pytest.mark.parametrize("nbytes", [1, 100, HUGE - 1, HUGE, 3 * HUGE + 5])
def test_blocks_lie_on_cache_lines_and_are_zero(nbytes: int) -> None:
    block = allocate(nbytes)
    assert block.numel() == nbytes
    assert block.data_ptr() % 64 == 0
    assert not block.any()


@pytest.mark.skipif(sys.platform != "linux" or not SMAPS.exists(), reason="reads Linux' list of mappings")
def test_large_blocks_ask_for_huge_pages_and_are_not_shared() -> None:
    """Shared anonymous memory never gets huge pages where shmem's are off, which is the kernel's default."""
    flags = mapping_flags(allocate(4 * HUGE))
    assert "hg" in flags
    assert "sh" not in flags
