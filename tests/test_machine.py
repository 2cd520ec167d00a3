"""The machine's facts: right on this one, and on made ones that are unlike it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from leadline import machine

CPUINFO = "processor\t: 0\nmodel name\t: Made CPU\nflags\t\t: fpu avx2 amx_bf16 sse\n\nprocessor\t: 1\nflags\t\t: fpu\n"
MEMINFO = "MemTotal:       8192 kB\nMemFree:  10 kB\nMemAvailable:    4096 kB\n"


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The system files to pretend, by path; a missing one is unreadable."""
    texts = {"/proc/cpuinfo": CPUINFO, "/proc/meminfo": MEMINFO}
    monkeypatch.setattr(machine, "_text", lambda path: texts.get(str(path), ""))
    monkeypatch.setattr(machine, "_output", lambda command: texts.get(" ".join(command[:3]), ""))
    return texts


def test_this_machine_has_what_it_needs_to_run_tests() -> None:
    memory = machine.memory()
    assert 0 < memory.available <= memory.total
    assert 1 <= machine.cores() <= (os.cpu_count() or 1)
    assert machine.processor() != ""


def test_processor_and_its_instruction_sets(system: dict[str, str]) -> None:
    assert machine.processor() == "Made CPU"
    assert machine.instruction_sets() == ("avx2", "amx_bf16")


def test_memory_is_the_least_of_its_limits(system: dict[str, str]) -> None:
    assert machine.memory() == machine.Memory(8192 << 10, 4096 << 10)
    system["/sys/fs/cgroup/memory.max"] = "max\n"
    assert machine.memory().total == 8192 << 10
    system["/sys/fs/cgroup/memory.max"] = "1048576\n"
    assert machine.memory() == machine.Memory(1 << 20, 1 << 20)


def test_the_processs_own_limit_counts() -> None:
    code = "from leadline import machine; print(machine.memory().total)"
    limit = 2 << 30
    done = subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) <= limit


def test_a_mac(system: dict[str, str]) -> None:
    system.clear()
    system["sysctl -n hw.memsize"] = "17179869184\n"
    system["sysctl -n machdep.cpu.brand_string"] = "Apple M3\n"
    assert machine.memory().total <= 16 << 30
    assert machine.processor() == "Apple M3"


def test_gpus_as_the_driver_lists_them(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = "NVIDIA H200, 143771, 570.86.15\nNVIDIA odd, [N/A], 570.86.15\n"
    monkeypatch.setattr(machine, "_output", lambda command: listed)
    assert machine.gpus() == (machine.Gpu("NVIDIA H200", 143771 << 20, "570.86.15"),)


def test_a_command_that_is_absent_or_fails_says_nothing() -> None:
    assert machine._output(["leadline-no-such-program"]) == ""
    assert machine._output([sys.executable, "-c", "raise SystemExit(1)"]) == ""


def test_disk_is_asked_where_the_folder_would_be(tmp_path: Path) -> None:
    assert machine.disk_free(tmp_path / "not" / "yet") == pytest.approx(machine.disk_free(tmp_path), rel=0.01)
