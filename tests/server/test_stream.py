"""Streams: the order of chunks, usage, errors before and after the first byte, signs of life."""

from __future__ import annotations

import json
from typing import Any

import pytest

from leadline.engine.fake import ANSWER
from leadline.server.settings import ServerSettings
from leadline.tokenizer import Tokenizer
from tests.fixtures_server import LiveServer, live_server

CHINESE = " 水有多深？四寻半。👍🏽 done"


def events(text: str) -> list[Any]:
    """The events of a stream that ended well, without [DONE]."""
    *lines, done, end = text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in lines if not line.startswith(":")]


def chat(server: LiveServer, **fields: Any) -> list[Any]:
    response = server.chat(stream=True, **fields)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    return events(response.text)


def content(chunks: list[Any], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"]["content"] for choice in choices)


def test_order_of_chunks(server: LiveServer) -> None:
    chunks = chat(server)
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert all("role" not in choice["delta"] for choice in choices[1:])
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert all("usage" not in chunk for chunk in chunks)
    assert content(chunks) == ANSWER.removeprefix(" ")


@pytest.mark.parametrize("fields", [{}, {"stop": "water"}, {"max_tokens": 4}, {"logprobs": True}, {"n": 3}])
def test_a_stream_says_what_the_whole_answer_says(server: LiveServer, fields: Any) -> None:
    whole = server.chat(**fields).json()
    chunks = chat(server, stream_options={"include_usage": True}, **fields)
    for choice in whole["choices"]:
        mine = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
        assert content(chunks, choice["index"]) == choice["message"]["content"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        if choice["logprobs"]:
            parts = [entry for part in mine if part["logprobs"] for entry in part["logprobs"]["content"]]
            assert parts == choice["logprobs"]["content"]
    assert chunks[-1]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]


def test_usage_comes_last_and_alone_when_asked_for(server: LiveServer) -> None:
    chunks = chat(server, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] > 0
    for options in ({"include_usage": False}, {}, {"include_obfuscation": True}, None):
        assert all("usage" not in chunk for chunk in chat(server, stream_options=options))


def test_completion_chunks_always_have_text(server: LiveServer) -> None:
    chunks = events(server.complete("Hello", stream=True, echo=True, max_tokens=100, logprobs=0).text)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hello" + ANSWER
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "stop"
    whole = server.complete("Hello", echo=True, max_tokens=100, logprobs=0).json()["choices"][0]["logprobs"]
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    for key, values in whole.items():
        assert [value for part in parts for value in part[key]] == values


def test_echo_alone_streams_the_prompt(server: LiveServer) -> None:
    chunks = events(server.complete("Hello", stream=True, echo=True, max_tokens=0).text)
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["Hello", ""]


def test_characters_are_never_cut(tokenizer: Tokenizer) -> None:
    with live_server(tokenizer, answer=CHINESE) as server:
        response = server.chat(stream=True)
        assert response.text.isascii()  # so that no client's idea of a line end cuts an event
        assert content(events(response.text)) == CHINESE.removeprefix(" ")
        assert "\ufffd" not in response.text


def test_what_is_refused_has_its_status_in_a_stream_too(server: LiveServer) -> None:
    response = server.chat("x" * 5000, stream=True)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_an_overloaded_engine_is_503_with_retry_after(tokenizer: Tokenizer) -> None:
    with live_server(tokenizer, max_requests=0) as server:
        for stream in (False, True):
            response = server.chat(stream=stream)
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
            assert response.json()["error"]["code"] == "engine_overloaded"


def test_a_dead_engine_is_503_and_unhealthy(tokenizer: Tokenizer) -> None:
    with live_server(tokenizer) as server:
        assert server.http.get("/health").status_code == 200
        server.engine.kill()
        assert server.http.get("/health").status_code == 503
        assert server.chat().json()["error"]["code"] == "engine_dead"
        assert "leadline_engine_alive 0.0" in server.http.get("/metrics").text


def test_a_failure_on_the_way_is_an_event_and_the_end(tokenizer: Tokenizer) -> None:
    with live_server(tokenizer, error_after=3) as server:
        response = server.chat(stream=True)
        assert response.status_code == 200
        *_, last, end = response.text.split("\n\n")
        assert end == ""
        assert set(json.loads(last.removeprefix("data: "))["error"]) == {"message", "type", "param", "code"}
        assert "[DONE]" not in response.text
        whole = server.chat()
        assert whole.status_code == 500
        assert whole.json()["error"]["code"] == "engine_error"


def test_a_waiting_client_hears_that_it_is_served(tokenizer: Tokenizer) -> None:
    settings = ServerSettings(keep_alive_seconds=0.05)
    with live_server(tokenizer, settings, first_token_seconds=0.2) as server:
        response = server.chat(stream=True)
        assert response.text.startswith(": keep-alive\n\n: keep-alive\n\n")
        assert content(events(response.text)) == ANSWER.removeprefix(" ")
        whole = server.chat()
        assert whole.text.startswith("\n\n")
        assert whole.json()["choices"][0]["finish_reason"] == "stop"


def test_a_failure_after_a_sign_of_life_cuts_the_answer(tokenizer: Tokenizer) -> None:
    settings = ServerSettings(keep_alive_seconds=0.02)
    with live_server(tokenizer, settings, first_token_seconds=0.1, error_after=0) as server:
        response = server.chat(stream=True)
        assert '"code":"engine_error"' in response.text
        with pytest.raises(Exception, match=r"(?i)peer closed|incomplete|disconnected"):
            server.chat()
