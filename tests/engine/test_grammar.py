"""Grammars: whatever a model would rather say, its answer has the form; with every tokenizer, to the last token."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
import time
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pytest

import leadline.embedded
from leadline.engine import aio
from leadline.engine.aio import AsyncEngine
from leadline.engine.fake import FakeEngine
from leadline.engine.grammar import GrammarProvider
from leadline.engine.types import EngineRequest, Grammar, SamplingParams
from leadline.errors import EngineError, InvalidRequest
from leadline.tokenizer import Tokenizer
from tests.engine.models import answers, drain, make_engine, prompt, request, tokens
from tests.engine.vocabulary import BOS, EOS, ByteTokenizer
from tests.fixtures_tokenizer import make_v25_folder, official_folder

POINT = {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}}, "required": ["x", "y"]}
SCHEMAS: dict[str, Any] = {
    "named by a pattern": {
        "type": "object",
        "patternProperties": {"^[a-z]{1,4}$": {"type": "boolean"}},
        "additionalProperties": False,
    },
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "enum": {"enum": ["north", "south", 7, None, "水\n\"'"]},
    "const": {"const": {"depth": [1, 2.5, "fathoms"]}},
    "integer in a range": {"type": "integer", "minimum": -3, "maximum": 1200},
    "number in a range": {"type": "number", "minimum": 0.25, "exclusiveMaximum": 1},
    "short text": {"type": "string", "minLength": 2, "maxLength": 6},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,4}$"},
    "date": {"type": "string", "format": "date-time"},
    "array": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    "tuple": {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}], "items": False, "minItems": 2},
    "nested": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "at": {**POINT, "additionalProperties": False},
            "tags": {"type": "array", "items": {"enum": ["sand", "mud", "rock"]}, "maxItems": 3},
        },
        "required": ["name", "at"],
        "additionalProperties": False,
    },
    "optional properties": {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"type": "boolean"}, "c": {"type": "boolean"}},
        "required": ["b"],
        "additionalProperties": False,
    },
    "any of": {"anyOf": [{"type": "boolean"}, {"type": "array", "items": {"type": "null"}, "maxItems": 2}]},
    "references": {
        "$defs": {"fathom": {"type": "integer", "minimum": 1, "maximum": 9}},
        "type": "array",
        "items": {"$ref": "#/$defs/fathom"},
        "maxItems": 3,
    },
    "recursion": {
        "$defs": {"node": {"type": ["null", "array"], "items": {"$ref": "#/$defs/node"}, "maxItems": 1}},
        "$ref": "#/$defs/node",
    },
}


@pytest.fixture(scope="module", params=["bytes", "embedded", "official", "v2.5"])
def vocabulary(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param == "bytes":
        return ByteTokenizer()
    if request.param == "v2.5":
        return Tokenizer.from_folder(make_v25_folder(tmp_path_factory.mktemp("v25")))
    embedded = Path(leadline.embedded.__file__).parent / "model"
    return Tokenizer.from_folder(embedded if request.param == "embedded" else official_folder())


@pytest.fixture(scope="module")
def provider(vocabulary: Any) -> GrammarProvider:
    return GrammarProvider(vocabulary)


def schema(value: Any) -> Grammar:
    return Grammar("json_schema", json.dumps(value))


def set_bits(bits: bytes) -> list[int]:
    return np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")).tolist()


def wander(provider: GrammarProvider, grammar: Grammar, rng: random.Random, most: int = 400) -> list[int] | None:
    """The ids of an answer chosen blindly, EOS last; None when it did not end in time."""
    constraint = provider.start(grammar)
    ids: list[int] = []
    for _ in range(most):
        ids.append(rng.choice(set_bits(constraint.allowed())))
        constraint.accept(ids[-1])
        if ids[-1] == provider.vocabulary.eos_id:
            return ids
    return None


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_blind_choice_is_valid_json(provider: GrammarProvider, vocabulary: Any, name: str) -> None:
    checked = jsonschema_rs.Draft202012Validator(SCHEMAS[name], validate_formats=True)
    ended = 0
    for seed in range(4):
        ids = wander(provider, schema(SCHEMAS[name]), random.Random(seed))
        if ids is not None:
            checked.validate(json.loads(vocabulary.decode(ids)))
            assert not vocabulary.control_ids & set(ids[:-1])
            ended += 1
    assert ended > 0


def test_the_end_is_eos_and_nothing_else(provider: GrammarProvider, vocabulary: Any) -> None:
    constraint = provider.start(schema({"const": 7}))
    constraint.accept(vocabulary.encode("7")[0])
    assert set_bits(constraint.allowed()) == [vocabulary.eos_id]
    with pytest.raises(EngineError, match="cannot go on"):
        constraint.accept(vocabulary.encode("8")[0])


def test_eos_comes_as_soon_as_it_may_and_not_before(provider: GrammarProvider, vocabulary: Any) -> None:
    constraint = provider.start(Grammar("regex", "ab?"))
    assert vocabulary.eos_id not in set_bits(constraint.allowed())
    constraint.accept(vocabulary.encode("a")[0])
    allowed = set_bits(constraint.allowed())
    assert vocabulary.eos_id in allowed
    assert {vocabulary.token_bytes(token) for token in allowed} - {vocabulary.token_bytes(vocabulary.eos_id)} == {b"b"}


def test_no_control_token_is_text(provider: GrammarProvider, vocabulary: Any) -> None:
    """Its name would fit into a string, but its id never does."""
    constraint = provider.start(Grammar("lark", 'start: "\\"" /(.|\\n)*/'))
    for byte in b'"':
        constraint.accept(vocabulary.encode(chr(byte))[0])
    assert vocabulary.control_ids & set(set_bits(constraint.allowed())) == {vocabulary.eos_id}


def test_answers_do_not_share_their_place() -> None:
    provider = GrammarProvider(ByteTokenizer())
    grammar = Grammar("regex", "[0-9]+x")
    one, other = provider.start(grammar), provider.start(grammar)
    one.accept(ord("1"))
    assert set_bits(one.allowed()) != set_bits(other.allowed()) == list(b"0123456789")


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (schema({"type": "strin"}), "Invalid type"),
        (schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (schema({"type": "string", "pattern": "(?=a)b"}), "look-around"),
        (schema({"type": "integer", "minimum": 5, "maximum": 3}), "minimum"),
        (schema({"$ref": "#"}), "no text matches"),
        (Grammar("lark", 'start: "  " json\njson: %json {"$ref": "#"}'), "no text matches"),
        (schema({"$ref": "http://127.0.0.1:9/x"}), "not fetch|retriev"),
        (Grammar("json_schema", "{"), "cannot be read"),
        (Grammar("lark", "start: nothing"), "nothing"),
        (Grammar("regex", "("), "regex"),
        (schema({"enum": [f"value {number}" for number in range(300_000)]}), "too big"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(grammar: Grammar, words: str) -> None:
    provider = GrammarProvider(ByteTokenizer())
    with pytest.raises(InvalidRequest, match=words) as caught:
        provider.start(grammar)
    assert caught.value.message.count("\n") == 0


def test_grammars_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = GrammarProvider(ByteTokenizer())
    compiled: list[Grammar] = []
    real = provider._compile

    def compile_and_tell(grammar: Grammar) -> Any:
        compiled.append(grammar)
        return real(grammar)

    monkeypatch.setattr(provider, "_compile", compile_and_tell)
    monkeypatch.setattr("leadline.engine.grammar.KEPT", 2)
    grammars = [Grammar("regex", letter) for letter in "aab"]
    for grammar in grammars:
        provider.start(grammar)
    assert compiled == grammars[1:]
    provider.start(Grammar("regex", "c"))  # the oldest makes room
    provider.start(Grammar("regex", "b"))
    provider.start(Grammar("regex", "a"))
    assert [grammar.text for grammar in compiled] == ["a", "b", "c", "a"]


# ---- through engines ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nested", "array", "date", "optional properties", "recursion"])
def test_a_random_model_answers_in_form(name: str) -> None:
    """Sampled and greedy, alone and in company; the weights know nothing."""
    engine = make_engine("v2", constraints=GrammarProvider(ByteTokenizer()))
    for number in range(4):
        options: Any = {"temperature": 2.0, "seed": number, "logprobs": number % 2, "n": 2, "ignore_eos": False}
        engine.add(request(f"r{number}", prompt(9), grammar=schema(SCHEMAS[name]), max_tokens=700, **options))
    engine.add(request("free", prompt(20), max_tokens=5))
    got = answers(drain(engine))
    assert len(got.pop(("free", 0))) == 5
    whole = ["".join(output.text for output in answer) for answer in got.values() if answer[-1].finish_reason == "stop"]
    assert len(whole) >= 4
    for text in whole:
        jsonschema_rs.validate(SCHEMAS[name], json.loads(text))


def test_a_preempted_answer_keeps_its_place() -> None:
    """Its pages are taken away and computed anew; the grammar goes on where it was."""
    grammar = schema({"type": "array", "items": {"type": "boolean"}, "minItems": 30, "maxItems": 30})
    options: Any = {"grammar": grammar, "temperature": 2.0, "seed": 3, "max_tokens": 300, "ignore_eos": False}
    roomy, tight = (
        make_engine(cache_tokens=64 * pages, constraints=GrammarProvider(ByteTokenizer())) for pages in (32, 6)
    )
    for engine in (roomy, tight):
        for name in "abc":
            engine.add(request(name, prompt(9), **options))
    expected, got = answers(drain(roomy)), answers(drain(tight))
    assert tight.stats().preemptions > 0
    assert [tokens(answer) for answer in got.values()] == [tokens(answer) for answer in expected.values()]
    assert all(answer[-1].finish_reason == "stop" for answer in got.values())


@pytest.fixture
def fake() -> FakeEngine:
    return FakeEngine(ByteTokenizer(), answer='{"x": 1, "y": ?', constraints=GrammarProvider(ByteTokenizer()))


def test_the_fake_follows_its_script_as_far_as_it_may(fake: FakeEngine) -> None:
    async def run() -> str:
        params = SamplingParams(grammar=schema({**POINT, "additionalProperties": False}), seed=1)
        return "".join([output.text async for output in fake.submit(EngineRequest("r", (1, 2), params))])

    text = asyncio.run(run())
    assert text.startswith('{"x": 1, "y": ')
    jsonschema_rs.validate(POINT, json.loads(text))


def test_compiling_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one grammar is being compiled other requests are answered; one that takes too long is refused."""
    monkeypatch.setattr(aio, "PREPARE_SECONDS", 0.2)
    engine = make_engine(constraints=GrammarProvider(ByteTokenizer()))
    slow, done = threading.Event(), threading.Event()
    real = engine.prepare

    def prepare(asked: EngineRequest) -> None:
        if asked.request_id == "slow":
            slow.set()
            done.wait(20)
        real(asked)

    monkeypatch.setattr(engine, "prepare", prepare)

    async def ask(asking: AsyncEngine, name: str, **params: Any) -> int:
        asked = request(name, prompt(9), **params)
        return len([output async for output in asking.submit(asked)])

    async def run() -> None:
        asking = AsyncEngine(engine)
        late = asyncio.create_task(ask(asking, "slow", grammar=Grammar("regex", "a"), ignore_eos=False))
        await asyncio.to_thread(slow.wait, 20)
        assert await ask(asking, "free") == 8
        with pytest.raises(InvalidRequest, match="too long"):
            await late
        done.set()
        monkeypatch.setattr(aio, "PREPARE_SECONDS", 20)
        assert await ask(asking, "next", grammar=Grammar("regex", "abc"), ignore_eos=False) == 4
        with pytest.raises(InvalidRequest, match="regex"):
            await ask(asking, "bad", grammar=Grammar("regex", "("), ignore_eos=False)
        await asking.close()

    asyncio.run(run())


