"""`leadline doctor`: what this machine can do, and for each thing that is missing why and what brings it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from leadline import __version__
from leadline.checkpoint.machine import Machine, read_machine
from leadline.checkpoint.source import EMBEDDED
from leadline.cli import hardware
from leadline.errors import ConfigError

# The PyTorch versions the tests were run with; older ones are refused by the package, newer ones are likely to work.
TESTED_TORCH = ((2, 11), (2, 13))
EXTRAS = {
    "engine": ("torch", "numpy", "safetensors", "huggingface-hub"),
    "server": ("fastapi", "uvicorn", "prometheus-client"),
}
GIB = 1 << 30
MARKS = {"ok": "[green]ok[/]", "limited": "[yellow]limited[/]", "missing": "[red]missing[/]"}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report. `advice` says why a thing is not ok and what to do; empty when it is."""

    name: str
    state: Literal["ok", "limited", "missing"]
    value: str
    advice: str = ""


def doctor(*, json_output: Annotated[bool, Parameter(name="--json", negative="")] = False, port: int = 8000) -> None:
    """What this machine can do, and why something is missing.

    Args:
        json_output: Print JSON, one object a finding.
        port: The port that `leadline serve` would use.
    """
    findings = examine(port)
    if json_output:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        _print_table(findings)


def examine(port: int) -> list[Finding]:
    machine = read_machine()
    return [
        Finding("leadline", "ok", __version__),
        Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        _torch(),
        _processor(),
        _memory(machine),
        _disk(),
        _gpu(machine),
        _compiler(),
        _kernels(),
        *(_extra(name) for name in EXTRAS),
        _embedded(),
        _port(port),
    ]


def _torch() -> Finding:
    version = _version("torch")
    if version is None:
        return Finding("torch", "missing", "not installed", "pip install 'leadline[engine]' to run models here")
    low, high = (".".join(map(str, bound)) for bound in TESTED_TORCH)
    major, minor = (int(part) for part in version.split(".")[:2])
    if TESTED_TORCH[0] <= (major, minor) <= TESTED_TORCH[1]:
        return Finding("torch", "ok", version)
    return Finding("torch", "limited", version, f"tested with {low} to {high}")


def _processor() -> Finding:
    sets = hardware.instruction_sets()
    value = f"{hardware.processor()}, {hardware.cores()} cores: {' '.join(sets) or 'no vector extensions known'}"
    if {"avx2", "asimd"} & set(sets):
        return Finding("processor", "ok", value)
    return Finding("processor", "limited", value, "no AVX2 or Advanced SIMD was found: matrix products are slow")


def _memory(machine: Machine) -> Finding:
    value = f"{machine.memory / GIB:.1f} GiB may be used: {machine.memory_reason}"
    if machine.memory >= GIB:
        return Finding("memory", "ok", value)
    return Finding("memory", "limited", value, "`leadline plan --model ...` says what fits")


def _disk() -> Finding:
    free = hardware.disk_free(Path.home())
    value = f"{free / GIB:.1f} GiB free in {Path.home()}"
    if free >= 40 * GIB:
        return Finding("disk", "ok", value)
    return Finding("disk", "limited", value, "DeepSeek-V2-Lite takes 29.3 GiB, in int4 8.2 GiB; V2 439 and 118")


def _gpu(machine: Machine) -> Finding:
    if not machine.gpus:
        return Finding("gpu", "missing", "none", "nvidia-smi lists no GPU; models run on the processor")
    value = ", ".join(f"{gpu.name}, {gpu.free / GIB:.0f} of {gpu.total / GIB:.0f} GiB free" for gpu in machine.gpus)
    if "+cpu" in (_version("torch") or ""):
        return Finding("gpu", "limited", value, "the installed torch is built for the CPU: make clean setup TORCH=cuda")
    return Finding("gpu", "ok", value)


def _compiler() -> Finding:
    found = hardware.compiler()
    if found is None:
        return Finding("compiler", "missing", "none", f"none of {', '.join(hardware.COMPILERS)} is on the path")
    return Finding("compiler", "ok", found)


def _kernels() -> Finding:
    """Whether models run on leadline's own kernels, many times as fast as PyTorch's path in few bits."""
    from leadline.ops.cpu import native

    sets = native.instruction_sets()
    try:
        chosen = native.choose()
    except ConfigError as error:
        return Finding("kernels", "limited", f"built for {', '.join(sets) or 'nothing'}", error.message)
    if chosen is not None:
        return Finding("kernels", "ok", f"{chosen}, of {', '.join(sets)}")
    if sets:
        return Finding("kernels", "limited", "switched off", f"{native.VARIABLE}=none puts everything on PyTorch")
    advice = "models run on PyTorch, in few bits many times slower: with a C++ compiler install leadline again"
    return Finding("kernels", "missing", "not built", advice)


def _extra(name: str) -> Finding:
    versions = {package: _version(package) for package in EXTRAS[name]}
    value = ", ".join(f"{package} {version}" for package, version in versions.items() if version)
    missing = [package for package, version in versions.items() if version is None]
    if not missing:
        return Finding(f"[{name}]", "ok", value)
    return Finding(f"[{name}]", "missing", value or "not installed", f"pip install 'leadline[{name}]'")


def _embedded() -> Finding:
    weights = list(EMBEDDED.glob("*.safetensors"))
    if weights and (EMBEDDED / "config.json").is_file():
        return Finding("embedded model", "ok", f"{sum(file.stat().st_size for file in weights) / 1e6:.1f} MB")
    return Finding("embedded model", "missing", "not in this build", "name another with --model")


def _port(port: int) -> Finding:
    if hardware.port_free(port):
        return Finding("port", "ok", f"{port} is free")
    return Finding("port", "limited", f"{port} is in use", "choose another: leadline serve --port ...")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _print_table(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("", "state", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        table.add_row(escape(finding.name), MARKS[finding.state], escape(finding.value), escape(finding.advice))
    Console().print(table)
