"""What clients of OpenAI's and DeepSeek's APIs rely on: forty probes, a request or two each, with accounts.

The numbers are those of the list that the API was planned by; what a probe touches only briefly has tests of its own.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import socket
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import jsonschema_rs
import pytest

from leadline.engine.fake import ANSWER
from leadline.server.settings import ServerSettings
from leadline.tokenizer import Tokenizer
from tests.fixtures_server import wait_until
from tests.server.platform.books import HIT, MISS, OUTPUT
from tests.server.platform.site import Site, chat, live_site

TEXT = ANSWER.removeprefix(" ")
USER = {"role": "user", "content": "How deep is it?"}
LONG = "How deep is the water here, and how deep is it there? " * 12
CHAT = "/v1/chat/completions"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture
def client(site: Site) -> httpx2.Client:
    return site.customer(10**12, control_tokens=True)[1]


@pytest.fixture(scope="module")
def slow(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Generator[Site, None, None]:
    """A twentieth of a second a token."""
    folder = tmp_path_factory.mktemp("slow")
    with live_site(tokenizer, folder, tokens_per_second=20, answer=" deep" * 100) as live:
        yield live
        assert live.faults() == []


def good(response: httpx2.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


def bad(response: httpx2.Response, status: int = 400) -> Any:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def ask(client: httpx2.Client, **fields: Any) -> httpx2.Response:
    return client.post(CHAT, json={"messages": [USER], **fields})


def content(body: Any) -> str:
    return str(body["choices"][0]["message"]["content"])


def events(response: httpx2.Response) -> list[Any]:
    assert response.status_code == 200, response.text
    *lines, done, end = response.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in lines if not line.startswith(":")]


def streamed(chunks: list[Any], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def test_01_models(client: httpx2.Client) -> None:
    (model,) = good(client.get("/v1/models"))["data"]
    assert {"id", "object", "created", "owned_by", "context_length", "max_output_tokens"} <= set(model)
    assert good(client.get(f"/v1/models/{model['id']}")) == model
    assert bad(client.get("/v1/models/gpt-4"), 404)["code"] == "model_not_found"


def test_02_keys(site: Site) -> None:
    wrong = f"sk-{'0' * 44}1234"
    assert bad(site.client().get("/v1/models"), 401)["type"] == "authentication_error"
    assert "****1234" in bad(site.client(wrong).get("/v1/models"), 401)["message"]
    assert wrong not in site.client(wrong).get("/v1/models").text
    bad(site.client("nonsense").post(CHAT, json={"messages": [USER]}), 401)


def test_03_the_smallest_chat(client: httpx2.Client) -> None:
    body = good(ask(client))
    assert {"id", "object", "created", "model", "choices", "usage", "system_fingerprint"} <= set(body)
    (choice,) = body["choices"]
    assert set(choice) == {"index", "message", "logprobs", "finish_reason"}
    assert choice["message"] == {"role": "assistant", "content": TEXT, "refusal": None}


@pytest.mark.parametrize("messages", [[], [{}], "string", [123], [{"role": 123, "content": "x"}], None, {"a": 1}])
def test_04_messages_of_another_form(client: httpx2.Client, messages: Any) -> None:
    bad(ask(client, messages=messages))


def test_05_bodies_that_are_none(client: httpx2.Client) -> None:
    headers = {"content-type": "application/json"}
    for body in (b"{", b"[]", b'"x"', b"\xff"):
        bad(client.post(CHAT, content=body, headers=headers))
    bad(client.post(CHAT, content=b'{"x": "' + b"x" * (33 << 20) + b'"}', headers=headers), 413)


def test_06_every_field_of_the_openai_client(client: httpx2.Client) -> None:
    fields: dict[str, Any] = {
        "model": "deepseek-chat",
        "audio": None,
        "frequency_penalty": 0.5,
        "function_call": "none",
        "functions": [{"name": "f"}],
        "logit_bias": {"5": 1},
        "logprobs": True,
        "max_completion_tokens": 9,
        "max_tokens": 8,
        "metadata": {"a": "b"},
        "modalities": ["text"],
        "moderation": {},
        "n": 1,
        "parallel_tool_calls": True,
        "prediction": None,
        "presence_penalty": 0.5,
        "prompt_cache_key": "x",
        "prompt_cache_retention": "24h",
        "reasoning_effort": "low",
        "response_format": {"type": "text"},
        "safety_identifier": "x",
        "seed": 1,
        "service_tier": "auto",
        "stop": ["x"],
        "store": False,
        "stream": False,
        "stream_options": None,
        "temperature": 1,
        "thinking": {"type": "disabled"},
        "tool_choice": "none",
        "tools": [WEATHER],
        "top_logprobs": 2,
        "top_p": 0.9,
        "user": "u",
        "user_id": "u-1",
        "verbosity": "low",
        "web_search_options": {},
    }
    good(ask(client, **fields))


def test_07_unknown_fields(client: httpx2.Client) -> None:
    good(ask(client, no_such_field={"deep": [1, None]}, stream_options={"include_usage": True}))


@pytest.mark.parametrize(
    "field",
    [
        *({"temperature": 2.1}, {"top_p": 0}, {"n": 0}, {"max_tokens": 0}, {"max_tokens": -1}, {"stop": ["x"] * 17}),
        *({"top_logprobs": 2}, {"presence_penalty": 3}, {"logit_bias": {"x": 1}}, {"seed": "1"}),
    ],
)
def test_08_ranges(client: httpx2.Client, field: Any) -> None:
    assert bad(ask(client, **field))["param"].startswith(next(iter(field)))


def test_09_a_stop_string_across_tokens(client: httpx2.Client, tokenizer: Tokenizer) -> None:
    tokens = [tokenizer.token_text(token) for token in tokenizer.encode(ANSWER)]
    stop = next(a[-1:] + b[:2] for a, b in itertools.pairwise(tokens[6:]) if len(b) > 1)
    body = good(ask(client, stop=[stop, "never"]))
    assert stop not in content(body)
    assert content(body) == TEXT.partition(stop)[0]


def test_10_length(client: httpx2.Client) -> None:
    body = good(ask(client, max_tokens=3))
    assert (body["choices"][0]["finish_reason"], body["usage"]["completion_tokens"]) == ("length", 3)


def test_11_a_stream(client: httpx2.Client) -> None:
    chunks = events(ask(client, stream=True))
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert [("role" in delta) for delta in deltas] == [True] + [False] * (len(deltas) - 1)
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]


def test_12_streamed_and_whole_are_the_same(client: httpx2.Client) -> None:
    fields = {"temperature": 0, "seed": 7}
    assert streamed(events(ask(client, stream=True, **fields))) == content(good(ask(client, **fields))) == TEXT


def test_13_usage_of_a_stream(client: httpx2.Client) -> None:
    chunks = events(ask(client, stream=True, stream_options={"include_usage": True}))
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    usage = chunks[-1]["usage"]
    assert chunks[-1]["choices"] == []
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]
    for options in ({"include_usage": False}, None):
        assert all("usage" not in chunk for chunk in events(ask(client, stream=True, stream_options=options)))


def test_14_characters_stay_whole(site: Site, client: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = " 水有多深？四寻半。👩‍👩‍👧 👍🏽 é"
    monkeypatch.setattr(site.live.engine, "answer", wide)
    assert streamed(events(ask(client, stream=True))) == wide.removeprefix(" ")
    assert "\\ufffd" not in ask(client, stream=True).text


def test_15_logprobs(client: httpx2.Client) -> None:
    for top in (0, 5, 20):
        body = good(ask(client, logprobs=True, top_logprobs=top))
        entries = body["choices"][0]["logprobs"]["content"]
        assert "".join(entry["token"] for entry in entries) == content(body)
        assert all(len(entry["top_logprobs"]) == top for entry in entries)
    bad(ask(client, logprobs=True, top_logprobs=21))
    chunks = events(ask(client, logprobs=True, stream=True))
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    assert "".join(entry["token"] for part in parts for entry in part["content"]) == streamed(chunks)


def test_16_several_answers(client: httpx2.Client) -> None:
    assert [choice["index"] for choice in good(ask(client, n=2))["choices"]] == [0, 1]
    chunks = events(ask(client, n=2, stream=True))
    assert streamed(chunks, 0) == streamed(chunks, 1) == TEXT


def test_17_a_seed_repeats(client: httpx2.Client) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string", "maxLength": 9}}}
    answers = {content(good(ask(client, seed=seed, response_format=form))) for seed in (3, 3, 3)}
    assert len(answers) == 1
    assert len({good(ask(client, seed=seed))["system_fingerprint"] for seed in (3, 4)}) == 1


def test_18_logit_bias(site: Site, client: httpx2.Client) -> None:
    good(ask(client, logit_bias={"5": 100, "6": -100}))
    assert site.live.engine.requests[-1].params.logit_bias == ((5, 100.0), (6, -100.0))
    bad(ask(client, logit_bias={"5": 101}))


def test_19_tools(client: httpx2.Client) -> None:
    tools = [WEATHER]
    assert "tool_calls" not in good(ask(client, tools=tools))["choices"][0]["message"]
    assert "tool_calls" not in good(ask(client, tools=tools, tool_choice="none"))["choices"][0]["message"]
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        got = good(ask(client, tools=tools, tool_choice=choice, parallel_tool_calls=False))["choices"][0]
        (call,) = got["message"]["tool_calls"]
        assert got["finish_reason"] == "tool_calls"
        assert set(json.loads(call["function"]["arguments"])) == {"city"}
    chunks = events(ask(client, tools=tools, tool_choice="required", parallel_tool_calls=False, stream=True))
    parts = [part for chunk in chunks for part in chunk["choices"][0]["delta"].get("tool_calls", ())]
    json.loads("".join(part["function"]["arguments"] for part in parts))
    result = {"role": "tool", "tool_call_id": call["id"], "content": "wet"}
    good(ask(client, tools=tools, messages=[USER, got["message"], result]))
    bad(ask(client, tools=tools * 129))


def test_20_forms(client: httpx2.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    jsonschema_rs.validate(schema, json.loads(content(good(ask(client, response_format=form)))))
    assert content(good(ask(client, response_format={"type": "json_object"}, max_tokens=5))).startswith("{")
    form["json_schema"] = {"name": "x", "schema": {"type": "nonsense"}}
    started = time.monotonic()
    bad(ask(client, response_format=form))
    assert time.monotonic() - started < 10


def test_21_prefix_fim_echo(client: httpx2.Client) -> None:
    prefix = {"role": "assistant", "content": "It is", "prefix": True}
    assert content(good(client.post("/beta/chat/completions", json={"messages": [USER, prefix]}))) == ANSWER
    good(client.post("/beta/completions", json={"prompt": "def f(", "suffix": "return", "max_tokens": 5}))
    body = good(client.post("/beta/completions", json={"prompt": "def f(", "echo": True, "max_tokens": 5}))
    assert body["choices"][0]["text"].startswith("def f(")


def test_22_a_context_that_is_full(client: httpx2.Client) -> None:
    assert bad(chat(client, LONG * 50))["code"] == "context_length_exceeded"


def test_23_the_cache_is_the_accounts_own(site: Site, client: httpx2.Client) -> None:
    def hits(asking: httpx2.Client, **fields: Any) -> int:
        usage = good(chat(asking, LONG, **fields))["usage"]
        assert usage["prompt_cache_hit_tokens"] + usage["prompt_cache_miss_tokens"] == usage["prompt_tokens"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_cache_hit_tokens"]
        return int(usage["prompt_cache_hit_tokens"])

    user = site.user(balance=10**12)
    first, second = site.client(site.key(user)), site.client(site.key(user))
    assert hits(first) == 0
    assert hits(second) >= 64  # another key of the same account
    assert hits(client) == 0  # another account
    assert hits(first, user_id="anne") == 0  # divided further
    assert hits(first, user_id="anne") >= 64


def test_24_the_bill_is_tokens_times_price(site: Site) -> None:
    user, client = site.customer(10**12)
    for _ in range(2):
        before = site.balance(user).total
        usage = good(chat(client, LONG))["usage"]
        cost = usage["prompt_cache_hit_tokens"] * HIT + usage["prompt_cache_miss_tokens"] * MISS
        assert before - site.balance(user).total == cost + usage["completion_tokens"] * OUTPUT


def test_25_no_money(site: Site) -> None:
    before = len(site.live.engine.requests)
    response = ask(site.client(site.key(site.user())))
    assert bad(response, 402)["code"] == "insufficient_balance"
    assert response.headers["x-should-retry"] == "false"
    assert len(site.live.engine.requests) == before


def test_26_fifty_at_once_on_a_balance_for_five(site: Site) -> None:
    user, rich = site.customer(10**12)
    before = site.balance(user).total
    good(ask(rich, max_tokens=8))
    each = before - site.balance(user).total
    poor, client = site.customer(5 * each)
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: ask(client, max_tokens=8).status_code, range(50)))
    assert set(answers) <= {200, 402}
    assert 1 <= answers.count(200) <= 5
    assert site.balance(poor).total >= 0


@pytest.mark.parametrize("stream", [True, False])
def test_27_who_leaves_pays_for_what_came(slow: Site, stream: bool) -> None:
    user = slow.user(balance=10**12)
    key = slow.key(user)
    body = json.dumps({"messages": [USER], "stream": stream}).encode()
    address = urlsplit(slow.url)
    with socket.create_connection((address.hostname or "", address.port or 0)) as sock:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {key}\r\n"
        sock.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_until(lambda: bool(slow.live.engine.running))
        if stream:
            sock.recv(65536)
    wait_until(lambda: not slow.live.engine.running)
    wait_until(lambda: len(slow.bills(user)) == 1)
    (bill,) = slow.bills(user)
    assert bill.outcome == "aborted"
    assert bill.completion_tokens < 100 if stream else bill.completion_tokens == 0


def test_28_too_many_at_once(slow: Site) -> None:
    _, client = slow.customer(10**12, concurrency=1)
    with client.stream("POST", CHAT, json={"messages": [USER], "stream": True}) as running:
        lines = running.iter_lines()
        next(lines)
        response = ask(client)
        assert bad(response, 429)["code"] == "too_many_at_once"
        assert int(response.headers["retry-after"]) >= 1


def test_29_signs_of_life(tokenizer: Tokenizer, tmp_path: Path) -> None:
    settings = ServerSettings(keep_alive_seconds=0.05)
    with live_site(tokenizer, tmp_path, server=settings, first_token_seconds=0.3) as site:
        _, client = site.customer()
        assert ask(client, stream=True).text.startswith(": keep-alive\n\n")
        response = ask(client)
        assert response.text.startswith("\n")
        assert content(response.json()) == TEXT


def test_30_a_slow_reader_blocks_nobody(slow: Site) -> None:
    _, client = slow.customer(10**12)
    with client.stream("POST", CHAT, json={"messages": [USER], "stream": True}):  # and reads nothing
        good(ask(client, max_tokens=2))


def test_31_a_server_that_stops_says_so(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A running answer ends or hears why; it is never cut without a word and without a bill."""
    with live_site(tokenizer, tmp_path, answer=" deep" * 40, tokens_per_second=100) as site:
        user, client = site.customer()
        with client.stream("POST", CHAT, json={"messages": [USER], "stream": True}) as running:
            lines = running.iter_lines()
            next(lines)
            site.live.engine.closing = True  # no new requests; those that run may end
            assert bad(ask(client), 503)["code"] == "engine_overloaded"
            assert list(lines)[-2] == "data: [DONE]"
        wait_until(lambda: [bill.outcome for bill in site.bills(user) if bill.completion_tokens] == ["finished"])


