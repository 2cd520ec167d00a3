"""What the benchmarks say about the machine they ran on."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

import leadline


def describe() -> dict[str, Any]:
    """Processor, memory, load now, and the versions of what is compared."""
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    memory = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return {
        "cpu": cpu or platform.processor(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**20, 1),
        "load": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "leadline": leadline.__version__,
    }


def spread(values: Sequence[float], form: str) -> str:
    """The median, and in brackets the range: a cell of a table."""
    middle, least, most = (format(each, form) for each in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({least}-{most})"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
