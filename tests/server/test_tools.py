"""Tools: the prompt, calls read back whole and streamed, choices, strict mode, results in the history."""

from __future__ import annotations

import itertools
import json
from collections.abc import Generator
from typing import Any

import jsonschema_rs
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadline.server.calls import CallReader, Piece
from leadline.tokenizer import Tokenizer
from tests.fixtures_server import LiveServer, live_server

ASKED = {"role": "user", "content": "How deep is the harbour?"}
ARGUMENTS = '{"place": "the }\\"{ harbour", "units": ["m", "fathoms"]}'
CALL = f'<tool_call>\n{{"name": "depth", "arguments": {ARGUMENTS}}}\n</tool_call>'
PARAMETERS = {
    "type": "object",
    "properties": {
        "place": {"type": "string", "maxLength": 20},
        "units": {"type": "array", "items": {"enum": ["m", "fathoms"]}, "maxItems": 2},
    },
    "required": ["place", "units"],
    "additionalProperties": False,
}
DEPTH = {"type": "function", "function": {"name": "depth", "description": "Sound it.", "parameters": PARAMETERS}}
NOW = {"type": "function", "function": {"name": "now"}}


@pytest.fixture(scope="module")
def server(tokenizer: Tokenizer) -> Generator[LiveServer, None, None]:
    with live_server(tokenizer) as live:
        yield live


@pytest.fixture(scope="module")
def caller(tokenizer: Tokenizer) -> Generator[LiveServer, None, None]:
    """Its model says a word, calls twice, and says no more."""
    with live_server(tokenizer, answer=f" Let me see. \n{CALL}\n{CALL}", context_length=1 << 14) as live:
        yield live


def ask(server: LiveServer, messages: Any = (ASKED,), **fields: Any) -> Any:
    body = {"tools": [DEPTH, NOW], "messages": list(messages), **fields}
    response = server.post("/v1/chat/completions", {k: v for k, v in body.items() if v is not None})
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def refused(server: LiveServer, **fields: Any) -> Any:
    response = server.post("/v1/chat/completions", {"messages": [ASKED], "tools": [DEPTH], **fields})
    assert response.status_code == 400, response.text
    return response.json()["error"]


def streamed(server: LiveServer, **fields: Any) -> list[Any]:
    response = server.post("/v1/chat/completions", {"messages": [ASKED], "tools": [DEPTH], "stream": True, **fields})
    assert response.status_code == 200, response.text
    return [json.loads(line.removeprefix("data: "))["choices"][0] for line in response.text.split("\n\n")[:-2]]


def test_calls_are_read_out_of_the_answer(caller: LiveServer) -> None:
    choice = ask(caller)
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    calls = choice["message"]["tool_calls"]
    assert [call["function"] for call in calls] == [{"name": "depth", "arguments": ARGUMENTS}] * 2
    assert len({call["id"] for call in calls}) == 2
    assert all(call["id"].startswith("call_") and call["type"] == "function" for call in calls)


def test_one_call_at_most(caller: LiveServer) -> None:
    choice = ask(caller, parallel_tool_calls=False)
    assert len(choice["message"]["tool_calls"]) == 1
    assert choice["finish_reason"] == "tool_calls"


def test_streamed_arguments(caller: LiveServer) -> None:
    choices = streamed(caller, logprobs=True)
    deltas = [choice["delta"] for choice in choices]
    assert "".join(delta.get("content") or "" for delta in deltas) == "Let me see."
    parts = [part for delta in deltas for part in delta.get("tool_calls", ())]
    for index in (0, 1):
        first, *others = [part for part in parts if part["index"] == index]
        assert set(first) == {"index", "id", "type", "function"}
        assert first["function"] == {"name": "depth", "arguments": ""}
        assert all(set(part) == {"index", "function"} and set(part["function"]) == {"arguments"} for part in others)
        assert len(others) > 3
        assert "".join(part["function"]["arguments"] for part in others) == ARGUMENTS
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["tool_calls"]
    entries = [entry for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]
    assert "".join(entry["token"] for entry in entries).startswith("Let me see.")
    assert "tool_call" not in "".join(entry["token"] for entry in entries)


def test_an_answer_without_a_call_is_an_answer(server: LiveServer) -> None:
    choice = ask(server)
    assert choice["finish_reason"] == "stop"
    assert "tool_calls" not in choice["message"]
    assert choice["message"]["content"] == server.chat().json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "depth"}}])
def test_a_model_that_would_rather_not_calls_all_the_same(server: LiveServer, choice: Any, seed: int) -> None:
    got = ask(server, tools=[DEPTH], tool_choice=choice, seed=seed, parallel_tool_calls=False)
    (call,) = got["message"]["tool_calls"]
    assert got["message"]["content"] is None
    assert (call["function"]["name"], got["finish_reason"]) == ("depth", "tool_calls")
    jsonschema_rs.validate(PARAMETERS, json.loads(call["function"]["arguments"]))


