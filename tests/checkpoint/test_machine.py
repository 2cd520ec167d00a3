"""Limits as the system states them, sizes as people write them."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from leadline.checkpoint.machine import (
    GIB,
    Gpu,
    _visible,
    measure_bandwidth,
    parse_bytes,
    parse_gpus,
    read_machine,
    show_bytes,
)
from leadline.errors import ConfigError


def system(root: Path, files: dict[str, str]) -> Path:
    files = {"proc/meminfo": f"MemTotal: 99 kB\nMemAvailable:   {8 * GIB >> 10} kB\n", **files}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_free_memory(tmp_path: Path) -> None:
    machine = read_machine(system(tmp_path, {}))
    assert (machine.memory, machine.memory_reason) == (8 * GIB, "free memory")


def test_a_version_2_group_above_this_one_binds(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/user/me\n",
        "sys/fs/cgroup/user/me/memory.max": "max\n",
        "sys/fs/cgroup/user/me/memory.current": "5\n",
        "sys/fs/cgroup/user/memory.max": f"{4 * GIB}\n",
        "sys/fs/cgroup/user/memory.current": f"{2 * GIB}\n",
        "sys/fs/cgroup/user/memory.stat": f"anon 5\ninactive_file {GIB}\n",
    }
    machine = read_machine(system(tmp_path, files))
    assert machine.memory == 3 * GIB  # cached file pages can be dropped
    assert machine.memory_reason == "left of the control group's 4,294,967,296 bytes"


def test_a_version_1_group_binds(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/docker/abc\n0::/\n",
        "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": f"{2 * GIB}",
        "sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes": f"{GIB}",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "0",
    }
    assert read_machine(system(tmp_path, files)).memory == GIB


def test_a_group_that_is_full_leaves_nothing(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "100",
        "sys/fs/cgroup/memory.current": "900",
    }
    assert read_machine(system(tmp_path, files)).memory == 0


def test_the_address_space_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (4 * GIB, resource.RLIM_INFINITY))
    machine = read_machine(system(tmp_path, {"proc/self/statm": f"{GIB // resource.getpagesize()} 1 1\n"}))
    assert machine.memory == 3 * GIB
    assert machine.memory_reason == "left of the address-space limit of 4,294,967,296 bytes"


def test_a_system_without_proc_gives_a_share_of_its_memory(tmp_path: Path) -> None:
    machine = read_machine(tmp_path)
    assert machine.memory > 0
    assert machine.memory_reason == "of physical memory"


def test_the_drivers_list_of_gpus() -> None:
    listing = "NVIDIA H100 80GB HBM3, 81559, 80000\nNVIDIA GB10, [N/A], [N/A]\n\nSome, GPU, 100, 50\n"
    first, second = parse_gpus(listing)
    assert first == Gpu("NVIDIA H100 80GB HBM3", 81559 << 20, 80000 << 20)
    assert first.bandwidth == 3.35e12
    assert second.name == "Some, GPU"
    assert second.bandwidth is None


@pytest.mark.parametrize(("chosen", "names"), [(None, "ab"), ("1", "b"), ("1,0", "ba"), ("", ""), ("7", "")])
def test_hidden_gpus_are_not_counted(monkeypatch: pytest.MonkeyPatch, chosen: str | None, names: str) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert "".join(gpu.name for gpu in _visible((Gpu("a", 1, 1), Gpu("b", 1, 1)))) == names


def test_bandwidth_is_measured() -> None:
    assert 1e8 < measure_bandwidth(1 << 20, rounds=2) < 1e14


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 << 30),
        ("8g", 8 << 30),
        ("8 GB", 8 * 10**9),
        ("1.5MiB", 3 << 19),
        ("500MB", 5 * 10**8),
        (123, 123),
        ("7", 7),
    ],
)
def test_sizes_as_people_write_them(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "many", "8 potatoes", "-4GiB", "0x10", -1])
def test_sizes_that_are_none(text: str | int) -> None:
    with pytest.raises(ConfigError, match="is not a size"):
        parse_bytes(text)


def test_sizes_as_they_are_shown() -> None:
    assert [show_bytes(n) for n in (900, 512 << 20, 33_700_000_000, 471_482_869_760)] == [
        "900 bytes",
        "512 MiB",
        "31.4 GiB",
        "439 GiB",
    ]
