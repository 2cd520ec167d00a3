"""`leadline tokenizer`, as a user types it."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from leadline.cli import run
from leadline.tokenizer import Tokenizer
from tests.fixtures_tokenizer import SAMPLE, make_tiny_tokenizer, official_folder


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> io.BytesIO:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(raw))
    return raw


def test_encode_and_decode(capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", str(official_folder())]
    assert run(["tokenizer", "encode", "hello world", *model]) == 0
    assert capsys.readouterr().out == "31539 1843\n"
    assert run(["tokenizer", "decode", "31539", "1843", "100001", *model]) == 0
    assert capsys.readouterr().out == "hello world\n"
    assert run(["tokenizer", "decode", "31539", "100001", "--no-skip-special-tokens", *model]) == 0
    assert capsys.readouterr().out == "hello<｜end▁of▁sentence｜>\n"


def test_control_tokens_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    call = ["tokenizer", "encode", "hi<｜end▁of▁sentence｜>", "--model", str(official_folder())]
    assert run([*call, "--parse-special"]) == 0
    assert capsys.readouterr().out.endswith(" 100001\n")
    assert run([*call, "--add-special-tokens"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("100000 ")
    assert "100001" not in captured.out
    assert captured.err.startswith("leadline: warning: <｜end▁of▁sentence｜> in the prompt is plain text")


def test_standard_input(stdin: io.BytesIO, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", str(official_folder())]
    stdin.write("深度\n".encode())
    stdin.seek(0)
    assert run(["tokenizer", "encode", *model]) == 0
    ids = capsys.readouterr().out
    assert ids.endswith(" 185\n")
    stdin.seek(0)
    stdin.truncate()
    stdin.write(ids.replace(" ", ", ").encode())
    stdin.seek(0)
    assert run(["tokenizer", "decode", *model]) == 0
    assert capsys.readouterr().out == "深度\n\n"


def test_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text(SAMPLE, encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "deep water"}\n' * 3, encoding="utf-8")
    out = tmp_path / "new"
    files = [str(tmp_path / name) for name in ("a.txt", "b.jsonl")]
    assert run(["tokenizer", "train", *files, "--out", str(out), "--vocab-size", "300", "--fim"]) == 0
    assert capsys.readouterr().out == f"{out}: 300 tokens\n"
    tokenizer = Tokenizer.from_folder(out)
    assert tokenizer.has_fim
    assert tokenizer.decode(tokenizer.encode("deep water\n")) == "deep water\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "x", "--model", "/no/such/folder"], "neither a folder nor a hub id"),
        (["encode", "x", "--model", "org/name"], "org/name: no such folder"),
        (["encode", "x", "--model", "EMPTY"], "tokenizer.json: no such file"),
        (["encode", "a\udcff", "--model", "TINY"], "not valid Unicode"),
        (["encode", "--model", "TINY"], "standard input is not UTF-8: byte 1"),
        (["decode", "384", "--model", "TINY"], "token id 384 is outside the vocabulary of 384"),
        (["decode", "x", "--model", "TINY"], "x"),
        (["train", "EMPTY/no.txt", "--out", "EMPTY/new"], "no.txt: no such file"),
        (["train", "EMPTY/bad.jsonl", "--out", "EMPTY/new"], 'bad.jsonl:2: not a JSON object with a "text"'),
        (["train", "EMPTY/bad.txt", "--out", "EMPTY/new"], "bad.txt: not UTF-8"),
        (["train", "EMPTY/good.txt", "--out", "EMPTY/new", "--vocab-size", "9"], "vocab_size must be at least 258"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, stdin: io.BytesIO, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, tiny = tmp_path / "empty", tmp_path / "tiny"
    empty.mkdir()
    make_tiny_tokenizer(tiny)
    (empty / "good.txt").write_text("fine", encoding="utf-8")
    (empty / "bad.txt").write_bytes(b"\xff\xfe")
    (empty / "bad.jsonl").write_text('{"text": "fine"}\n[]\n', encoding="utf-8")
    stdin.write(b"a\xff")
    stdin.seek(0)
    call = [argument.replace("EMPTY", str(empty)).replace("TINY", str(tiny)) for argument in arguments]
    assert run(["tokenizer", *call]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("leadline: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (empty / "new").exists()


def test_ids_on_standard_input_must_be_ids(
    tmp_path: Path, stdin: io.BytesIO, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tiny_tokenizer(tmp_path)
    stdin.write(b"1 -2")
    stdin.seek(0)
    assert run(["tokenizer", "decode", "--model", str(tmp_path)]) == 2
    assert "'-2' is not a token id" in capsys.readouterr().err
