"""A platform over an engine elsewhere: forms and tools pass where that server holds to them; every end is billed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx2
import jsonschema_rs
import pytest

from leadline.client.forms import Forms, _structured
from leadline.client.http import AsyncClient
from leadline.client.remote import RemoteEngine
from leadline.engine.types import EngineInfo, Grammar
from leadline.errors import InvalidRequest, LeadlineError
from leadline.tokenizer import Tokenizer
from tests.client.test_remote import other_server, reply, stream
from tests.fixtures_server import LiveServer, live_server, small_tokenizer, wait_until
from tests.server.platform.books import MISS, OUTPUT
from tests.server.platform.site import Site, chat, live_site

INFO = EngineInfo("here", 2048, 400, 0, 0, "remote", "elsewhere")
SCHEMA = {
    "type": "object",
    "properties": {"fathoms": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["fathoms"],
    "additionalProperties": False,
}
FORMED = {"type": "json_schema", "json_schema": {"name": "depth", "schema": SCHEMA, "strict": True}}
TOOL = {"type": "function", "function": {"name": "depth", "description": "Sound it.", "parameters": SCHEMA}}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def upstream(tokenizer: Tokenizer) -> Generator[LiveServer, None, None]:
    with live_server(tokenizer, context_length=2048) as live:
        yield live


@contextlib.contextmanager
def before(url: str, tokenizer: Tokenizer, folder: Path, timeout: float = 20) -> Generator[Site, None, None]:
    """A platform whose engine is at `url`."""
    remote = RemoteEngine(AsyncClient(url, max_retries=0, timeout=timeout), INFO, "fake")
    with live_site(tokenizer, folder, made=remote) as site:
        yield site
        assert site.faults() == []
        assert site.open_holds() == 0


@pytest.fixture(scope="module")
def platform(
    upstream: LiveServer, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Site, None, None]:
    with before(upstream.url, tokenizer, tmp_path_factory.mktemp("before")) as site:
        yield site


def forgetting(url: str, *fields: str) -> type[BaseHTTPRequestHandler]:
    """A server that passes over fields which it does not know."""

    class Handler(reply(200, b"")):  # type: ignore[misc]
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            kept = {name: value for name, value in body.items() if name not in fields}
            answer = httpx2.post(f"{url}{self.path}", json=kept, timeout=20)
            self.send_response(answer.status_code)
            self.send_header("content-type", answer.headers["content-type"])
            self.send_header("content-length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

    return Handler


def content(answer: httpx2.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def test_json_and_tools_pass_to_another_leadline(platform: Site) -> None:
    _, client = platform.customer()
    assert isinstance(json.loads(content(chat(client, model="here", response_format={"type": "json_object"}))), dict)
    jsonschema_rs.validate(SCHEMA, json.loads(content(chat(client, model="here", response_format=FORMED))))
    for choice in ("required", {"type": "function", "function": {"name": "depth"}}):
        answer = chat(client, model="here", tools=[TOOL], tool_choice=choice, parallel_tool_calls=False).json()
        assert answer["choices"][0]["finish_reason"] == "tool_calls"
        (call,) = answer["choices"][0]["message"]["tool_calls"]
        jsonschema_rs.validate(SCHEMA, json.loads(call["function"]["arguments"]))
    body = {"model": "here", "prompt": "Depth:", "response_format": FORMED, "max_tokens": 60}
    text = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    jsonschema_rs.validate(SCHEMA, json.loads(text))


def test_streamed_arguments_pass_too(platform: Site) -> None:
    _, client = platform.customer()
    lines = chat(client, model="here", tools=[TOOL], tool_choice="required", stream=True).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    parts = [part for event in events for part in event["choices"][0]["delta"].get("tool_calls", ())]
    first = "".join(part["function"]["arguments"] for part in parts if part["index"] == 0)
    jsonschema_rs.validate(SCHEMA, json.loads(first))


def test_a_server_with_schemas_alone_is_given_those(upstream: LiveServer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with (
        other_server(forgetting(upstream.url, "structured_outputs")) as url,
        before(url, tokenizer, tmp_path) as site,
    ):
        user_id, client = site.customer()
        jsonschema_rs.validate(SCHEMA, json.loads(content(chat(client, model="here", response_format=FORMED))))
        before_it = site.balance(user_id).total
        refused = chat(client, model="here", tools=[TOOL])
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "tools"
        assert "JSON schemas only" in refused.json()["error"]["message"]
        assert site.balance(user_id).total == before_it


def test_a_server_that_holds_to_no_form_is_not_trusted_with_one(
    upstream: LiveServer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with (
        other_server(forgetting(upstream.url, "structured_outputs", "response_format")) as url,
        before(url, tokenizer, tmp_path) as site,
    ):
        _, client = site.customer()
        for streamed in (False, True):
            refused = chat(client, model="here", response_format=FORMED, stream=streamed)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "response_format")
        assert content(chat(client, model="here"))


def test_one_that_was_away_is_asked_again(upstream: LiveServer) -> None:
    async def ask(url: str) -> dict[str, Any]:
        async with AsyncClient(url, max_retries=0) as client:
            forms = Forms(client, "fake")
            here = client.base_url
            client.base_url = "http://127.0.0.1:9/v1"
            with pytest.raises(LeadlineError, match=r"127\.0\.0\.1:9"):
                await forms.fields(Grammar("regex", "a"))
            client.base_url = here
            several = [forms.fields(Grammar("regex", "a")) for _ in range(3)]
            return (await asyncio.gather(*several))[2]

    before_it = len(upstream.engine.requests)
    assert asyncio.run(ask(upstream.url)) == {"structured_outputs": {"regex": "a"}}
    assert len(upstream.engine.requests) == before_it + 1, "it is asked once"


@pytest.mark.parametrize("answer", [b"{}", b'{"choices": []}', b'{"choices": [{"text": null}]}', b"[]"])
def test_nonsense_holds_to_nothing(answer: bytes) -> None:
    async def ask(url: str) -> None:
        async with AsyncClient(url, max_retries=0) as client:
            with pytest.raises(InvalidRequest, match="no form"):
                await Forms(client, "x").fields(Grammar("json_object"))

    with other_server(reply(200, answer, "application/json")) as url:
        asyncio.run(ask(url))


def test_grammars_of_all_kinds(upstream: LiveServer) -> None:
    for given, wanted in (
        ({"regex": "[0-9]{3}x"}, r"\d{3}x"),
        ({"grammar": 'start: "deep" /[ab]/'}, "deep[ab]"),
        ({"json": {"enum": ["sea"]}}, '"sea"'),
    ):
        answer = upstream.complete(structured_outputs=given, max_tokens=30).json()["choices"][0]
        assert answer["finish_reason"] == "stop"
        assert re.fullmatch(wanted, answer["text"])


@pytest.mark.parametrize(
    "given",
    [{}, {"regex": "a", "json": {}}, {"choice": ["a"]}, {"regex": 3}, {"grammar": ""}, {"json": "x"}, {"regex": "("}],
)
def test_grammars_that_are_none(upstream: LiveServer, given: Any) -> None:
    refused = upstream.complete(structured_outputs=given)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"].startswith("structured_outputs")
    both = upstream.complete(structured_outputs={"regex": "a"}, response_format={"type": "json_object"})
    assert both.status_code == 400


def test_grammars_need_a_permission(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with live_site(tokenizer, tmp_path) as site:
        _, client = site.customer()
        body = {"prompt": "x", "structured_outputs": {"regex": "a"}}
        assert client.post("/v1/completions", json=body).status_code == 403
        _, trusted = site.customer(control_tokens=True)
        assert trusted.post("/v1/completions", json=body).json()["choices"][0]["text"] == "a"


# ---- ends that nobody planned ----------------------------------------------------------------------------------------


def broken(*texts: str) -> type[BaseHTTPRequestHandler]:
    """A server that dies after some tokens."""
    chunks = [
        {"choices": [{"index": 0, "text": text, "finish_reason": None, "logprobs": {"tokens": [text]}}]}
        for text in texts
    ]

    class Handler(reply(200, b"")):  # type: ignore[misc]
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("content-length", "100000")  # which never come
            self.end_headers()
            self.wfile.write(stream(*chunks, end=False))

    return Handler


def test_an_engine_that_dies_in_mid_stream_is_paid_for_what_came(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with other_server(broken(" four", " fathoms")) as url, before(url, tokenizer, tmp_path) as site:
        user_id, client = site.customer()
        lines = chat(client, model="here", stream=True).text.splitlines()
        last = [line for line in lines if line.startswith("data: ")][-1]
        assert json.loads(last[6:])["error"]["code"] in ("engine_error", "engine_overloaded")
        assert "[DONE]" not in lines
        wait_until(lambda: site.open_holds() == 0)
        (bill,) = site.bills(user_id)
        assert (bill.outcome, bill.completion_tokens) == ("failed", 2)
        assert site.balance(user_id).total == 10**9 - bill.miss_tokens * MISS - 2 * OUTPUT
        whole = chat(client, model="here")
        assert whole.status_code in (500, 503)
        assert site.bills(user_id)[-1].amount == 0, "of a whole answer nothing was delivered"


def test_an_engine_that_says_nothing_is_given_up(tokenizer: Tokenizer, tmp_path: Path) -> None:
    class Silent(reply(200, b"")):  # type: ignore[misc]
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.connection.recv(1)  # until the other side goes

    with other_server(Silent) as url, before(url, tokenizer, tmp_path, timeout=0.3) as site:
        user_id, client = site.customer()
        refused = chat(client, model="here")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_overloaded")
        assert site.balance(user_id).total == 10**9


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_stops_the_engine_there(tokenizer: Tokenizer, tmp_path: Path, stream: bool) -> None:
    with (
        live_server(tokenizer, context_length=2048, tokens_per_second=20, answer=" deep" * 300) as slow,
        before(slow.url, tokenizer, tmp_path) as site,
    ):
        user_id, client = site.customer()
        body = {"model": "here", "messages": [{"role": "user", "content": "Hello"}], "stream": stream}
        if stream:
            with client.stream("POST", "/v1/chat/completions", json=body) as response:
                next(response.iter_text())
        else:
            with pytest.raises(httpx2.ReadTimeout):
                client.post("/v1/chat/completions", json=body, timeout=0.5)
        wait_until(lambda: not slow.engine.running and site.open_holds() == 0)
        (bill,) = site.bills(user_id)
        assert bill.outcome == "aborted"
        assert bill.completion_tokens < 100


def test_an_engine_that_has_stopped_is_an_error(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with live_server(tokenizer, context_length=2048) as other, before(other.url, tokenizer, tmp_path) as site:
        user_id, client = site.customer()
        assert content(chat(client, model="here"))
        spent = site.balance(user_id).total
        other.engine.kill()
        assert chat(client, model="here").status_code in (500, 503)
        assert site.balance(user_id).total == spent


def test_no_endless_spaces_are_asked_for() -> None:
    """Of a grammar every pattern of spaces is taken out, whatever is escaped in it, and nothing beside it."""
    told = {
        "enum": ['"whitespace_pattern": "'],
        "x-guidance": {"whitespace_pattern": r'( |\n\t"[ ]{0,20})?', "lenient": False},
    }
    lark = f"start: a b\na: %json {json.dumps(told)}\nb: %json {json.dumps(told)}"
    sent = _structured(Grammar("lark", lark))["grammar"]
    tight = {**told, "x-guidance": {"whitespace_flexible": False, "lenient": False}}
    assert sent == f"start: a b\na: %json {json.dumps(tight)}\nb: %json {json.dumps(tight)}"
    assert _structured(Grammar("json_schema", json.dumps(SCHEMA)))["json"] == SCHEMA | {
        "x-guidance": {"whitespace_flexible": False}
    }
