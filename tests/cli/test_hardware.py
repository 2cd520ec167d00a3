"""The machine's facts: sane on this one, right on a made one."""

from __future__ import annotations

import os
import platform
import socket
import sys
from pathlib import Path

import pytest

from leadline.cli import hardware

CPUINFO = "processor\t: 0\nmodel name\t: Made CPU\nflags\t\t: fpu avx2 amx_bf16 sse\n\nprocessor\t: 1\nflags\t\t: fpu\n"


def test_this_machine_has_a_processor() -> None:
    assert 1 <= hardware.cores() <= (os.cpu_count() or 1)
    assert hardware.processor() != ""


def test_processor_and_its_instruction_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_text", lambda path: CPUINFO)
    assert hardware.processor() == "Made CPU"
    assert hardware.instruction_sets() == ("avx2", "amx_bf16")


def test_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "machdep.cpu.brand_string": "Apple M3\n",
        "hw.optional.AdvSIMD": "1\n",
        "hw.optional.arm.FEAT_DotProd": "1\n",
    }
    monkeypatch.setattr(hardware, "_text", lambda path: "")
    monkeypatch.setattr(hardware, "_output", lambda command: answers[command[2]])
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert hardware.processor() == "Apple M3"
    assert hardware.instruction_sets() == ("asimd", "asimddp")


def test_files_and_commands_that_are_absent_or_fail_say_nothing(tmp_path: Path) -> None:
    assert hardware._text(tmp_path / "absent") == ""
    assert hardware._output(["leadline-no-such-program"]) == ""
    assert hardware._output([sys.executable, "-c", "raise SystemExit(1)"]) == ""


def test_disk_is_asked_where_the_folder_would_be(tmp_path: Path) -> None:
    assert hardware.disk_free(tmp_path / "not" / "yet") == pytest.approx(hardware.disk_free(tmp_path), rel=0.01)


def test_a_compiler_is_found_on_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hardware.compiler() is None
    (tmp_path / "clang++").touch(mode=0o755)
    assert hardware.compiler() == str(tmp_path / "clang++")


def test_a_port_in_use_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert not hardware.port_free(port)
    assert hardware.port_free(port)
