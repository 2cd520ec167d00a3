"""`leadline eval` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leadline.cli import run
from leadline.eval.sandbox import why_not
from leadline.eval.tasks import NAMES
from tests.eval.made import make_all
from tests.fixtures_server import live_server, small_tokenizer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_all(tmp_path_factory.mktemp("data"))


def test_list_names_every_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(any(line.split()[:1] == [name] for line in listed.splitlines()) for name in NAMES)


def test_a_model_folder_is_scored_and_a_second_run_asks_nothing(
    tiny_lite_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", "mmlu", "needle", "--model", str(tiny_lite_folder), "--dtype", "float32", "--device", "cpu"]
    command += ["--max-model-len", "600", "--shots", "0", "--limit", "2", "--data", str(data), "--out", str(tmp_path)]
    assert run(command) == 0
    first = capsys.readouterr()
    assert first.err == ""
    assert "published" in first.out
    assert "58.3" in first.out
    report = json.loads((tmp_path / "report.json").read_text())
    assert [(row["task"], row["items"], row["shots"]) for row in report] == [("mmlu", 2, 0), ("needle", 2, 0)]
    assert {path.name for path in tmp_path.iterdir()} >= {"mmlu.jsonl", "needle.jsonl", "needle.png", "report.png"}
    before = (tmp_path / "mmlu.jsonl").read_bytes()
    assert run(command) == 0
    assert (tmp_path / "mmlu.jsonl").read_bytes() == before
    capsys.readouterr()
    assert run(["1" if word == "0" else word for word in command]) == 2
    assert "is of another run" in capsys.readouterr().err


def test_a_server_is_scored(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with live_server(small_tokenizer(tmp_path), answer="So the answer is not [ ].") as live:
        command = ["eval", "bbh", "--url", live.url, "--data", str(data), "--shots", "0", "--chat"]
        assert run(command) == 0
        assert "50.0" in capsys.readouterr().out
        assert run(["eval", "mmlu", "--url", live.url, "--data", str(data), "--shots", "0"]) == 2
        assert "gives no log-probabilities" in capsys.readouterr().err
        assert run([*command, "--dtype", "float32"]) == 2
        assert "with --url the server runs the model" in capsys.readouterr().err


def test_a_judge_on_a_server(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with live_server(small_tokenizer(tmp_path), answer="Well. [[7]]") as live:
        command = ["eval", "mt_bench", "--url", live.url, "--data", str(data), "--judge-url", live.url]
        assert run(command) == 0
    assert "7.000" in capsys.readouterr().out


def test_code_on_a_server_runs_in_the_sandbox_or_not_at_all(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with live_server(small_tokenizer(tmp_path), answer="    return number + 1\n") as live:
        command = ["eval", "humaneval", "--url", live.url, "--data", str(data), "--allow-code"]
        code = run(command)
    captured = capsys.readouterr()
    if why_not() is None:
        assert code == 0
        assert "33.3" in captured.out
    else:
        assert code == 2
        assert "cannot be run safely" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name at least one task"),
        (["mmlv"], "unknown task 'mmlv'"),
        (["humaneval"], "allow it with --allow-code"),
        (["mt_bench"], "--judge-url"),
        (["bbh", "mmlu", "ccpm"], "bbh, ccpm are not on the hub in their official layout"),
        (["piqa"], "piqa is not on the hub in its official layout"),
        (["table5"], "paper table 5 has no scores"),
        (["mmlu", "--limit", "0"], "limit must be at least 1"),
        (["mmlu", "--shots", "-1"], "shots must not be negative"),
        (["mmlu", "--url", "nonsense"], "is not the URL of a server"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
