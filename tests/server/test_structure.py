"""Structured answers over HTTP: every schema's answer is valid, what cannot be is a quick 400 that names the field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from leadline.engine.checks import check_request
from leadline.server.json_schema import MAX_DEPTH, MAX_VALUES
from leadline.tokenizer import Tokenizer
from tests.engine.test_grammar import SCHEMAS
from tests.fixtures_server import LiveServer, live_server
from tests.fixtures_tokenizer import make_v25_folder, official_folder

CARD = SCHEMAS["nested"]


def formatted(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "card", "schema": schema, **more}}


def text(response: Any) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def refusal(response: Any) -> tuple[str, str]:
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error["param"], error["message"]


@pytest.mark.parametrize("name", SCHEMAS)
def test_answers_are_valid(server: LiveServer, name: str) -> None:
    """The fake would rather tell of lead lines; where it may not, it takes anything that is allowed."""
    ended = 0
    for seed in range(3):
        response = server.chat(response_format=formatted(SCHEMAS[name], strict=True), seed=seed, max_tokens=400)
        answer = text(response)
        assert not answer.startswith(" ")
        if response.json()["choices"][0]["finish_reason"] == "stop":
            jsonschema_rs.validate(SCHEMAS[name], json.loads(answer))
            ended += 1
    assert ended > 0


@pytest.mark.parametrize("folder", ["official", "v2.5"])
def test_with_the_real_tokenizers(tmp_path: Path, folder: str) -> None:
    tokenizer = Tokenizer.from_folder(official_folder() if folder == "official" else make_v25_folder(tmp_path))
    with live_server(tokenizer) as server:
        for seed in range(3):
            answer = text(server.chat(response_format=formatted(CARD), seed=seed))
            jsonschema_rs.validate(CARD, json.loads(answer))


def test_a_model_that_answers_well_is_left_alone(tokenizer: Tokenizer) -> None:
    wanted = '{"name": "Anne",\n  "at": {"x": 1, "y": -2}, "tags": ["mud"]}'
    with live_server(tokenizer, answer=f" {wanted}") as server:
        assert text(server.chat(response_format=formatted(CARD, strict=True))) == wanted
        assert json.loads(text(server.chat(response_format={"type": "json_object"}))) == json.loads(wanted)
        raw = server.complete("A card:", response_format=formatted(CARD), max_tokens=100).json()["choices"][0]
        assert raw["finish_reason"] == "stop"
        jsonschema_rs.validate(CARD, json.loads(raw["text"]))


def test_a_stream_says_the_same(server: LiveServer) -> None:
    fields: Any = {"response_format": formatted(CARD), "seed": 5, "logprobs": True}
    whole = server.chat(**fields).json()["choices"][0]
    stream = server.chat(stream=True, **fields).text.split("\n\n")[:-2]
    pieces = [json.loads(line.removeprefix("data: "))["choices"][0] for line in stream]
    assert "".join(piece["delta"]["content"] for piece in pieces) == whole["message"]["content"]
    entries = [entry for piece in pieces if piece["logprobs"] for entry in piece["logprobs"]["content"]]
    assert entries == whole["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == whole["message"]["content"]


def test_length_cuts_as_ever(server: LiveServer) -> None:
    choice = server.chat(response_format={"type": "json_object"}, max_tokens=2).json()["choices"][0]
    assert choice["finish_reason"] == "length"


def test_n_answers(server: LiveServer) -> None:
    answer = server.chat(response_format=formatted({"enum": ["north", "south"]}), n=3, seed=1).json()
    assert {json.loads(choice["message"]["content"]) for choice in answer["choices"]} <= {"north", "south"}


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "xml"},
        {"type": ["json_object"]},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "x"}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": "object"}},
        formatted({"type": "object"}, name="two words"),
        formatted({"type": "object"}, strict="yes"),
        formatted({"type": "strin"}),
        formatted({"type": "array", "uniqueItems": True}, strict=True),
        formatted({"type": "string", "pattern": "(?=a)b"}),
        formatted({"type": "integer", "minimum": 5, "maximum": 3}),
        formatted({"$ref": "#"}),
        formatted({"$ref": "http://127.0.0.1:9/x"}),
        formatted({"type": "integer", "multipleOf": 99_999_989}),
        formatted({"allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}, {"multipleOf": 9949}]}),
        formatted({"enum": [str(number) for number in range(MAX_VALUES)]}),
        formatted({"description": "x" * 100_001}),
        formatted({"minimum": 10**400}),
    ],
)
def test_what_cannot_be_is_refused(server: LiveServer, response_format: Any) -> None:
    for stream in (False, True):
        param, message = refusal(server.chat(response_format=response_format, stream=stream))
        assert param.startswith("response_format")
        assert "\n" not in message
    assert server.chat().status_code == 200


def test_depth(server: LiveServer) -> None:
    schema: Any = {"type": "boolean"}
    for _ in range(MAX_DEPTH):
        schema = {"type": "array", "items": schema}
    message = refusal(server.chat(response_format=formatted(schema)))[1]
    assert "nested deeper" in message


def test_what_is_not_enforced_is_accepted_unless_strict(server: LiveServer) -> None:
    schema = {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2, "uniqueItems": True}
    assert isinstance(json.loads(text(server.chat(response_format=formatted(schema)))), list)


def test_nobody_but_us_tells_the_compiler_anything(server: LiveServer) -> None:
    schema = {"type": "array", "minItems": 2, "items": {"const": 1}, "maxItems": 2}
    schema["x-guidance"] = {"item_separator": "; ", "whitespace_pattern": "(["}
    jsonschema_rs.validate(schema, json.loads(text(server.chat(response_format=formatted(schema)))))


@pytest.mark.parametrize(
    "nasty", ['"', "\\", "\n", '"}\nstart: /.*/', "%json {", "\u2028", "<tool_call>", "水", "//", "#"]
)
def test_texts_of_a_schema_are_only_texts(server: LiveServer, nasty: str) -> None:
    schema = {
        "type": "object",
        "properties": {nasty: {"const": nasty}},
        "required": [nasty],
        "additionalProperties": False,
    }
    assert json.loads(text(server.chat(response_format=formatted(schema)))) == {nasty: nasty}


@pytest.mark.parametrize("field", [{"ignore_eos": True}, {"min_tokens": 2}])
def test_fields_that_would_fight_the_grammar(server: LiveServer, field: Any) -> None:
    refusal(server.chat(response_format={"type": "json_object"}, **field))


def test_a_prefix_is_not_continued_in_form(server: LiveServer) -> None:
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "{", "prefix": True}]
    body = {"messages": messages, "response_format": {"type": "json_object"}}
    assert "prefix" in refusal(server.post("/v1/chat/completions", body))[1]


def test_an_engine_without_grammars_says_so(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leadline.engine.fake.check_request", lambda request, info, **_: check_request(request, info))
    with live_server(tokenizer) as server:
        param, message = refusal(server.chat(response_format={"type": "json_object"}))
        assert param == "response_format"
        assert "not available" in message
