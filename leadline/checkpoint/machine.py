"""What this machine has for a model: memory that may really be used, disk, GPUs, bandwidth.

The least of every limit counts: free memory, each control group's headroom on the way up, the address-space limit. A
container that is killed for memory gives no error message, so the limits are read before anything is loaded. No torch
here.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import re
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from leadline.errors import ConfigError, ResourceError

GIB = 1 << 30
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_UNITS |= {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}

_UNLIMITED = 1 << 60  # version 1 of control groups writes "no limit" as a number near 2^63
_NO_PROC_SHARE = 0.7  # of physical memory, where the system does not say what is free

# Published memory bandwidth in bytes a second, by a part of the name the driver gives.
GPU_BANDWIDTH = {
    "B200": 8.0e12,
    "H200": 4.8e12,
    "H100": 3.35e12,
    "A100": 2.04e12,
    "L40S": 0.864e12,
    "RTX 5090": 1.79e12,
    "RTX 4090": 1.01e12,
    "RTX 3090": 0.936e12,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    total: int
    free: int

    @property
    def bandwidth(self) -> float | None:
        """Bytes a second from the maker's sheet; None for a GPU the table does not know."""
        return next((rate for part, rate in GPU_BANDWIDTH.items() if part in self.name), None)


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """`memory` bytes may still be taken by this process; `memory_reason` says which limit that is."""

    memory: int
    memory_reason: str
    gpus: tuple[Gpu, ...] = ()
    cpus: int = 1


def read_machine(root: Path = Path("/")) -> Machine:
    """This machine now. `root` is where /proc and /sys are looked for."""
    limits = [*_free_memory(root), *_control_groups(root), *_address_space(root)]
    if not limits:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        limits = [(int(physical * _NO_PROC_SHARE), "of physical memory")]
    memory, reason = min(limits)
    return Machine(max(memory, 0), reason, read_gpus(), os.cpu_count() or 1)


def _free_memory(root: Path) -> Iterator[tuple[int, str]]:
    match = re.search(r"^MemAvailable:\s+(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    if match:
        yield int(match.group(1)) << 10, "free memory"


def _control_groups(root: Path) -> Iterator[tuple[int, str]]:
    """The headroom of this process's group and of every group above it, in either version."""
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _headroom(mount, path, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            yield from _headroom(mount / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes")


def _headroom(mount: Path, path: str, limit_file: str, usage_file: str) -> Iterator[tuple[int, str]]:
    group = mount / path.strip("/")
    while group.is_relative_to(mount):
        limit = _read(group / limit_file).strip()
        if limit.isdigit() and int(limit) < _UNLIMITED:
            used = int(_read(group / usage_file).strip() or 0) - _reclaimable(group)
            yield int(limit) - max(used, 0), f"left of the control group's {int(limit):,} bytes"
        group = group.parent


def _reclaimable(group: Path) -> int:
    """Cached file pages count as use and are dropped when memory is wanted."""
    match = re.search(r"^(?:total_)?inactive_file (\d+)", _read(group / "memory.stat"), re.MULTILINE)
    return int(match.group(1)) if match else 0


def _address_space(root: Path) -> Iterator[tuple[int, str]]:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = _read(root / "proc/self/statm").split()
    if limit != resource.RLIM_INFINITY and pages:
        used = int(pages[0]) * os.sysconf("SC_PAGE_SIZE")
        yield limit - used, f"left of the address-space limit of {limit:,} bytes"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def read_gpus() -> tuple[Gpu, ...]:
    """NVIDIA's GPUs as the driver's own tool lists them, those that CUDA_VISIBLE_DEVICES leaves."""
    if shutil.which("nvidia-smi") is None:
        return ()
    command = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return _visible(parse_gpus(listing))


def parse_gpus(listing: str) -> tuple[Gpu, ...]:
    """Lines of `name, MiB, MiB`; a line with other things in it (a GPU without own memory) is left out."""
    rows = (line.rsplit(",", 2) for line in listing.splitlines())
    return tuple(
        Gpu(row[0].strip(), int(row[1]) << 20, int(row[2]) << 20)
        for row in rows
        if len(row) == 3 and row[1].strip().isdigit() and row[2].strip().isdigit()
    )


def _visible(gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return gpus
    indices = [part.strip() for part in chosen.split(",")]
    return tuple(gpus[int(index)] for index in indices if index.isdigit() and int(index) < len(gpus))


def measure_bandwidth(block_bytes: int = 32 << 20, rounds: int = 30) -> float:
    """Bytes a second that all cores together read and write, the best of a few copies too large for any cache: what
    else runs takes its share of the others."""
    workers = min(os.cpu_count() or 1, 8)
    pairs = [(bytearray(block_bytes), bytearray(block_bytes)) for _ in range(workers)]
    with ThreadPoolExecutor(workers) as pool:
        seconds = min(_timed_copies(pool, pairs) for _ in range(rounds))
    return 2 * workers * block_bytes / seconds


def _timed_copies(pool: ThreadPoolExecutor, pairs: list[tuple[bytearray, bytearray]]) -> float:
    started = time.perf_counter()
    list(pool.map(_copy, pairs))
    return time.perf_counter() - started


def _copy(pair: tuple[bytearray, bytearray]) -> None:
    """memmove through ctypes, which lets the other threads run meanwhile; a plain slice copy would not."""
    target, source = ((ctypes.c_char * len(block)).from_buffer(block) for block in pair)
    ctypes.memmove(target, source, len(source))


def check_space(folder: Path, needed: int) -> None:
    """Refuse to begin what the disk cannot hold; `folder` need not exist yet."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ResourceError(f"{folder} needs {needed:,} bytes of disk, {free:,} are free on {existing}")


def parse_bytes(text: str | int) -> int:
    """`8GiB`, `8G` (the same), `8GB` (10^9), `500MB`, or plain bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(text))
    if match is None or match.group(2).lower() not in _UNITS:
        raise ConfigError(f"{text!r} is not a size; write 8GiB, 500MB or a number of bytes")
    return int(float(match.group(1)) * _UNITS[match.group(2).lower()])


def show_bytes(count: float) -> str:
    """31.4 GiB, 512 MiB, 900 bytes."""
    for unit, size in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(count) >= size:
            value = count / size
            return f"{value:.1f} {unit}" if value < 100 else f"{value:,.0f} {unit}"
    return f"{int(count)} bytes"
