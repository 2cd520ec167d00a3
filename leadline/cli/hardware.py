"""What `leadline doctor` reads of the machine besides memory and GPUs: processor, compiler, disk, ports. No torch."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
from pathlib import Path

# Instruction sets that matter to matrix products, as /proc/cpuinfo spells them: first x86's, then Arm's.
INSTRUCTION_SETS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
)
COMPILERS = ("c++", "g++", "clang++")


def processor() -> str:
    """The processor's name as it calls itself."""
    names = [*_cpuinfo("model name"), _sysctl("machdep.cpu.brand_string"), platform.processor(), platform.machine()]
    return next((name for name in names if name), "unknown")


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def instruction_sets() -> tuple[str, ...]:
    flags = {flag for line in _cpuinfo("flags", "Features")[:1] for flag in line.split()}
    if _sysctl("hw.optional.AdvSIMD") == "1":
        flags.add("asimd")
    if _sysctl("hw.optional.arm.FEAT_DotProd") == "1":
        flags.add("asimddp")
    return tuple(name for name in INSTRUCTION_SETS if name in flags)


def disk_free(path: Path) -> int:
    """Bytes free where `path` is or would be made."""
    existing = next(parent for parent in [path.absolute(), *path.absolute().parents] if parent.exists())
    return shutil.disk_usage(existing).free


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


def _sysctl(name: str) -> str:
    return _output(["sysctl", "-n", name]).strip() if platform.system() == "Darwin" else ""


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
