"""`Client` and `AsyncClient` against the real server: answers, errors as classes, retries, leaving early."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import threading
from collections.abc import Generator
from typing import Any

import httpx2
import pytest

from leadline import errors
from leadline.client.http import AsyncClient, Balance, Client, api_url, body_error, is_loopback, retry_pause
from leadline.engine.fake import ANSWER
from leadline.tokenizer import Tokenizer
from tests.fixtures_server import LiveServer, live_server, wait_until

HELLO = [{"role": "user", "content": "Hello"}]
TEXT = ANSWER.removeprefix(" ")


@pytest.fixture
def client(server: LiveServer) -> Generator[Client, None, None]:
    with Client(server.url, max_retries=0) as made:
        yield made


def test_answers(client: Client) -> None:
    assert client.models() == ["fake"]
    reply = client.chat(HELLO, model="fake", temperature=0, max_tokens=None)
    assert (reply.text, reply.finish_reason, reply.model) == (TEXT, "stop", "fake")
    assert reply.usage.completion_tokens == reply.raw["usage"]["completion_tokens"] > 0
    assert client.complete("Hello", max_tokens=100).text == ANSWER


def test_balance_where_nothing_costs_anything(client: Client) -> None:
    assert client.balance() == Balance(True)


def test_tool_calls(client: Client) -> None:
    tools = [{"type": "function", "function": {"name": "now"}}]
    (call,) = client.chat(HELLO, tools=tools, tool_choice="required", parallel_tool_calls=False).tool_calls
    assert call["function"]["name"] == "now"
    assert client.chat(HELLO).tool_calls == ()
    assert client.complete("Hello").tool_calls == ()


def test_streams(client: Client) -> None:
    *pieces, last = client.chat_stream(HELLO)
    assert "".join(piece.text for piece in pieces) == TEXT
    assert last.usage is not None
    assert [piece.finish_reason for piece in pieces][-1] == "stop"
    assert "".join(piece.text for piece in client.complete_stream("Hello", max_tokens=100)) == ANSWER


def test_async(server: LiveServer) -> None:
    async def talk() -> tuple[list[str], str, str, str, str]:
        async with AsyncClient(server.url) as client:
            return (
                await client.models(),
                (await client.chat(HELLO)).text,
                "".join([chunk.text async for chunk in client.chat_stream(HELLO)]),
                (await client.complete("Hello", max_tokens=100)).text,
                "".join([chunk.text async for chunk in client.complete_stream("Hello", max_tokens=100)]),
            )

    assert asyncio.run(talk()) == (["fake"], TEXT, TEXT, ANSWER, ANSWER)


def test_errors_come_back_as_they_were_raised(client: Client) -> None:
    with pytest.raises(errors.ContextLengthExceeded, match="at most 511"):
        client.chat([{"role": "user", "content": "x" * 2000}])
    with pytest.raises(errors.ModelNotFound) as caught:
        client.chat(HELLO, model="gpt-4")
    assert caught.value.param == "model"
    with pytest.raises(errors.InvalidRequest):
        list(client.chat_stream(HELLO, temperature=3))


@pytest.mark.parametrize(
    "cls", [cls for cls in errors._tree(errors.LeadlineError) if cls not in (errors.UserError, errors.LeadlineError)]
)
def test_every_class_survives_the_wire(cls: type[errors.LeadlineError]) -> None:
    from leadline.server.errors import error_body

    back = body_error(cls.status, error_body(cls("why", param="where")))
    assert type(back) is cls
    assert (back.message, back.param) == ("why", "where")


@pytest.mark.parametrize(
    ("status", "body", "cls"),
    [
        (401, {"error": {"message": "no", "code": "invalid_request_error"}}, errors.AuthenticationError),
        (402, {"error": {"message": "no", "code": "invalid_request_error"}}, errors.InsufficientBalance),
        (429, None, errors.RateLimited),
        (404, {"detail": "Not Found"}, errors.ModelNotFound),
        (500, {"error": "text"}, errors.LeadlineError),
        (418, [], errors.LeadlineError),
    ],
)
def test_other_servers_errors(status: int, body: Any, cls: type[errors.LeadlineError]) -> None:
    assert isinstance(body_error(status, body), cls)


def test_no_server() -> None:
    with Client("http://127.0.0.1:9", max_retries=0) as client, pytest.raises(errors.ConnectionFailed, match="running"):
        client.models()


def test_it_tries_again_while_the_server_is_full(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    with live_server(tokenizer, max_requests=0) as server, Client(server.url) as client:

        def make_room(seconds: float) -> None:
            pauses.append(seconds)
            server.engine.max_requests = len(pauses) - 1

        monkeypatch.setattr("leadline.client.http.time.sleep", make_room)
        assert client.chat(HELLO).text == TEXT
        assert pauses == [1.0, 1.0]  # as Retry-After says
        server.engine.max_requests = 0
        monkeypatch.setattr("leadline.client.http.time.sleep", pauses.append)
        with pytest.raises(errors.EngineOverloaded):
            list(client.chat_stream(HELLO))


@pytest.mark.parametrize(
    ("status", "headers", "pause"),
    [
        (429, {"retry-after": "3"}, 3.0),
        (503, {"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        (429, {"retry-after": "3600"}, None),
        (400, {}, None),
        (402, {}, None),
        (500, {"x-should-retry": "false"}, None),
        (400, {"x-should-retry": "true", "retry-after": "1"}, 1.0),
    ],
)
def test_retry_pause(status: int, headers: dict[str, str], pause: float | None) -> None:
    assert retry_pause(0, httpx2.Response(status, headers=headers)) == pause


def test_pauses_grow_up_to_a_bound() -> None:
    broken = httpx2.ConnectError("no")
    pauses = [retry_pause(attempt, broken) or 0.0 for attempt in range(9)]
    assert all(0.75 * min(8, 0.5 * 2**k) <= pause <= min(8, 0.5 * 2**k) for k, pause in enumerate(pauses))
    assert retry_pause(0, httpx2.ReadTimeout("slow")) is None
    assert retry_pause(0, httpx2.Response(429, headers={"retry-after": "soon"})) is not None


def test_leaving_a_stream_stops_the_server(tokenizer: Tokenizer) -> None:
    with live_server(tokenizer, tokens_per_second=50, answer=" deep" * 300) as server, Client(server.url) as client:
        stream = client.chat_stream(HELLO)
        next(stream)
        assert server.engine.running
        stream.close()
        wait_until(lambda: not server.engine.running)


def test_a_failure_in_a_stream_is_raised(tokenizer: Tokenizer) -> None:
    with (
        live_server(tokenizer, error_after=2) as server,
        Client(server.url) as client,
        pytest.raises(errors.EngineError, match="not finite"),
    ):
        list(client.chat_stream(HELLO))


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
        ("https://api.example.com/beta/", "https://api.example.com/beta"),
    ],
)
def test_urls(given: str, url: str) -> None:
    assert api_url(given) == url


@pytest.mark.parametrize("given", ["", "localhost:8000", "ftp://x", "http://", "nonsense"])
def test_what_is_no_url(given: str) -> None:
    with pytest.raises(errors.ConfigError, match="URL"):
        api_url(given)


def test_keys_that_cannot_be_sent() -> None:
    with pytest.raises(errors.ConfigError, match="copy it again"):
        Client(api_key="sk-…")


def test_no_proxy_stands_before_loopback() -> None:
    assert is_loopback("http://127.0.0.1:1/v1")
    assert is_loopback("http://[::1]:1/v1")
    assert not is_loopback("https://api.example.com/v1")


@contextlib.contextmanager
def odd_server(body: bytes, *, status: int = 200, length: int | None = None) -> Generator[str, None, None]:
    """A server that answers everything with this."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.send_header("content-length", str(len(body) if length is None else length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[]", b'{"choices": []}', b'{"choices": [null]}', b"3"])
def test_an_answer_of_another_form_is_one_clear_line(body: bytes) -> None:
    with odd_server(body) as url, pytest.raises(errors.EngineError, match="answer"):
        Client(url, max_retries=0).chat(HELLO)


@pytest.mark.parametrize(
    "body", [b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n', b"", b": comment\n\n", b"data: x\n\n"]
)
def test_a_stream_that_breaks_off_is_no_answer(body: bytes) -> None:
    with odd_server(body) as url, pytest.raises(errors.LeadlineError, match=r"end of the answer|not JSON"):
        list(Client(url, max_retries=0).chat_stream(HELLO))
    with odd_server(body, length=len(body) + 5) as url, pytest.raises(errors.LeadlineError):
        list(Client(url, max_retries=0).chat_stream(HELLO))


def test_a_stream_without_done_that_finished_is_whole() -> None:
    body = b'data: {"choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}]}\r\n\r\n'
    with odd_server(body) as url, Client(url) as client:
        assert [chunk.text for chunk in client.chat_stream(HELLO)] == ["x"]


def test_an_error_without_a_body_of_its_own() -> None:
    with odd_server(b"busy", status=429) as url, pytest.raises(errors.RateLimited):
        Client(url, max_retries=0).complete("x")
