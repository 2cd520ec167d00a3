"""A client that leaves frees its sequence within two decode steps: streamed, whole, and before the first token."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Generator
from typing import Any
from urllib.parse import urlsplit

import pytest

from leadline.tokenizer import Tokenizer
from tests.fixtures_server import LiveServer, live_server, wait_until

STEP = 0.05


@pytest.fixture(scope="module")
def slow(tokenizer: Tokenizer) -> Generator[LiveServer, None, None]:
    with live_server(tokenizer, tokens_per_second=1 / STEP, answer=" deep" * 200) as server:
        yield server


def ask(server: LiveServer, path: str = "/v1/chat/completions", **fields: Any) -> socket.socket:
    """Send a request over a socket of its own, and leave the answer unread."""
    asked = {"messages": [{"role": "user", "content": "Hi"}]} if "chat" in path else {"prompt": ["one", "two"]}
    body = json.dumps({**asked, **fields}).encode()
    address = urlsplit(server.url)
    assert address.hostname is not None
    sock = socket.create_connection((address.hostname, address.port or 0))
    head = f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
    sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return sock


def read_until(sock: socket.socket, wanted: bytes) -> None:
    seen = b""
    while wanted not in seen:
        received = sock.recv(65536)
        assert received, seen
        seen += received


def read_to_end(sock: socket.socket) -> bytes:
    with sock:
        seen = b""
        while received := sock.recv(65536):
            seen += received
    return seen


def steps_after_leaving(server: LiveServer, sock: socket.socket) -> float:
    left = time.monotonic()
    sock.close()
    wait_until(lambda: not server.engine.running)
    return (time.monotonic() - left) / STEP


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_in_the_middle_of_a_stream(slow: LiveServer, path: str) -> None:
    sock = ask(slow, path, stream=True, max_tokens=500)
    read_until(sock, b"data: ")
    assert slow.engine.running
    assert steps_after_leaving(slow, sock) <= 2.5


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_without_a_stream(slow: LiveServer, path: str) -> None:
    sock = ask(slow, path, n=2, max_tokens=500)
    wait_until(lambda: bool(slow.engine.running))
    assert steps_after_leaving(slow, sock) <= 2.5


@pytest.mark.parametrize("stream", [False, True])
def test_before_the_first_token(tokenizer: Tokenizer, stream: bool) -> None:
    with live_server(tokenizer, first_token_seconds=60.0) as server:
        sock = ask(server, stream=stream)
        wait_until(lambda: bool(server.engine.running))
        assert steps_after_leaving(server, sock) <= 10
        assert server.engine.stats().requests_cancelled == 1
        wait_until(lambda: "leadline_disconnects_total 1.0" in server.http.get("/metrics").text)


def test_a_client_that_leaves_while_sending_its_body(slow: LiveServer) -> None:
    address = urlsplit(slow.url)
    sock = socket.create_connection((str(address.hostname), address.port or 0))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
    sock.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
    time.sleep(0.05)
    sock.close()
    assert slow.http.get("/health").status_code == 200


def test_fifty_streams_stop_at_once(slow: LiveServer) -> None:
    socks = [ask(slow, stream=True) for _ in range(50)]
    wait_until(lambda: len(slow.engine.running) == 50)
    for sock in socks:
        sock.close()
    wait_until(lambda: not slow.engine.running, seconds=1.0)


def test_a_slow_reader_blocks_nobody(slow: LiveServer) -> None:
    sock = ask(slow, stream=True)
    started = time.monotonic()
    assert slow.chat(max_tokens=2).status_code == 200
    assert time.monotonic() - started < 2
    sock.close()
    wait_until(lambda: not slow.engine.running)


def test_stopping_the_server_tells_who_is_cut_off(tokenizer: Tokenizer) -> None:
    """An answer that just ended would look whole to many clients."""
    with live_server(tokenizer, tokens_per_second=10, answer=" deep" * 500) as server:
        streamed, whole = ask(server, stream=True), ask(server)
        read_until(streamed, b"data: ")
        wait_until(lambda: len(server.engine.running) == 2)
    rest = [read_to_end(streamed), read_to_end(whole)]
    assert b'data: {"error":{"message":"the server is stopping' in rest[0]
    assert b"[DONE]" not in rest[0]
    assert rest[1].startswith(b"HTTP/1.1 503")
    assert b"retry-after: 1" in rest[1]
    assert b'"code":"engine_overloaded"' in rest[1]


def test_stopping_the_server_frees_the_engine(tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    with live_server(tokenizer, tokens_per_second=10, answer=" deep" * 500) as server:
        sock = ask(server, stream=True)
        read_until(sock, b"data: ")
        engine = server.engine
    wait_until(lambda: not engine.running)
    sock.close()
    assert "Traceback" not in caplog.text