def test_32_other_pages_may_call_with_a_key(site: Site) -> None:
    headers = {"origin": "https://page.example", "access-control-request-method": "POST"}
    preflight = site.client().request("OPTIONS", CHAT, headers=headers)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in preflight.headers


def test_33_methods(client: httpx2.Client) -> None:
    assert client.head("/v1/models").status_code == 200
    response = client.get(CHAT)
    bad(response, 405)
    assert "POST" in response.headers["allow"]
    bad(client.request("OPTIONS", CHAT), 405)


def test_34_streams_are_not_compressed(client: httpx2.Client) -> None:
    response = client.post(CHAT, json={"messages": [USER], "stream": True}, headers={"accept-encoding": "gzip, br"})
    assert "content-encoding" not in response.headers
    assert response.headers["x-accel-buffering"] == "no"


def test_35_every_answer_has_its_id(site: Site, client: httpx2.Client) -> None:
    answers = [client.get("/v1/models"), client.get("/nope"), ask(client), ask(client, stream=True), ask(client, n=0)]
    answers.append(site.client().get("/v1/models"))
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("prefix", ["", "/v1", "/beta", "/beta/v1"])
def test_36_four_prefixes(client: httpx2.Client, prefix: str) -> None:
    assert content(good(client.post(f"{prefix}/chat/completions", json={"messages": [USER]}))) == TEXT
    good(client.post(f"{prefix}/completions", json={"prompt": "x"}))
    good(client.get(f"{prefix}/models"))
    assert good(client.get(f"{prefix}/user/balance"))["is_available"] is True