def test_hard_schemas_compile_in_bounded_time() -> None:
    provider = GrammarProvider(ByteTokenizer())
    hard = [
        {"type": "string", "pattern": "^(a{1000}){1000}$"},
        {"type": "string", "pattern": "^((a|b)*c(a|b){30})*$"},
        {"type": "string", "minLength": 10**9},
        {"type": "array", "items": {}, "minItems": 10**7},
        {"type": "object", "properties": {f"p{k}": {"type": "string"} for k in range(500)}},
        {"allOf": [{"anyOf": [{"properties": {f"k{i}{j}": {}}} for i in range(6)]} for j in range(12)]},
    ]
    started = time.process_time()
    for each in hard:
        with contextlib.suppress(InvalidRequest, EngineError):
            wander(provider, schema(each), random.Random(0), most=20)
    assert time.process_time() - started < 60


@pytest.mark.parametrize("field", [{"ignore_eos": True}, {"min_tokens": 1}])
def test_fields_that_would_fight_the_grammar(field: Any) -> None:
    with pytest.raises(InvalidRequest, match="grammar"):
        SamplingParams(grammar=Grammar("json_object"), **field)


def test_bytes_of_the_toy_tokenizer() -> None:
    assert (ByteTokenizer.bos_id, ByteTokenizer.eos_id) == (BOS, EOS)
