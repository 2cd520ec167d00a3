"""AMX for tests: the processor's own, or `amx_emulator.cpp` where it has none. See there."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leadline.ops.cpu import native

SOURCE = Path(__file__).with_name("amx_emulator.cpp")


def compile_emulator(folder: Path) -> Path:
    """By the compiler that built the extension, or its like."""
    library = folder / "amx_emulator.so"
    compiler = os.environ.get("CXX", "c++")
    options = "-std=c++20", "-O3", "-mavx2", "-shared", "-fPIC"
    subprocess.run([compiler, *options, str(SOURCE), "-o", str(library)], check=True)
    return library


def open_emulator(library: Path) -> ctypes.CDLL:
    emulator = ctypes.CDLL(str(library))
    emulator.executed_count.restype = ctypes.c_long
    return emulator


@contextlib.contextmanager
def switched_on(emulator: ctypes.CDLL) -> Iterator[bool]:
    """Whether it is emulated."""
    module: Any = native.extension()
    if "amx" in native.instruction_sets():
        yield False
        return
    emulator.install()
    module.emulate_amx(True)
    try:
        yield True
    finally:
        module.emulate_amx(False)
        emulator.remove_handler()
