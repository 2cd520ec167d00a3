"""Raw completions: kinds of prompt, echo, log-probabilities, fill-in-the-middle, control strings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leadline.engine.fake import ANSWER
from leadline.tokenizer import Tokenizer
from tests.fixtures_server import LiveServer, live_server, small_tokenizer


def done(server: LiveServer, prompt: Any = "Hello", **fields: Any) -> Any:
    response = server.complete(prompt, **fields)
    assert response.status_code == 200, response.text
    return response.json()


def test_text(server: LiveServer, tokenizer: Tokenizer) -> None:
    body = done(server, max_tokens=100)
    assert body["id"].startswith("cmpl-")
    assert body["object"] == "text_completion"
    assert body["choices"] == [{"index": 0, "text": ANSWER, "logprobs": None, "finish_reason": "stop"}]
    assert server.engine.requests[-1].prompt_ids == tokenizer.encode_prompt("Hello").ids


def test_the_default_length_is_openais(server: LiveServer) -> None:
    assert done(server)["usage"]["completion_tokens"] == 16


def test_an_empty_prompt_is_the_beginning_of_a_text(server: LiveServer, tokenizer: Tokenizer) -> None:
    done(server, "")
    assert server.engine.requests[-1].prompt_ids == (tokenizer.bos_id,)


def test_a_list_of_prompts(server: LiveServer) -> None:
    body = done(server, ["one", "two"], n=2, echo=True, max_tokens=2)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert [choice["text"][:3] for choice in body["choices"]] == ["one", "one", "two", "two"]
    assert body["usage"]["completion_tokens"] == 8
    assert body["usage"]["prompt_tokens"] == sum(len(request.prompt_ids) for request in server.engine.requests[-2:])


def test_token_ids(server: LiveServer, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("Hello")
    assert done(server, ids, echo=True)["choices"][0]["text"].startswith("Hello")
    assert server.engine.requests[-1].prompt_ids == (tokenizer.bos_id, *ids)
    body = done(server, [ids, ids[:1]])
    assert len(body["choices"]) == 2


@pytest.mark.parametrize(
    "prompt", [None, 5, [], [[]], [True], ["a", 1], [1, [2]], [1.5], {"a": 1}, [-1], [10**9], [10**4000], [[1], []]]
)
def test_other_prompts_are_refused(server: LiveServer, prompt: Any) -> None:
    response = server.complete(prompt)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_too_many_prompts(server: LiveServer) -> None:
    assert server.complete(["x"] * 65, n=2).status_code == 400


def test_echo_with_logprobs_shows_each_prompt_token_at_its_place(server: LiveServer, tokenizer: Tokenizer) -> None:
    (choice,) = done(server, "Hello", echo=True, logprobs=2, max_tokens=4)["choices"]
    shown = choice["logprobs"]
    ids = server.engine.requests[-1].prompt_ids
    assert len(shown["tokens"]) == len(ids) + 4
    assert shown["tokens"][0] == tokenizer.bos_token
    for token, offset in zip(shown["tokens"][1:], shown["text_offset"][1:], strict=True):
        assert choice["text"].startswith(token, offset)
    assert shown["token_logprobs"][0] is None
    assert len(shown["top_logprobs"][-1]) == 2


def test_echo_alone_generates_nothing(server: LiveServer) -> None:
    body = done(server, "Hello", echo=True, max_tokens=0)
    assert body["choices"][0]["text"] == "Hello"
    assert body["usage"]["completion_tokens"] == 0
    assert server.complete("Hello", max_tokens=0).status_code == 400


def test_logprobs_past_twenty(server: LiveServer) -> None:
    assert server.complete(logprobs=20).status_code == 200
    assert server.complete(logprobs=21).status_code == 400


def test_suffix_fills_in_the_middle(server: LiveServer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    for path in ("/beta/completions", "/v1/completions"):
        body = {"model": "fake", "prompt": "def f(", "suffix": "return 1"}
        assert server.post(path, body).status_code == 200
        assert server.engine.requests[-1].prompt_ids == tokenizer.fim("def f(", "return 1")
    assert server.complete([1, 2], suffix="x").status_code == 400
    assert server.complete("x", suffix="").status_code == 200
    with live_server(small_tokenizer(tmp_path, fim=False)) as other:
        response = other.complete("def f(", suffix="return 1")
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "suffix"


def test_control_strings_are_text_with_a_warning_unless_asked_for(server: LiveServer, tokenizer: Tokenizer) -> None:
    prompt = f"one{tokenizer.eos_token}two"
    response = server.complete(prompt)
    assert "plain text" in response.headers["x-leadline-warning"]
    assert tokenizer.eos_id not in server.engine.requests[-1].prompt_ids
    response = server.complete(prompt, parse_special=True)
    assert "x-leadline-warning" not in response.headers
    assert tokenizer.eos_id in server.engine.requests[-1].prompt_ids


def test_a_ten_megabyte_prompt_is_refused_while_others_are_served(server: LiveServer) -> None:
    response = server.complete("deep water " * 1_000_000)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert response.elapsed.total_seconds() < 5
    assert server.complete([7] * 1_000_000).json()["error"]["code"] == "context_length_exceeded"
