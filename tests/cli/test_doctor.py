"""`leadline doctor`: a line a thing, advice exactly where something is not ok."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from leadline.checkpoint.machine import Gpu, Machine
from leadline.cli import doctor, hardware, run
from leadline.ops.cpu import native


def finding(name: str, port: int = 0) -> doctor.Finding:
    return next(each for each in doctor.examine(port) if each.name == name)


def test_the_table_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    out = capsys.readouterr().out
    for name in ("python", "torch", "processor", "memory", "disk", "gpu", "compiler", "[engine]", "embedded model"):
        assert name in out


def test_json_is_one_object_a_finding(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert {"name": "port", "state": "ok", "value": "8000 is free", "advice": ""}.keys() == findings[-1].keys()


def test_advice_is_given_exactly_where_something_is_not_ok() -> None:
    assert all(bool(each.advice) == (each.state != "ok") for each in doctor.examine(0))


def test_a_port_in_use_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert finding("port", port).state == "limited"
    assert finding("port", port).state == "ok"


@pytest.mark.parametrize(
    ("version", "state"),
    [("2.10.1", "limited"), ("2.11.0", "ok"), ("2.13.0+cpu", "ok"), ("2.14.0a0", "limited"), (None, "missing")],
)
def test_torch_outside_the_tested_range(monkeypatch: pytest.MonkeyPatch, version: str | None, state: str) -> None:
    monkeypatch.setattr(doctor, "_version", lambda package: version)
    assert finding("torch").state == state


def test_a_gpu_that_torch_was_not_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu("H200", 139 << 30, 100 << 30)
    monkeypatch.setattr(doctor, "read_machine", lambda: Machine(1 << 36, "free memory", (gpu,)))
    monkeypatch.setattr(doctor, "_version", lambda package: "2.13.0+cpu")
    assert finding("gpu") == doctor.Finding("gpu", "limited", "H200, 100 of 139 GiB free", finding("gpu").advice)
    monkeypatch.setattr(doctor, "_version", lambda package: "2.13.0")
    assert finding("gpu").state == "ok"


def test_a_poor_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "read_machine", lambda: Machine(1 << 29, "free memory"))
    monkeypatch.setattr(hardware, "compiler", lambda: None)
    monkeypatch.setattr(hardware, "instruction_sets", tuple)
    monkeypatch.setattr(hardware, "disk_free", lambda path: 1 << 30)
    states = {each.name: each.state for each in doctor.examine(0)}
    assert states["memory"] == states["disk"] == states["processor"] == "limited"
    assert states["compiler"] == states["gpu"] == "missing"


@pytest.mark.parametrize(
    ("sets", "variable", "state", "value"),
    [
        (("avx2", "scalar"), "", "ok", "avx2, of avx2, scalar"),
        (("avx2", "scalar"), "none", "limited", "switched off"),
        (("avx2", "scalar"), "amx", "limited", "built for avx2, scalar"),
        ((), "", "missing", "not built"),
    ],
)
def test_the_kernels_are_there_or_it_says_why_not(
    sets: tuple[str, ...], variable: str, state: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "instruction_sets", lambda: sets)
    monkeypatch.setenv("LEADLINE_ISA", variable)
    assert (finding("kernels").state, finding("kernels").value) == (state, value)


def test_the_embedded_model_is_weighed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "EMBEDDED", tmp_path)
    assert finding("embedded model").state == "missing"
    (tmp_path / "config.json").touch()
    (tmp_path / "model.safetensors").write_bytes(bytes(1_500_000))
    assert finding("embedded model").value == "1.5 MB"
