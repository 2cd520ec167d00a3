"""A file's bytes as memory: mapped, so that they are there at once, and moved into huge pages while they are in use.

Who waits for a copy before anything runs waits long: memory that the system must find first may come at less than a
gigabyte a second. Who only maps reads through pages of 4 KiB for ever (see `memory.py`). So a thread copies piece after
piece into huge pages, and mremap(2) puts them in the place of what was mapped. Addresses stay as they are. A reader who
comes at that moment waits for the call to end and finds the same bytes: the kernel takes the old pages away and puts
the new ones there under one lock, which a page fault takes too.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from leadline.ops.cpu.memory import HUGE

PIECE = 32 << 20
"""Bytes: what is held twice for a moment."""

_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000  # as on every Linux that PyTorch runs on
_NONE, _READ_WRITE = 0, mmap.PROT_READ | mmap.PROT_WRITE
_FAILED = ctypes.c_void_p(-1).value


def supported() -> bool:
    return sys.platform == "linux" and hasattr(mmap, "MADV_HUGEPAGE")


def map_moving(path: Path, offset: int, size: int) -> Tensor:
    """(size,) uint8: the file's bytes from a page's beginning on. Private: what is done to them does not reach the
    file, and they must not be written to before `settle` returns."""
    moving = Moving(path, offset, size)
    array = (ctypes.c_uint8 * size).from_address(moving.address)
    weakref.finalize(array, moving.release).atexit = False  # other threads may still read it then
    block = torch.frombuffer(array, dtype=torch.uint8)  # keeps the array
    moving.start()
    return block


def settle() -> bool:
    """Wait until nothing moves any more; whether all of it lies in memory of its own."""
    waited = [moving.wait() for moving in list(_all)]  # for each of them, whatever came of the others
    return all(waited)


class Moving:
    """One mapping, and the thread that moves it. Whoever is last, the thread or the tensor's end, unmaps it."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self._offset, self._size, self._room = offset, size, -(-size // HUGE) * HUGE
        self._file = path.open("rb", buffering=0)
        self.address = _reserve(self._room)
        self._map(0, size)
        self._lock = threading.RLock()
        self._released = self._ended = self.gone = False
        self.moved = 0
        self._thread = threading.Thread(target=self._run, name="leadline-pages", daemon=True)

    def start(self) -> None:
        _all.add(self)
        self._thread.start()

    def wait(self) -> bool:
        self._thread.join()
        return self.moved >= self._size

    def release(self) -> None:
        with self._lock:
            self._released = True
            self._unmap()

    def _map(self, place: int, count: int) -> None:
        flags = mmap.MAP_PRIVATE | _MAP_FIXED | _MAP_NORESERVE
        _call("mmap", self.address + place, count, _READ_WRITE, flags, self._file.fileno(), self._offset + place)

    def _unmap(self) -> None:
        if self._released and self._ended and not self.gone:
            self.gone = True
            _call("munmap", self.address, self._room)

    def _run(self) -> None:
        with self._file:
            try:
                while self.moved < self._size and not self._released:
                    self._move(min(PIECE, self._room - self.moved))
            except OSError:  # no memory, or no such call here: what is mapped stays so
                pass
        with self._lock:
            self._ended = True
            self._unmap()

    def _move(self, count: int) -> None:
        """The next piece, a multiple of a huge page long."""
        source = _reserve(count)
        wanted = min(count, self._size - self.moved)
        try:
            _call("mprotect", source, count, _READ_WRITE)
            _call("madvise", source, count, mmap.MADV_HUGEPAGE)
            self._read(memoryview((ctypes.c_uint8 * wanted).from_address(source)).cast("B"))
            _call("mremap", source, count, count, _MREMAP_MAYMOVE | _MREMAP_FIXED, self.address + self.moved)
        except OSError:
            _call("munmap", source, count)
            self._map(self.moved, wanted)  # a call that failed half way may have taken the old pages
            raise
        self.moved += count

    def _read(self, piece: memoryview) -> None:
        done = 0
        while done < len(piece):
            read = os.preadv(self._file.fileno(), [piece[done:]], self._offset + self.moved + done)
            if read == 0:
                raise OSError("the file has become shorter")
            done += read


_all: weakref.WeakSet[Moving] = weakref.WeakSet()


def _reserve(count: int) -> int:
    """Addresses for so many bytes, a multiple of a huge page, from a huge page's beginning on."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    found = _call("mmap", None, count + HUGE, _NONE, flags, -1, 0)
    start = found + -found % HUGE
    for place, surplus in ((found, start - found), (start + count, found + HUGE - start)):
        if surplus:
            _call("munmap", place, surplus)
    return start


@functools.cache
def _function(name: str) -> Callable[..., int | None]:
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    arguments = {
        "mmap": (pointer, size, number, number, number, ctypes.c_long),
        "mremap": (pointer, size, size, number, pointer),
        "mprotect": (pointer, size, number),
        "madvise": (pointer, size, number),
        "munmap": (pointer, size),
    }
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    function.argtypes = arguments[name]
    function.restype = pointer if name in ("mmap", "mremap") else number
    return cast("Callable[..., int | None]", function)


def _call(name: str, *arguments: int | None) -> int:
    """A system call's answer, or OSError."""
    answer = _function(name)(*arguments)
    if answer in (_FAILED, -1):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return answer or 0
