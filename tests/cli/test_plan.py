"""`leadline plan` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leadline.cli import run


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