def test_37_the_chat_protocol_of_2024(client: httpx2.Client) -> None:
    body = {"message": "Hello", "stream": True, "model_preference": None, "model_class": "deepseek_chat"}
    lines = [line for line in client.post("/api/v0/chat/completions", json=body).text.split("\n") if line]
    parts = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"]["content"] for line in lines]
    assert "".join(parts) == TEXT


@pytest.mark.parametrize("form", ["bearer {}", "BEARER   {}", "Bearer {}"])
def test_38_how_a_key_is_sent(site: Site, form: str) -> None:
    key = site.key(site.user(balance=10**9))
    good(site.client().get("/v1/models", headers={"authorization": form.format(key)}))


@pytest.mark.parametrize(
    "body", [b'{"messages":[],"messages":[]}', b'{"n":NaN}', b'{"user":"\\ud800"}', b'{"n":1e999}', b"[" * 90_000]
)
def test_39_json_that_is_odd(client: httpx2.Client, body: bytes) -> None:
    bad(client.post(CHAT, content=body, headers={"content-type": "application/json"}))


def test_40_health_and_numbers(site: Site, client: httpx2.Client) -> None:
    assert good(site.client().get("/health")) == {"status": "ok"}
    good(site.client().get("/ready"))
    bad(site.client().get("/metrics"), 401)
    bad(client.get("/metrics"), 403)
    operator = site.client(site.key(site.user(role="admin")))
    assert "leadline_time_to_first_token_seconds" in operator.get("/metrics").text
