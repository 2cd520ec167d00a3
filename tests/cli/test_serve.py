"""`leadline serve` as a process: its first lines, its answers, its end; and what it refuses at the start."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import httpx2
import openai
import pytest

from leadline.cli import run
from leadline.engine.types import SamplingParams
from leadline.server.run import bind, url


class Served:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        self.greeting = "".join(process.stdout.readline() for _ in range(3))
        self.url = self.greeting.split(" is served at ")[1].split()[0]


@pytest.fixture(scope="module")
def served(tiny_lite_folder: Path) -> Generator[Served, None, None]:
    command = [
        sys.executable,
        "-m",
        "leadline",
        "serve",
        "--port",
        "0",
        "--open",
        "--model",
        str(tiny_lite_folder),
    ]
    with subprocess.Popen(
        [*command, "--dtype", "float32", "--max-num-seqs", "4", "--owned-by", "The harbour"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Served(process)
        finally:
            process.kill()


def test_the_printed_curl_line_works(served: Served) -> None:
    assert httpx2.get(f"{served.url}/health").status_code == 200  # ready as soon as it says so
    line = served.greeting.splitlines()[1]
    done = subprocess.run(["bash", "-c", f"{line} -sS"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["role"] == "assistant"
    assert "Not affiliated" in served.greeting


def test_the_real_engine_behind_the_api(served: Served) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused") as client:
        assert [(each.id, each.owned_by) for each in client.models.list()] == [("tiny-v2-lite", "The harbour")]
        whole = client.completions.create(model="tiny-v2-lite", prompt="The lead", max_tokens=8, temperature=0)
        with client.completions.create(
            model="tiny-v2-lite", prompt="The lead", max_tokens=8, temperature=0, stream=True
        ) as stream:
            assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text
        echoed = client.completions.create(model="tiny-v2-lite", prompt="The lead", max_tokens=1, echo=True, logprobs=2)
        first, *others = echoed.model_dump()["choices"][0]["logprobs"]["token_logprobs"]
        assert first is None
        assert all(value <= 0 for value in others)
    metrics = httpx2.get(f"{served.url}/metrics").text
    assert "leadline_cache_bytes_per_token 288.0" in metrics  # 3 layers of 16 + 8 numbers of 4 bytes


def test_the_folders_sampling_defaults_hold(tiny_lite_folder: Path) -> None:
    from leadline.cli.options import ModelOptions, SamplingOptions, default_params

    defaults = default_params(ModelOptions(str(tiny_lite_folder)).load())
    assert defaults == SamplingParams(temperature=0.3, top_p=0.95)
    assert SamplingOptions(temperature=0.0, stop=("x",)).params(defaults) == SamplingParams(
        temperature=0.0, top_p=0.95, stop=("x",)
    )


def test_a_port_in_use_is_one_line(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    port = served.url.rpartition(":")[2]
    assert run(["serve", "--port", port]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"port {port} on 127.0.0.1 is in use" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--open", "--host", "0.0.0.0"), "without accounts"),
        (("--open", "--host", "example.com"), "without accounts"),
        (("--host", "0.0.0.0"), "in the clear"),
        (("--config", "no/such.toml"), "cannot read no/such.toml"),
        (("--metrics-address", "nowhere"), "write HOST:PORT"),
        (("--retention-days", "0"), "--retention-days"),
        (("--port", "99999"), "between 0 and 65535"),
        (("--port", "-1"), "between 0 and 65535"),
        (("--port", "0", "--model", "no/such/folder"), "no/such/folder"),
    ],
)
def test_a_mistake_is_one_line(arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max-num-seqs = 'many'", "max-num-seqs"),
        ("prot = 1", "prot"),
        ("port = 99999", "between 0 and 65535"),
        ("port = ", "Invalid value"),
        ("signup = 'everyone'", "everyone"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(
    tmp_path: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "leadline.toml"
    path.write_text(text, encoding="utf-8")
    assert run(["serve", "--config", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_flags_win_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "leadline.toml"
    path.write_text("open = true\nhost = '0.0.0.0'\nport = 70001", encoding="utf-8")

    def complaint(*flags: str) -> str:
        assert run(["serve", *flags]) == 2
        return capsys.readouterr().err

    monkeypatch.setenv("LEADLINE_SERVE_CONFIG", str(path))
    assert "--host 0.0.0.0: a server without accounts" in complaint()
    monkeypatch.setenv("LEADLINE_SERVE_HOST", "127.0.0.1")
    assert "--port 70001" in complaint()
    monkeypatch.setenv("LEADLINE_SERVE_PORT", "70002")
    assert "--port 70002" in complaint()
    assert "--port 70003" in complaint("--port", "70003")
    monkeypatch.setenv("LEADLINE_SERVE_HOTS", "127.0.0.1")
    assert "LEADLINE_SERVE_HOTS is no option of leadline serve; did you mean 'HOST'?" in complaint()


def test_ipv6() -> None:
    with bind("::1", 0) as sock:
        assert url(sock).startswith("http://[::1]:")


def test_sigterm_lets_a_running_answer_finish(served: Served) -> None:
    """Last: it ends the server."""
    body = json.dumps({"prompt": "The", "max_tokens": 50, "ignore_eos": True, "stream": True}).encode()
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as sock:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        received = sock.recv(65536)
        os.kill(served.process.pid, signal.SIGTERM)
        while more := sock.recv(65536):
            received += more
    assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert served.process.wait(20) == 0
    assert served.process.stderr is not None
    assert "Traceback" not in served.process.stderr.read()