def test_a_named_function_and_no_other(server: LiveServer) -> None:
    for seed in range(3):
        got = ask(server, tool_choice={"type": "function", "function": {"name": "now"}}, seed=seed)
        (call,) = got["message"]["tool_calls"]
        assert call["function"]["name"] == "now"
        assert json.loads(call["function"]["arguments"]) == {}


def test_none_shows_no_tools(server: LiveServer, tokenizer: Tokenizer) -> None:
    ask(server, tool_choice="none")
    assert server.engine.requests[-1].prompt_ids == tokenizer.render([ASKED])
    assert server.engine.requests[-1].params.grammar is None


def test_the_prompt_names_the_functions(server: LiveServer, tokenizer: Tokenizer) -> None:
    told: Any = {"role": "system", "content": "Be brief."}
    for messages in ([ASKED], [told, ASKED]):
        ask(server, messages)
        prompt = tokenizer.decode(server.engine.requests[-1].prompt_ids)
        assert prompt.count("You can call functions.") == 1
        assert '{"name": "depth", "description": "Sound it.", "parameters": {"type": "object"' in prompt
        assert prompt.endswith("\n\nUser: How deep is the harbour?\n\nAssistant:")
        assert prompt.startswith("Be brief.\n\nYou can" if told in messages else "You can")


def test_the_round_trip(caller: LiveServer, tokenizer: Tokenizer) -> None:
    """What the model wrote stands in the next prompt as it wrote it; so the prefix cache knows it too."""
    message = ask(caller)["message"]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": str(4 + at)}
        for at, call in enumerate(message["tool_calls"])
    ]
    ask(caller, [ASKED, message, *results])
    prompt = tokenizer.decode(caller.engine.requests[-1].prompt_ids)
    assert f"Assistant: Let me see.\n{CALL}\n{CALL}User: " in prompt
    assert "User: <tool_response>\n4\n</tool_response>\n<tool_response>\n5\n</tool_response>\n\nAssistant:" in prompt


def test_a_call_that_is_cut_is_a_length(caller: LiveServer) -> None:
    whole = ask(caller, max_tokens=500, parallel_tool_calls=False)["message"]["tool_calls"][0]["function"]["arguments"]
    for most in (20, 40, 60):
        got = ask(caller, max_tokens=most, parallel_tool_calls=False)
        assert got["finish_reason"] == "length"
        for call in got["message"].get("tool_calls", ()):
            assert whole.startswith(call["function"]["arguments"])


def test_tools_and_a_form_for_the_rest(tokenizer: Tokenizer, caller: LiveServer) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": {"deep": True}}}}
    with live_server(tokenizer, answer=' {"deep": true}', context_length=2048) as server:
        got = ask(server, response_format=form)
        assert (json.loads(got["message"]["content"]), got["finish_reason"]) == ({"deep": True}, "stop")
    got = ask(caller, response_format=form, tool_choice="required")
    assert got["finish_reason"] == "tool_calls"


def test_functions_of_the_first_api(caller: LiveServer) -> None:
    functions = [DEPTH["function"]]
    for fields in ({}, {"function_call": {"name": "depth"}}):
        got = ask(caller, tools=None, functions=functions, **fields)
        assert got["message"]["function_call"] == {
            "name": "depth",
            "arguments": got["message"]["function_call"]["arguments"],
        }
        jsonschema_rs.validate(PARAMETERS, json.loads(got["message"]["function_call"]["arguments"]))
        assert got["finish_reason"] == "function_call"
    body = {"messages": [ASKED], "functions": functions, "stream": True}
    lines = caller.post("/v1/chat/completions", body).text.split("\n\n")[:-2]
    deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in lines]
    calls = [delta["function_call"] for delta in deltas if "function_call" in delta]
    assert calls[0] == {"name": "depth", "arguments": ""}
    assert "".join(call["arguments"] for call in calls) == ARGUMENTS
    history = [ASKED, {"role": "assistant", "content": None, "function_call": got["message"]["function_call"]}]
    ask(caller, [*history, {"role": "function", "name": "depth", "content": "4"}], tools=None, functions=functions)


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("tools", {"tools": [NOW] * 129}),
        ("tools.0", {"tools": [{"type": "custom"}]}),
        ("tools.0", {"tools": [5]}),
        ("tools.0.function", {"tools": [{"type": "function"}]}),
        ("tools.0.function.name", {"tools": [{"type": "function", "function": {"name": "a b"}}]}),
        ("tools.0.function.name", {"tools": [{"type": "function", "function": {"name": "x" * 65}}]}),
        ("tools.0.function.parameters", {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}),
        ("tools.0.function.strict", {"tools": [{"type": "function", "function": {"name": "f", "strict": 1}}]}),
        ("tool_choice", {"tool_choice": "sometimes"}),
        ("tool_choice", {"tool_choice": {"type": "function", "function": {"name": "unknown"}}}),
        ("tool_choice", {"tool_choice": {"type": "function"}}),
        ("tool_choice", {"tools": [], "tool_choice": "required"}),
        ("functions.0", {"tools": [], "functions": [{}]}),
        ("function_call", {"tools": [], "functions": [{"name": "f"}], "function_call": "x"}),
        ("messages.1.tool_calls.0.function", {"messages": [ASKED, {"role": "assistant", "tool_calls": [{}]}]}),
        ("messages.1.content", {"messages": [ASKED, {"role": "tool", "tool_call_id": "1"}]}),
    ],
)
def test_what_is_wrong_is_named(server: LiveServer, param: str, fields: Any) -> None:
    assert refused(server, **fields)["param"].startswith(param)


