"""Chat completions in one piece: fields, defaults, ranges, prompts, usage."""

from __future__ import annotations

from typing import Any

import pytest

from leadline.engine.fake import ANSWER
from leadline.engine.types import SamplingParams
from leadline.server.settings import ServerSettings
from leadline.tokenizer import Tokenizer
from tests.fixtures_server import LiveServer, live_server

USER = {"role": "user", "content": "Hello"}


def ask(server: LiveServer, messages: Any, **fields: Any) -> Any:
    response = server.post("/v1/chat/completions", {"model": "fake", "messages": messages, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def refused(server: LiveServer, param: str | None = None, path: str = "/v1/chat/completions", **body: Any) -> str:
    response = server.post(path, {"model": "fake", "messages": [USER], **body})
    error = response.json()["error"]
    assert response.status_code == 400, response.text
    assert set(error) == {"message", "type", "param", "code"}
    assert param is None or error["param"] == param
    return str(error["message"])


def test_an_answer_has_every_required_key(server: LiveServer) -> None:
    body = ask(server, [USER])
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"
    assert body["model"] == "fake"
    assert body["system_fingerprint"].startswith("fp_")
    (choice,) = body["choices"]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": ANSWER.removeprefix(" "), "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }


def test_the_prompt_is_the_rendered_template(server: LiveServer, tokenizer: Tokenizer) -> None:
    ask(server, [{"role": "developer", "content": "Be brief."}, USER])
    expected = tokenizer.render([{"role": "system", "content": "Be brief."}, USER])
    assert server.engine.requests[-1].prompt_ids == expected


def test_text_parts_are_joined_and_other_parts_refused(server: LiveServer, tokenizer: Tokenizer) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    ask(server, [{"role": "user", "content": parts}])
    assert server.engine.requests[-1].prompt_ids == tokenizer.render([USER])
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    message = refused(server, "messages.0.content.0", messages=[{"role": "user", "content": image}])
    assert "image_url" in message


def test_a_prefix_is_continued_without_opening_the_turn_again(server: LiveServer, tokenizer: Tokenizer) -> None:
    messages: list[Any] = [USER, {"role": "assistant", "content": "```python", "prefix": True}]
    for prefix in ("/v1", "/beta"):
        body = server.post(f"{prefix}/chat/completions", {"model": "fake", "messages": messages}).json()
        assert body["choices"][0]["message"]["content"] == ANSWER  # its space belongs to it: the text goes on
        assert server.engine.requests[-1].prompt_ids == tokenizer.render(messages, continue_final=True)
    refused(server, "messages.0.prefix", messages=[{**USER, "prefix": True}])
    refused(server, "messages.1.prefix", messages=[USER, messages[1], USER])


@pytest.mark.parametrize("prefix", ["", "/v1", "/beta", "/beta/v1"])
def test_four_prefixes_share_their_handlers(server: LiveServer, prefix: str) -> None:
    assert server.post(f"{prefix}/chat/completions", {"messages": [USER]}).status_code == 200
    assert server.post(f"{prefix}/completions", {"prompt": "x"}).status_code == 200
    assert server.http.get(f"{prefix}/models").status_code == 200
    assert server.http.get(f"{prefix}/models/fake").status_code == 200


@pytest.mark.parametrize("name", ["fake", "deepseek-chat", "deepseek-coder", None])
def test_aliases_are_accepted_and_answers_carry_the_real_name(server: LiveServer, name: str | None) -> None:
    assert ask(server, [USER], model=name)["model"] == "fake"


def test_an_unknown_model_is_404(server: LiveServer) -> None:
    response = server.chat(model="gpt-4")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert server.http.get("/v1/models/gpt-4").status_code == 404


def test_sampling_fields_reach_the_engine(server: LiveServer) -> None:
    ask(
        server,
        [USER],
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-1,
        frequency_penalty=1.5,
        logit_bias={"5": -100, "6": 3.5},
        seed=-7,
        n=2,
        stop=["x", "y"],
        stop_token_ids=[3],
        min_tokens=1,
        ignore_eos=True,
        max_tokens=9,
        max_completion_tokens=4,
        logprobs=True,
        top_logprobs=2,
    )
    assert server.engine.requests[-1].params == SamplingParams(
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-1,
        frequency_penalty=1.5,
        logit_bias=((5, -100.0), (6, 3.5)),
        seed=-7,
        n=2,
        stop=("x", "y"),
        stop_token_ids=(3,),
        min_tokens=1,
        ignore_eos=True,
        max_tokens=4,
        logprobs=2,
    )


def test_defaults_are_openais_unless_the_model_has_its_own(server: LiveServer, tokenizer: Tokenizer) -> None:
    ask(server, [USER])
    assert server.engine.requests[-1].params == SamplingParams()
    own = ServerSettings(defaults=SamplingParams(temperature=0.3, top_p=0.95))
    with live_server(tokenizer, own) as other:
        ask(other, [USER], top_p=0.5)
        assert other.engine.requests[-1].params == SamplingParams(temperature=0.3, top_p=0.5)


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("temperature", 2.1),
        ("temperature", "1"),
        ("temperature", -0.1),
        ("top_p", 0),
        ("top_p", 1.1),
        ("n", 0),
        ("n", 129),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("stop", ["x"] * 17),
        ("stop", ""),
        ("frequency_penalty", 2.1),
        ("presence_penalty", -2.1),
        ("logit_bias", {"foo": 0}),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {"99999999": 1}),
        ("top_logprobs", 5),
        ("seed", 1 << 64),
        ("messages", []),
        ("messages", "text"),
        ("messages.0.role", [{}]),
        ("messages.0", [123]),
        ("messages.0.role", [{"role": 123, "content": "x"}]),
        ("messages.0.content", [{"role": "user", "content": 5}]),
        ("messages.0.content", [{"role": "user"}]),
        ("messages[0]", [{"role": "robot", "content": "x"}]),
        ("stream", "yes"),
    ],
)
def test_values_out_of_range_are_400_and_name_the_field(server: LiveServer, param: str, value: Any) -> None:
    field = param.split(".", maxsplit=1)[0].split("[")[0]
    refused(server, **{field: value})
    response = server.post("/v1/chat/completions", {"messages": [USER], field: value})
    assert response.json()["error"]["param"].startswith(field)


