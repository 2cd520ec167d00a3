"""`leadline verify --url` passes our own server and finds the faults that others have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from leadline.cli import run
from tests.fixtures_server import live_server, small_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    small_tokenizer(path)
    return path


def verify(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, str], dict[str, str]]:
    code = run(["verify", "--json", *arguments])
    checks = json.loads(capsys.readouterr().out)
    return code, {c["name"]: c["state"] for c in checks}, {c["name"]: c["detail"] for c in checks}


def test_our_own_server_passes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from leadline.tokenizer import Tokenizer

    with live_server(Tokenizer.from_folder(folder)) as server:
        code, states, details = verify(capsys, "--url", server.url, "--tokenizer", str(folder))
        assert set(states.values()) == {"pass"}, details
        assert (code, len(states)) == (0, 6)
        _, states, _ = verify(capsys, "--url", server.url)
        assert states["token counts"] == "skip"


class Faulty(BaseHTTPRequestHandler):
    """What other servers were seen to do: answers change, streams differ, control strings become control tokens."""

    asked = 0

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self.answer({"data": [{"id": "other", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body.get("prompt") or "".join(message["content"] for message in body["messages"])
        for name in ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"):
            prompt = prompt.replace(name, "*")
        Faulty.asked += 1
        usage = {"prompt_tokens": 1 + len(prompt), "completion_tokens": 5, "total_tokens": 6 + len(prompt)}
        choice = {"index": 0, "finish_reason": "length", "text": "x"}
        message = {"role": "assistant", "content": f"answer {Faulty.asked}"}
        if body.get("stream"):
            self.stream({"choices": [{"index": 0, "delta": message, "finish_reason": "stop"}]})
        else:
            self.answer({"model": "other", "choices": [{**choice, "message": message}], "usage": usage})

    def answer(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, value: Any) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(f"data: {json.dumps(value)}\n\ndata: [DONE]\n\n".encode())


@pytest.fixture
def faulty() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Faulty) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_the_faults_of_others_are_found(faulty: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, states, details = verify(capsys, "--url", faulty, "--tokenizer", str(folder))
    assert code == 1
    assert set(states.values()) == {"fail"}
    assert "three requests gave 3 answers" in details["temperature 0 repeats"]
    assert "it is taken for the control token" in details["control strings stay text"]
    assert "it has two" in details["one BOS"]


def test_a_server_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "--url", "http://127.0.0.1:9"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("leadline: ")
    assert error.count("\n") == 1
