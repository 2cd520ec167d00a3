"""What people type by mistake, through the whole command and a real engine: one clear line, nothing left behind."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from leadline import cli
from tests.fixtures import TINY_LITE, make_model_folder

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
PATIENCE = 240  # seconds; a machine that does other things too is slow, not wrong

GREEDY = ("--dtype", "float32", "--temperature", "0", "--max-tokens", "4", "--ignore-eos")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model_folder(tmp_path_factory.mktemp("models") / "tiny", TINY_LITE))


@pytest.fixture
def broken(model: str, tmp_path: Path) -> Path:
    """A copy of the folder to damage."""
    copy = tmp_path / "broken"
    copy.mkdir()
    for file in Path(model).iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def refused(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 2) -> str:
    """The one line that the command says."""
    assert cli.run(list(argv)) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("leadline: ")
    assert err.count("\n") == 1
    return err


def test_an_empty_prompt_is_completed_from_nothing(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["generate", "--model", model, *GREEDY, ""]) == 0
    assert capsys.readouterr().out != ""


def test_ten_megabytes_are_refused(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"depth " * (10 << 20 >> 2))))
    assert "tokens" in refused(capsys, "generate", "--model", model, *GREEDY)


def test_one_token_over_the_limit(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("generate", "--model", model, "--max-model-len", "64", "--temperature", "0")
    assert "at most 63 fit" in refused(capsys, *argv, "0" * 63)  # BOS and 63 digits leave no room for an answer
    assert cli.run([*argv, "--ignore-eos", "0" * 62]) == 0


@pytest.mark.parametrize(
    ("name", "said"),
    [("no/such/folder", "no/such/folder"), ("", "neither a folder nor a hub id"), ("nowhere", "nowhere")],
)
def test_an_unknown_model(name: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(capsys, "generate", "--model", name, "x")


def test_a_folder_that_is_not_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "config.json" in refused(capsys, "generate", "--model", str(tmp_path), "x")


def test_a_cut_shard(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = sorted(broken.glob("*.safetensors"))[0]
    os.truncate(shard, shard.stat().st_size - 100)
    assert shard.name in refused(capsys, "generate", "--model", str(broken), "x")


def test_a_missing_tokenizer(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (broken / "tokenizer.json").unlink()
    assert "tokenizer.json" in refused(capsys, "generate", "--model", str(broken), "x")


def test_too_little_memory(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "generate", "--model", model, "--max-memory", "100KB", "x")


def test_a_port_in_use(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"port {port}" in refused(capsys, "serve", "--model", model, "--port", port)


def test_an_address_that_others_reach(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "0.0.0.0" in refused(capsys, "serve", "--model", model, "--host", "0.0.0.0", "--port", "0")


@contextlib.contextmanager
def command(*argv: str | bytes, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The command as a process, which does not outlive its test."""
    program: list[str | bytes] = [sys.executable, "-m", "leadline", *argv]
    pipe = subprocess.PIPE
    with subprocess.Popen(program, stdout=pipe, stderr=pipe, stdin=subprocess.DEVNULL, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def test_bytes_that_are_no_text(model: str) -> None:
    with command("generate", "--model", model, *GREEDY, b"depth \xff\xfe") as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert b"Traceback" not in err
    assert (process.returncode, out == b"") in [(0, False), (2, True)]


@pytest.mark.parametrize("lines", [0, 1, 3])
def test_an_interrupt_is_quiet_and_leaves_whole_lines(model: str, tmp_path: Path, lines: int) -> None:
    """While the model loads, and when so many answers are written."""
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "depth"}\n' * 400)
    args = ("--input", str(prompts), "--output", str(output), "--max-num-seqs", "1", "--max-tokens", "50")
    with command("generate", "--model", model, *args, "--ignore-eos") as process:
        assert process.stderr is not None
        assert b"400 prompts" in process.stderr.readline()
        wait_until(lambda: output.read_bytes().count(b"\n") >= lines)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert output.read_bytes()[-2:] in (b"", b"}\n")


def test_a_file_that_cannot_grow_ends_with_a_whole_line(model: str, tmp_path: Path) -> None:
    """A disk that is full, as a process sees it whose files may not pass a size."""
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "depth"}\n' * 64)
    args = ("--model", model, *GREEDY, "--input", str(prompts), "--output", str(output))
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (2000, 2000))
    with command("generate", *args, preexec_fn=limit) as process:
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode not in (0, 130)
    assert b"Traceback" not in err
    assert output.stat().st_size <= 2000
    assert output.read_bytes().endswith(b"}\n")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
