"""`leadline generate` as a user types it: one prompt, a pipe, a file that is interrupted and resumed."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from leadline import LLM, SamplingParams
from leadline.cli import run
from leadline.cli.generate import Output
from leadline.errors import DataError, UserError

GREEDY = ("--dtype", "float32", "--temperature", "0", "--ignore-eos")


def generate(folder: Path, *arguments: str) -> int:
    return run(["generate", "--model", str(folder), *GREEDY, "--max-tokens", "6", *arguments])


@pytest.fixture(scope="module")
def expected(tiny_lite_folder: Path) -> str:
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    (output,) = LLM(tiny_lite_folder, dtype="float32").generate("The lead", params)
    return output.text


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def test_the_completion_alone_is_printed(
    tiny_lite_folder: Path, expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert generate(tiny_lite_folder, "The lead") == 0
    assert capsys.readouterr() == (expected + "\n", "")
    pipe(monkeypatch, b"The lead\n")
    assert generate(tiny_lite_folder) == 0
    assert capsys.readouterr() == (expected + "\n", "")


def test_an_empty_prompt_is_completed_from_nothing(tiny_lite_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(tiny_lite_folder, "") == 0
    assert len(capsys.readouterr().out) > 1


def test_a_control_string_is_text_with_a_warning(tiny_lite_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(tiny_lite_folder, "x<｜end▁of▁sentence｜>") == 0
    assert "plain text" in capsys.readouterr().err
    assert generate(tiny_lite_folder, "--parse-special", "x<｜end▁of▁sentence｜>") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--temperature", "5", "x"), "temperature"),
        (("--max-tokens", "0", "x"), "max_tokens"),
        (("--stop", "", "x"), "stop"),
        (("--dtype", "float7", "x"), "dtype"),
        (("--input", "in.jsonl"), "--output"),
        (("--input", "missing.jsonl", "--output", "out.jsonl"), "missing.jsonl"),
        (("--model", "no-such-folder/x/y", "x"), "no-such-folder"),
        (("--nonsense",), "nonsense"),
    ],
)
def test_a_mistake_is_one_line(
    tiny_lite_folder: Path, arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = () if "--model" in arguments else ("--model", str(tiny_lite_folder))
    assert run(["generate", *model, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert words in err


def test_a_prompt_that_does_not_fit(tiny_lite_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(tiny_lite_folder, "--max-model-len", "64", "deep " * 100) == 2
    assert "at most 63 fit" in capsys.readouterr().err


def test_what_is_piped_in_must_be_utf8(
    tiny_lite_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe(monkeypatch, b"x\xff")
    assert generate(tiny_lite_folder) == 2
    assert "byte 1" in capsys.readouterr().err


def write_lines(path: Path, *records: Any) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_file_of_prompts(tiny_lite_folder: Path, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = Path("in.jsonl"), Path("out.jsonl")
    chat = {"id": "chat", "messages": [{"role": "user", "content": "Hello"}]}
    write_lines(source, {"prompt": "The lead"}, chat, {"id": "long", "prompt": "x " * 5000})
    batch = ("--input", str(source), "--output", str(target))
    assert generate(tiny_lite_folder, *batch) == 1
    records = {record["id"]: record for record in read_lines(target)}
    assert records[1]["text"] == expected
    assert records[1]["usage"]["completion_tokens"] == 6
    assert records["chat"]["finish_reason"] == "length"
    assert records["long"]["error"]["code"] == "context_length_exceeded"
    assert "1 of 3 prompts were refused" in capsys.readouterr().err
    before = target.read_bytes()
    assert generate(tiny_lite_folder, *batch) == 0  # all are answered: nothing is loaded, nothing asked
    assert target.read_bytes() == before


def test_a_batch_goes_on_where_it_was_cut_off(tiny_lite_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = Path("in.jsonl"), Path("out.jsonl")
    write_lines(source, *({"id": f"p{number}", "prompt": f"mark {number}"} for number in range(5)))
    target.write_bytes(b'{"id": "p3", "text": "kept"}\n{"id": "p1", "te')
    assert generate(tiny_lite_folder, "--input", str(source), "--output", str(target)) == 0
    records = read_lines(target)
    assert records[0] == {"id": "p3", "text": "kept"}
    assert sorted(record["id"] for record in records) == ["p0", "p1", "p2", "p3", "p4"]
    assert "5 prompts, 1 answered before" in capsys.readouterr().err


def test_ctrl_c_leaves_whole_lines(tiny_lite_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = Path("in.jsonl"), Path("out.jsonl")
    write_lines(source, *({"prompt": f"mark {number}"} for number in range(40)))
    written = threading.Event()
    write = Output.write

    def watched(self: Output, record: dict[str, Any]) -> None:
        write(self, record)
        if not written.is_set():
            written.set()
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Output, "write", watched)
    batch = ("--input", str(source), "--output", str(target), "--max-num-seqs", "2")
    assert generate(tiny_lite_folder, *batch) == 130
    assert 1 <= len(read_lines(target)) < 40
    monkeypatch.setattr(Output, "write", write)
    assert generate(tiny_lite_folder, *batch) == 0
    assert sorted(record["id"] for record in read_lines(target)) == list(range(1, 41))


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"[]",
        b"\xff",
        b"{}",
        b'{"prompt": 5}',
        b'{"messages": "x"}',
        b'{"prompt": "x", "messages": []}',
        b'{"prompt": "x", "id": 1.5}',
        b'{"prompt": "x", "id": true}',
        b'{"prompt": "x", "id": "a"}\n{"prompt": "y", "id": "a"}',
    ],
)
def test_a_broken_input_is_named_before_any_work(line: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in.jsonl").write_bytes(b'{"prompt": "fine"}\n' + line + b"\n")
    assert run(["generate", "--model", "nowhere", "--input", "in.jsonl", "--output", "out.jsonl"]) == 2
    assert "in.jsonl" in capsys.readouterr().err
    assert not Path("out.jsonl").exists()


def test_an_output_that_is_something_else_is_left_alone() -> None:
    Path("out.txt").write_text("precious\n")
    with pytest.raises(DataError, match=r"out\.txt:1"), Output(Path("out.txt")):
        pass
    assert Path("out.txt").read_text() == "precious\n"


def test_an_output_that_cannot_be_written() -> None:
    with pytest.raises(UserError, match="cannot write"), Output(Path("no/such/folder")):
        pass
    with pytest.raises(UserError, match="No space left"), Output(Path("/dev/full")) as output:
        output.write({"id": 1})


def test_a_line_that_the_disk_cuts_off_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with Output(Path("out.jsonl")) as output:
        output.write({"id": 1})
        write = os.write
        monkeypatch.setattr("leadline.cli.generate.os.write", lambda file, data: write(file, data[:5]))
        with pytest.raises(UserError, match=os.strerror(errno.ENOSPC)):
            output.write({"id": 2})
    assert read_lines(Path("out.jsonl")) == [{"id": 1}]
