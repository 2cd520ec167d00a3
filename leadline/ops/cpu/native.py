"""The compiled kernels: whether they are here, and which instruction set they use.

The extension is optional: where it was not built everything runs on PyTorch. `LEADLINE_ISA` forces an instruction set
(amx, avx512, avxvnni, avx2, neon, scalar) or, with `none`, PyTorch.
"""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

from leadline.errors import ConfigError

VARIABLE = "LEADLINE_ISA"


@functools.cache
def extension() -> Any | None:
    """The compiled module, or None where it was not built."""
    try:
        return importlib.import_module("leadline.ops.cpu._kernels")
    except ImportError:
        return None


def instruction_sets() -> tuple[str, ...]:
    """Those that this machine and this build both have, the fastest first; none without the extension."""
    module = extension()
    return () if module is None else tuple(module.instruction_sets())


def choose(wanted: str | None = None) -> str | None:
    """The set to use: `wanted`, else what `LEADLINE_ISA` says, else the fastest; None for PyTorch.

    Raises `ConfigError` for one that is not here.
    """
    there = instruction_sets()
    name = wanted or os.environ.get(VARIABLE) or "auto"
    if name == "auto":
        return there[0] if there else None
    if name == "none":
        return None
    if name not in there:
        here = ", ".join(there) or "none: the kernels are not built"
        raise ConfigError(f"instruction set {name!r} is not here ({here})", param=VARIABLE)
    return name


def threads() -> int:
    """As many as this process may use cores, or what `OMP_NUM_THREADS` says if that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores, int(asked))) if asked.isdigit() else cores
