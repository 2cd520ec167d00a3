"""`leadline train plot`: a picture of a run, whatever state the run is in."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from leadline.cli import run
from leadline.train.records import read_records
from tests.train.runs import TINY, recipe, trainer

PNG = b"\x89PNG\r\n\x1a\n"
SIZE = slice(16, 24)  # width and height in a PNG's first chunk


@pytest.fixture
def out(tmp_path: Path, corpus: Path, tokenizer: Path) -> Path:
    config = recipe(tmp_path, corpus, tokenizer, steps=4, log_every=2, eval_every=2)
    assert trainer(config).run()
    return config.out


def size(picture: Path) -> tuple[int, int]:
    data = picture.read_bytes()
    assert data.startswith(PNG)
    return int.from_bytes(data[SIZE][:4]), int.from_bytes(data[SIZE][4:])


def test_a_run_is_drawn_beside_its_metrics(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["train", "plot", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}/metrics.png\n"
    width, height = size(out / "metrics.png")
    assert width > 800
    assert height > 800


def test_the_name_says_what_kind_of_picture(out: Path, tmp_path: Path) -> None:
    assert run(["train", "plot", str(out), "--picture", str(tmp_path / "run.svg")]) == 0
    text = (tmp_path / "run.svg").read_text()
    assert "<svg" in text
    assert all(f"<!-- {label} -->" in text for label in ("1 layers of 4 experts", "% of the peak", "expert loss"))
    assert "<!-- device loss -->" not in text, "its factor is 0"


def test_a_line_that_a_kill_tore_is_left_out(out: Path) -> None:
    metrics = out / "metrics.jsonl"
    whole = read_records(metrics)
    with metrics.open("a") as file:
        file.write('{"step": 5, "loss": 3.')
    assert read_records(metrics) == whole
    assert run(["train", "plot", str(out)]) == 0


def test_a_dense_model_has_no_heat_map(tmp_path: Path, corpus: Path, tokenizer: Path, out: Path) -> None:
    dense = dataclasses.replace(TINY, n_routed_experts=None)
    config = recipe(tmp_path / "dense", corpus, tokenizer, steps=2, model=dense)
    assert trainer(config).run()
    assert run(["train", "plot", str(config.out)]) == 0
    assert run(["train", "plot", str(out)]) == 0
    assert size(config.out / "metrics.png")[1] < size(out / "metrics.png")[1]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere"], "cannot read nowhere/metrics.jsonl: No such file or directory"),
        (["empty"], "empty/metrics.jsonl tells of no step yet"),
        (["out", "--picture", "run.docx"], "cannot write run.docx: "),
        (["out", "--picture", "nowhere/run.png"], "cannot write nowhere/run.png: "),
    ],
)
def test_a_mistake_is_one_line(out: Path, capsys: pytest.CaptureFixture[str], args: list[str], said: str) -> None:
    Path("empty").mkdir()
    Path("empty/metrics.jsonl").write_text("")
    Path("out").symlink_to(out)
    capsys.readouterr()
    assert run(["train", "plot", *args]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"leadline: {said}")
    assert error.count("\n") == 1
