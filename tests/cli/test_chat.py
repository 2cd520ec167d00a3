"""`leadline chat` through a pipe, with a model in this process; the terminal itself is tested with the client."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from leadline.cli import run


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def chat(folder: Path, *arguments: str) -> int:
    return run(["chat", "--model", str(folder), "--dtype", "float32", *arguments])


def test_each_line_is_a_message(
    tiny_lite_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(monkeypatch, "Hello\n/temp 0\n你好\n/save talk.json\n/bye\nnever\n".encode())
    assert chat(tiny_lite_folder, "--max-tokens", "5", "--seed", "1", "--system", "Be brief.") == 0
    out, err = capsys.readouterr()
    assert out.count("\n") >= 2
    assert "saved to talk.json" in err
    assert Path("talk.json").exists()


@pytest.mark.parametrize(
    ("content", "words"), [(b"\xff\n", "line 1"), (b"deep " * 3000 + b"\n", "at most"), (b"/temp 9\n", "0 to 2")]
)
def test_from_a_pipe_a_mistake_ends_it_with_one_line(
    tiny_lite_folder: Path,
    content: bytes,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pipe(monkeypatch, content)
    assert chat(tiny_lite_folder) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--temperature", "9"), 2, "temperature"),
        (("--url", "nonsense"), 2, "URL"),
        (("--url", "http://127.0.0.1:9"), 1, "cannot reach"),
        (("--url", "http://127.0.0.1:9", "--dtype", "float32"), 2, "--url"),
        (("--model", "no/such/folder"), 2, "no/such/folder"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["chat", *arguments]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_no_key_meant_for_others_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from leadline.cli.chat import chat as verb

    monkeypatch.setitem(os.environ, "OPENAI_API_KEY", "sk-theirs")
    assert "OPENAI" not in str(verb.__annotations__["api_key"])
