"""`leadline plan` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leadline.cli import run
from leadline.ops.cpu import native


def test_a_folder(tiny_v2_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--model", str(tiny_v2_folder), "--bandwidth", "20"]) == 0
    output = capsys.readouterr().out
    assert "tiny-v2, 214,584 parameters" in output
    assert "288 bytes a token in float32" in output
    assert "2,048 tokens of 2,048 advertised" in output
    assert "at 20 GB/s" in output


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "v2-lite", "--json", "--max-memory", "1TiB", "--device", "cpu", "--bandwidth", "100"]
    code = run([*arguments, "--context", "4096", "--concurrency", "2"])
    raw = json.loads(capsys.readouterr().out)
    assert raw["weight_bytes"] == 31_412_968_448
    assert (raw["context_length"], raw["cache_tokens"]) == (4096, 8192)
    assert code == (0 if raw["fits"] else 2)


def test_v2_does_not_fit_and_says_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "v2", "--max-memory", "8GiB", "--bandwidth", "20"]) == 2
    captured = capsys.readouterr()
    assert "471,482,869,760 bytes in bfloat16" in captured.out
    assert "does not fit; 131,072 advertised" in captured.out
    assert "8,589,934,592 bytes are usable" in captured.err
    assert "vllm serve deepseek-ai/DeepSeek-V2-Chat --tensor-parallel-size 8" in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "neither a folder nor a hub id"),
        (["small", "--max-memory", "lots"], "is not a size"),
        (["small", "--context", "4096"], "1,024 positions"),
        (["small", "--dtype", "int3"], "int3"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


LITE = ["plan", "v2-lite", "--device", "cpu", "--bandwidth", "40"]


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan reads no weights: whether this build has kernels does not matter."""
    monkeypatch.setattr(native, "choose", lambda: "avx2")


@pytest.mark.usefixtures("kernels")
def test_what_does_not_fit_says_in_how_many_bits_it_would(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*LITE, "--max-memory", "10GiB"]) == 2
    captured = capsys.readouterr()
    rows = dict(line.split(maxsplit=2)[1:] for line in captured.out.splitlines() if line.startswith("in "))
    assert rows["int8"] == "weights 15.9 GiB, does not fit, about 14 tokens/s: --quantize int8"
    assert rows["int4"].startswith("weights 8.2 GiB, context 32,768, about 28 tokens/s")
    assert "--quantize int4 fits: a context of 32,768 in 9.9 GiB" in captured.err
    assert "--quantize int8" not in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.usefixtures("kernels")
def test_in_the_bits_that_were_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*LITE, "--max-memory", "10GiB", "--quantize", "int4"]) == 0
    output = capsys.readouterr().out
    assert "8,762,525,696 bytes in int4 (8.2 GiB)" in output
    assert "in int8" not in output


@pytest.mark.usefixtures("kernels")
def test_a_quantised_folder_is_planned_as_it_is(
    tiny_v2_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = tmp_path / "packed"
    assert run(["quantize", str(tiny_v2_folder), str(packed), "--recipe", "int4", "--no-check"]) == 0
    capsys.readouterr()
    assert run(["plan", str(packed), "--json", "--bandwidth", "40"]) == 0
    raw = json.loads(capsys.readouterr().out)
    assert raw["recipe"] == "int4"
    assert 0 < raw["weight_bytes"] <= (packed / "packed.safetensors").stat().st_size
    assert "fewer_bits" not in raw


def test_without_kernels_fewer_bits_take_no_less(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LEADLINE_ISA", "none")
    assert run([*LITE, "--max-memory", "10GiB"]) == 2
    assert "--quantize" not in capsys.readouterr().err