@pytest.mark.parametrize(
    ("word", "schema"),
    [
        ("required", {"type": "object", "properties": {"a": {}}, "additionalProperties": False}),
        ("additionalProperties", {"type": "object", "properties": {"a": {}}, "required": ["a"]}),
        ("required", {**PARAMETERS, "properties": {"place": {"properties": {"x": {}}}, "units": {}}}),
        ("uniqueItems", {**PARAMETERS, "properties": {"place": {"type": "array", "uniqueItems": True}, "units": {}}}),
        ("object", {"type": "array"}),
    ],
)
def test_strict_means_strict(server: LiveServer, word: str, schema: Any) -> None:
    strict = [{"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}]
    error = refused(server, tools=strict, tool_choice="required")
    assert error["param"].startswith("tools")
    assert word in error["message"]
    good = [{"type": "function", "function": {**DEPTH["function"], "strict": True}}]  # type: ignore[dict-item]
    assert ask(server, tools=good, tool_choice="required")["message"]["tool_calls"]


def test_all_128_tools(caller: LiveServer) -> None:
    tools = [{"type": "function", "function": {"name": f"f{number}"}} for number in range(127)]
    got = ask(caller, tools=[*tools, DEPTH])
    assert got["message"]["tool_calls"][0]["function"]["name"] == "depth"


def test_the_openai_client(caller: LiveServer) -> None:
    with openai.OpenAI(
        base_url=f"{caller.url}/v1", api_key="x", max_retries=0, _strict_response_validation=True
    ) as client:
        messages: Any = [ASKED]
        tools: Any = [DEPTH]
        answer = client.chat.completions.create(model="fake", messages=messages, tools=tools)
        calls = answer.choices[0].message.tool_calls
        assert calls
        assert calls[0].type == "function"
        assert json.loads(calls[0].function.arguments)["units"] == ["m", "fathoms"]
        result: Any = {"role": "tool", "tool_call_id": calls[0].id, "content": "4 m"}
        history: Any = [*messages, answer.choices[0].message, result]
        client.chat.completions.create(model="fake", messages=history, tools=tools)
        with client.chat.completions.stream(model="fake", messages=messages, tools=tools) as stream:
            final = stream.get_final_completion().choices[0].message
        assert final.tool_calls
        assert final.tool_calls[0].function.arguments == ARGUMENTS


# ---- the reader alone --------------------------------------------------------------------------------------------


def read(text: str, cuts: list[int]) -> tuple[str, list[tuple[str, str]], CallReader]:
    reader = CallReader()
    places = sorted({0, len(text), *[cut % (len(text) + 1) for cut in cuts]})
    pieces: list[Piece] = []
    for start, end in itertools.pairwise(places):
        pieces += reader.push(text[start:end])
    pieces += reader.finish()
    names = [piece.name or "" for piece in pieces if piece.name]
    calls = ["".join(p.text for p in pieces if p.call == number) for number in range(len(names))]
    return "".join(p.text for p in pieces if p.call is None), list(zip(names, calls, strict=True)), reader


CUTS = st.lists(st.integers(0, 500), max_size=12)
TEXTS = st.text(st.sampled_from("ab<tool_call> \n>{}"), max_size=30).filter(lambda text: "<tool_call>" not in text)


@given(
    TEXTS,
    st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=8) | st.integers(), max_size=3), max_size=3),
    CUTS,
)
def test_however_it_is_cut(text: str, arguments: list[Any], cuts: list[int]) -> None:
    written = [json.dumps(each, ensure_ascii=False) for each in arguments]
    calls = "\n".join(f'<tool_call>\n{{"name": "f", "arguments": {each}}}\n</tool_call>' for each in written)
    content, got, reader = read(text + calls, cuts)
    assert content == (text.rstrip() if calls else text)
    assert got == [("f", each) for each in written]
    assert reader.complete is bool(calls)


@given(TEXTS, CUTS)
def test_text_that_only_looks_like_a_call_is_text(text: str, cuts: list[int]) -> None:
    assert read(text, cuts)[:2] == (text, [])
