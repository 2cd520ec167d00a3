"""`leadline bench`: every measurement runs on a tiny model and says what it was measured on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leadline.checkpoint.quantise import Options, quantise_folder
from leadline.cli import run
from leadline.ops.cpu import native


def test_batch_and_prefill_as_json(tiny_lite_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--model", str(tiny_lite_folder), "--device", "cpu", "--runs", "1", "--json"]
    sizes = ["--sequences", "1", "--sequences", "3", "--context", "5", "--tokens", "4"]
    assert run(["bench", "batch", *sizes, *common]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["model"] == tiny_lite_folder.name
    assert [result["what"] for result in shown["results"]] == ["decode of 1", "decode of 3"]
    assert run(["bench", "prefill", "--lengths", "20", *common]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert 0 < result["slowest"] <= result["tokens_per_second"] <= result["fastest"]


def test_decode_as_a_table(tiny_lite_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", str(tiny_lite_folder), "--device", "cpu", "--runs", "2", "--tokens", "3"]
    assert run(["bench", "decode", "--contexts", "4", "--contexts", "70", *model]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2
    assert "decode after 70" in out[1]
    assert "tokens/s" in out[1]


def test_loading_takes_turns(tiny_lite_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quantise_folder(tiny_lite_folder, tmp_path / "int8", Options("int8", check=False))
    common = ["bench", "load", "--model", str(tmp_path / "int8"), "--runs", "2", "--tokens", "3"]
    assert run([*common, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(placement, len(runs)) for placement, runs in shown["results"].items()] == [
        ("auto", 2),
        ("map", 2),
        ("copy", 2),
    ]
    assert all(
        run["seconds"] > 0 and run["tokens_per_second"] > 0 for runs in shown["results"].values() for run in runs
    )
    assert run([*common, "--placements", "copy"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("load, copy")
    assert run(["bench", "load", "--shape", "small"]) == 2
    assert "no folder to load" in capsys.readouterr().err


def test_what_does_not_fit_is_one_line(tiny_lite_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", str(tiny_lite_folder), "--device", "cpu"]
    assert run(["bench", "decode", "--contexts", "100000", *model]) == 2
    assert capsys.readouterr().err.startswith("leadline: 100000 + 65 tokens do not fit")


def test_a_published_shape_with_random_weights(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--shape", "small", "--layers", "2", "--runs", "1", "--json"]
    if native.extension() is None:
        assert run(["bench", "decode", *small]) == 2
        assert "kernels are not built" in capsys.readouterr().err
        return
    for recipe in ("int8", "int4"):
        command = ["bench", "decode", "--contexts", "130", "--tokens", "3", "--quantize", recipe, *small]
        assert run(command) == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown["model"] == f"small {recipe}, random weights, 2 layers"
        assert shown["kernels"] in native.instruction_sets()
    assert run(["bench", "decode", "--shape", "small", "--layers", "9"]) == 2
    assert "between 1 and 6" in capsys.readouterr().err