def test_more_logprobs_than_allowed(server: LiveServer) -> None:
    refused(server, logprobs=True, top_logprobs=21)


def test_unknown_and_unsupported_fields_are_accepted(server: LiveServer) -> None:
    ask(
        server,
        [{**USER, "name": "captain", "reasoning_content": "x"}],
        user="u",
        metadata={"a": "b"},
        store=True,
        service_tier="auto",
        parallel_tool_calls=True,
        prediction={"type": "content", "content": "x"},
        modalities=["text"],
        reasoning_effort="none",
        verbosity="low",
        thinking={"type": "disabled"},
        stream=False,
        stream_options={"include_usage": True},
        response_format={"type": "text"},
        tools=[{"type": "function", "function": {"name": "f"}}],
        tool_choice="none",
        no_such_field=[1, {"a": None}],
        temperature=None,
        max_tokens=None,
        stop=None,
    )


def test_n_answers_count_the_prompt_once(server: LiveServer) -> None:
    one, three = ask(server, [USER], n=1, max_tokens=5), ask(server, [USER], n=3, max_tokens=5)
    assert [choice["index"] for choice in three["choices"]] == [0, 1, 2]
    assert three["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]
    assert three["usage"]["completion_tokens"] == 15


def test_usage_adds_up_and_hits_are_the_engines(server: LiveServer) -> None:
    long = [{"role": "user", "content": "How deep is the water here? " * 10}]
    first, second = ask(server, long)["usage"], ask(server, long)["usage"]
    assert first["prompt_cache_hit_tokens"] == 0
    assert second["prompt_cache_hit_tokens"] >= 64
    for usage in (first, second):
        assert usage["prompt_cache_hit_tokens"] + usage["prompt_cache_miss_tokens"] == usage["prompt_tokens"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_cache_hit_tokens"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_user_id_divides_the_prefix_cache(server: LiveServer) -> None:
    long = [{"role": "user", "content": "Mark twain, said the leadsman. " * 10}]
    hits = [
        ask(server, long, user_id=user)["usage"]["prompt_cache_hit_tokens"] for user in ("anne", "anne", "bill", None)
    ]
    assert hits[0] == 0
    assert hits[1] > 0
    assert hits[2:] == [0, 0]


@pytest.mark.parametrize("stop", ["sailors", "s what", "water", "\n"])
def test_a_stop_string_never_shows(server: LiveServer, stop: str) -> None:
    text = ask(server, [USER], stop=stop)["choices"][0]["message"]["content"]
    assert text == ANSWER.removeprefix(" ").split(stop)[0]


def test_length(server: LiveServer) -> None:
    body = ask(server, [USER], max_tokens=3)
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 3
    assert ask(server, [USER], max_tokens=10**15)["choices"][0]["finish_reason"] == "stop"


def test_logprobs_spell_the_answer(server: LiveServer) -> None:
    for fields in ({}, {"stop": "d the depth"}, {"max_tokens": 7}):
        (choice,) = ask(server, [USER], logprobs=True, top_logprobs=3, **fields)["choices"]
        content = choice["logprobs"]["content"]
        assert "".join(entry["token"] for entry in content) == choice["message"]["content"]
        assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == choice["message"]["content"]
        assert all(len(entry["top_logprobs"]) == 3 for entry in content)


def test_a_token_that_a_stop_string_cuts_is_shown_whole(server: LiveServer) -> None:
    (choice,) = ask(server, [USER], logprobs=True, stop="ater")["choices"]
    tokens = [entry["token"] for entry in choice["logprobs"]["content"]]
    assert "".join(tokens[:-1]) in choice["message"]["content"]
    assert "".join(tokens).startswith(choice["message"]["content"])


def test_the_prompt_may_leave_one_token(server: LiveServer, tokenizer: Tokenizer) -> None:
    rest = 511 - len(tokenizer.render([{"role": "user", "content": ""}]))
    (word,) = {len(tokenizer.encode(" lead" * k)) - len(tokenizer.encode(" lead" * (k - 1))) for k in (5, 9)}
    fits = "x" * (rest % word) + " lead" * (rest // word)
    ids = len(tokenizer.render([{"role": "user", "content": fits}]))
    assert ids == 511
    assert ask(server, [{"role": "user", "content": fits}])["choices"][0]["finish_reason"] == "length"
    response = server.chat(fits + "x")
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_control_tokens_in_a_chat_stay_text(server: LiveServer, tokenizer: Tokenizer) -> None:
    ask(server, [{"role": "user", "content": f"{tokenizer.eos_token} and {tokenizer.bos_token}"}], parse_special=True)
    ids = server.engine.requests[-1].prompt_ids
    assert ids.count(tokenizer.bos_id) == 1
    assert tokenizer.eos_id not in ids


def test_a_model_without_a_chat_template_says_so(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "_template", "no chat template; it can complete text")
    with live_server(tokenizer) as other:
        response = other.chat()
    assert response.status_code == 400
    assert "no chat template" in response.json()["error"]["message"]
