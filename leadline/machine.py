"""What the machine has: processor, memory, disk, GPUs, compilers. Read from the system's own files, without torch.

Memory is what this process may use: the least of the physical memory, a container's limit and the process's own.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import resource
import shutil
import socket
import subprocess
from pathlib import Path

# Instruction sets that matter to matrix products, as /proc/cpuinfo spells them.
INSTRUCTION_SETS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
COMPILERS = ("c++", "g++", "clang++")
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes: `total` this process may ever use, `available` now."""

    total: int
    available: int


@dataclasses.dataclass(frozen=True)
class Gpu:
    name: str
    memory: int  # bytes
    driver: str


def processor() -> str:
    """The processor's name as it calls itself."""
    names = _cpuinfo("model name") or [_sysctl("machdep.cpu.brand_string"), platform.processor(), platform.machine()]
    return next((name for name in names if name), "unknown")


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def instruction_sets() -> tuple[str, ...]:
    flags = {flag for line in _cpuinfo("flags", "Features")[:1] for flag in line.split()}
    return tuple(name for name in INSTRUCTION_SETS if name in flags)


def memory() -> Memory:
    physical, free = _physical_memory()
    limits = [limit for limit in (_cgroup_limit(), _address_space()) if limit is not None]
    total = min([physical, *limits])
    return Memory(total, min(free, total))


def disk_free(path: Path) -> int:
    """Bytes free where `path` is or would be made."""
    existing = next(parent for parent in [path.absolute(), *path.absolute().parents] if parent.exists())
    return shutil.disk_usage(existing).free


def gpus() -> tuple[Gpu, ...]:
    """NVIDIA's, as the driver lists them; none where there is no driver."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    rows = [line.split(", ") for line in _output(query).splitlines()]
    return tuple(Gpu(row[0], int(row[1]) << 20, row[2]) for row in rows if len(row) == 3 and row[1].isdigit())


def compiler() -> str | None:
    """The first C++ compiler on the path."""
    return next((found for name in COMPILERS if (found := shutil.which(name))), None)


def port_free(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _cpuinfo(*keys: str) -> list[str]:
    """The values of these keys in /proc/cpuinfo, which other systems than Linux lack."""
    lines = (line.partition(":") for line in _text(Path("/proc/cpuinfo")).splitlines())
    return [value.strip() for key, _, value in lines if key.strip() in keys]


def _physical_memory() -> tuple[int, int]:
    fields = dict(line.split(":") for line in _text(Path("/proc/meminfo")).splitlines() if ":" in line)
    if "MemTotal" in fields:
        kib = {name: int(value.split()[0]) for name, value in fields.items()}
        return kib["MemTotal"] << 10, kib.get("MemAvailable", kib["MemTotal"]) << 10
    total = int(_sysctl("hw.memsize") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return total, total


def _cgroup_limit() -> int | None:
    values = (_text(path).strip() for path in _CGROUP_LIMITS)
    return next((int(value) for value in values if value.isdigit()), None)


def _address_space() -> int | None:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def _sysctl(name: str) -> str:
    return _output(["sysctl", "-n", name]).strip()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _output(command: list[str]) -> str:
    """What a command prints, or nothing when it is absent, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
