"""Connections that send nothing, or take nothing: the server waits for a while and no longer."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Generator
from urllib.parse import urlsplit

import pytest

from leadline.server import body, connections
from leadline.tokenizer import Tokenizer
from tests.fixtures_server import LiveServer, live_server, wait_until
from tests.server.test_cancel import ask

PATIENCE = 0.3


@pytest.fixture(scope="module")
def hasty(tokenizer: Tokenizer) -> Generator[LiveServer, None, None]:
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (connections, "HEAD_SECONDS"),
            (connections, "STALLED_SECONDS"),
            (body, "BODY_SECONDS"),
        ):
            patch.setattr(module, name, PATIENCE)
        with live_server(tokenizer, answer=" deep" * 60_000, context_length=100_000) as server:
            yield server


def connect(server: LiveServer) -> socket.socket:
    address = urlsplit(server.url)
    sock = socket.create_connection((str(address.hostname), address.port or 0))
    sock.settimeout(20)
    return sock


def received(sock: socket.socket) -> bytes:
    """All that comes until the server closes."""
    whole = b""
    while part := sock.recv(65536):
        whole += part
    return whole


@pytest.mark.parametrize("sent", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: "])
def test_a_head_that_does_not_end(hasty: LiveServer, sent: bytes) -> None:
    with connect(hasty) as sock:
        sock.sendall(sent)
        assert received(sock) == b""


def test_a_head_without_bounds(hasty: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With either of uvicorn's parsers it is cut off, and not only after a while."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 60.0)
    with connect(hasty) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        with contextlib.suppress(ConnectionError):
            for number in range(100):
                sock.sendall(b"X-%d: " % number + b"x" * 10_000 + b"\r\n")
            assert received(sock)[:12] in (b"", b"HTTP/1.1 400")
    assert hasty.http.get("/health").status_code == 200


def test_a_second_head_that_does_not_end(hasty: LiveServer) -> None:
    with connect(hasty) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        sock.sendall(b"GET /hea")
        assert received(sock) in (b"", b'{"status":"ok"}\n')


def test_a_connection_that_rests_between_two_requests_is_kept(hasty: LiveServer) -> None:
    with connect(hasty) as sock:
        for _ in range(2):
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while b"ok" not in answer:
                answer += sock.recv(65536)
            time.sleep(2 * PATIENCE)


def test_a_body_that_does_not_end(hasty: LiveServer) -> None:
    with connect(hasty) as sock:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        sock.sendall(head + b"Content-Length: 100\r\n\r\n{")
        answer = received(sock)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"code":"request_timeout"' in answer


def test_an_answer_that_takes_its_time_is_not_cut(hasty: LiveServer) -> None:
    """The client reads, late but more than nothing; the work outlasts every patience."""
    text = hasty.complete(max_tokens=50_000, stream=True).text
    assert text.endswith("data: [DONE]\n\n")


def test_an_answer_that_nobody_takes(hasty: LiveServer) -> None:
    """Its socket is open and is not read: the sequence is let go of, as if it were closed."""
    sock = ask(hasty, stream=True, max_tokens=50_000)
    wait_until(lambda: bool(hasty.engine.running))
    wait_until(lambda: not hasty.engine.running, seconds=20)
    assert hasty.engine.stats().requests_cancelled >= 1
    sock.close()


def test_as_many_files_as_the_system_allows() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
    try:
        connections.allow_many()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
