"""Generated bodies: whatever is sent, the answer is 200 or a 4xx with OpenAI's four keys; never a 5xx, never a crash.

The bodies go through the whole application (middleware, handlers, engine) without sockets. The seed is printed with a
failure; LEADLINE_FUZZ_SEED in the environment of the slow run repeats one.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Awaitable, Generator
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from starlette.types import Message

from leadline.engine.fake import FakeEngine
from leadline.engine.grammar import GrammarProvider
from leadline.server.app import create_app
from leadline.tokenizer import Tokenizer

SHARED = (
    *("model", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty"),
    *("frequency_penalty", "logit_bias", "seed", "n", "stop", "stop_token_ids", "min_tokens", "ignore_eos", "stream"),
    *("stream_options", "user_id", "skip_special_tokens", "include_stop_str_in_output", "response_format", "tools"),
)
FIELDS = {
    "/v1/chat/completions": (
        *SHARED,
        "messages",
        "max_completion_tokens",
        "logprobs",
        "top_logprobs",
        "functions",
        "tool_choice",
    ),
    "/v1/completions": (*SHARED, "prompt", "suffix", "echo", "logprobs", "parse_special"),
}
TEXTS = st.text(max_size=12) | st.sampled_from(
    [
        "fake",
        "deepseek-chat",
        "user",
        "assistant",
        "system",
        "text",
        "json_object",
        "<｜end▁of▁sentence｜>",
        "\x00",
        "5",
    ]
)
NUMBERS = st.integers() | st.integers(0, 30) | st.floats() | st.sampled_from([1 << 63, -1, 10**400, 0.5, 1e308])


def _as_format(schema: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
ANYTHING = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4))
CONTENT = TEXTS | st.lists(
    st.fixed_dictionaries({"type": st.just("text") | TEXTS, "text": TEXTS | SCALARS}), max_size=2
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "developer"]) | SCALARS, "content": CONTENT | ANYTHING},
    optional={"prefix": st.booleans() | SCALARS, "name": SCALARS, "tool_calls": ANYTHING},
)
SCHEMA = st.sampled_from(
    [
        {"type": "boolean"},
        {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False},
        {"type": "array", "items": {"type": "null"}, "maxItems": 2},
        {"$ref": "#"},
        {"type": "integer", "multipleOf": 7},
    ]
) | st.dictionaries(
    st.sampled_from(
        ["type", "properties", "items", "enum", "anyOf", "$ref", "minimum", "pattern", "x-guidance", "const"]
    ),
    ANYTHING,
    max_size=3,
)
TOOL = (
    st.fixed_dictionaries(
        {
            "type": st.just("function"),
            "function": st.fixed_dictionaries(
                {"name": st.just("f") | TEXTS},
                optional={"parameters": SCHEMA | ANYTHING, "strict": st.booleans(), "description": TEXTS},
            ),
        }
    )
    | ANYTHING
)
PLAUSIBLE: dict[str, st.SearchStrategy[Any]] = {
    "messages": st.lists(MESSAGE, min_size=1, max_size=3),
    "prompt": TEXTS | st.lists(st.integers(0, 450), min_size=1, max_size=4) | st.lists(TEXTS, min_size=1, max_size=3),
    "model": st.sampled_from(["fake", "deepseek-chat", None]),
    "max_tokens": st.integers(0, 5),
    "n": st.integers(1, 3),
    "temperature": st.floats(0, 2),
    "stop": TEXTS | st.lists(TEXTS, max_size=17),
    "logit_bias": st.dictionaries(st.integers(0, 450).map(str), st.floats(-101, 101), max_size=2),
    "logprobs": st.booleans() | st.integers(0, 21),
    "response_format": st.just({"type": "text"}) | st.just({"type": "json_object"}) | SCHEMA.map(_as_format),
    "tools": st.lists(TOOL, max_size=2),
    "tool_choice": st.sampled_from(["auto", "none", "required", {"type": "function", "function": {"name": "f"}}]),
    "functions": st.just([]) | st.just([{"name": "f"}]),
}


def bodies(path: str) -> st.SearchStrategy[Any]:
    """Mostly what a client might send, with a field or two gone wrong."""
    needed = "messages" if "chat" in path else "prompt"
    right = {name: PLAUSIBLE[name] for name in FIELDS[path] if name in PLAUSIBLE}
    near = {name: st.one_of(*[right[name]] * 3, ANYTHING) if name in right else ANYTHING for name in FIELDS[path]}
    return st.one_of(_with(needed, near), _with(needed, right), ANYTHING)


def _with(needed: str, fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    others = {name: strategy for name, strategy in fields.items() if name != needed}
    return st.fixed_dictionaries({needed: fields[needed]}, optional=others)


class Application:
    """The app in this thread's event loop, asked without sockets."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.app = create_app(
            FakeEngine(tokenizer, context_length=192, answer=" deep", constraints=GrammarProvider(tokenizer)), tokenizer
        )
        self.loop = asyncio.new_event_loop()
        self.statuses: dict[int, int] = {}

    def post(self, path: str, body: bytes) -> None:
        status, answer = self.loop.run_until_complete(self._ask(path, body))
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status == 200:
            return
        assert 400 <= status < 500, (status, answer)
        error = json.loads(answer)["error"]
        assert set(error) == {"message", "type", "param", "code"}

    async def _ask(self, path: str, body: bytes) -> tuple[int, bytes]:
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
        sent: list[Message] = []
        asked = False

        async def receive() -> Message:
            nonlocal asked
            if asked:
                await asyncio.Event().wait()
            asked = True
            return {"type": "http.request", "body": body, "more_body": False}

        def send(message: Message) -> Awaitable[None]:
            sent.append(message)
            return asyncio.sleep(0)

        await self.app({"asgi": {"version": "3.0"}, "http_version": "1.1", **scope}, receive, send)
        answer = b"".join(message.get("body", b"") for message in sent[1:])
        assert b'"error"' not in answer or sent[0]["status"] != 200
        return sent[0]["status"], answer

    def close(self) -> None:
        self.loop.close()


@pytest.fixture(scope="module")
def application(tokenizer: Tokenizer) -> Generator[Application, None, None]:
    made = Application(tokenizer)
    yield made
    made.close()


def encoded(body: Any) -> bytes:
    """As clients send it; NaN and lone surrogates included."""
    return json.dumps(body).encode()


@pytest.mark.parametrize("path", sorted(FIELDS))
def test_generated_bodies(application: Application, path: str) -> None:
    served = application.statuses.get(200, 0)

    @hypothesis.settings(max_examples=120)
    @hypothesis.given(bodies(path))
    def check(body: Any) -> None:
        application.post(path, encoded(body))

    check()
    assert application.statuses[200] > served


@hypothesis.settings(max_examples=100)
@hypothesis.given(body=st.binary(max_size=60) | bodies("/v1/completions").map(encoded), cut=st.integers(0, 60))
def test_damaged_bodies(application: Application, body: bytes, cut: int) -> None:
    application.post("/v1/completions", body[:cut] + body[cut + 1 :])


@pytest.mark.parametrize("count", [3_000, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])])
def test_mutated_bodies(application: Application, count: int) -> None:
    """Cheaper than hypothesis: right bodies with some random fields, and bytes changed in a fifth of them."""
    seed = int(os.environ.get("LEADLINE_FUZZ_SEED", random.SystemRandom().getrandbits(32)))
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(count):
        path = rng.choice(sorted(FIELDS))
        body = {"messages": [{"role": "user", "content": "Hi"}]} if "chat" in path else {"prompt": "Hi"}
        for name in rng.sample(FIELDS[path], rng.randrange(4)):
            body[name] = random_value(rng, 3)
        application.post(path, mutated(rng, encoded(body)))
    print(application.statuses)


def random_value(rng: random.Random, depth: int) -> Any:
    kind = rng.randrange(8 if depth else 6)
    if kind == 6:
        return [random_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        return {random_text(rng): random_value(rng, depth - 1) for _ in range(rng.randrange(4))}
    number = rng.choice([0, 1, 2, 5, -1, 0.5, 1.5, 2.5, 1e300, 1 << 63, 10**30, float("nan"), rng.random() * 3])
    return (None, True, False, number, number, random_text(rng))[kind]


def random_text(rng: random.Random) -> str:
    known = ("fake", "user", "assistant", "type", "text", "include_usage", "role", "content", "json_object", "3", "")
    if rng.random() < 0.6:
        return rng.choice(known)
    return "".join(
        chr(rng.choice([rng.randrange(128), rng.randrange(0x3000), rng.randrange(0x11_0000)])) for _ in range(5)
    )


def mutated(rng: random.Random, body: bytes) -> bytes:
    if rng.random() < 0.8:
        return body
    place = rng.randrange(len(body))
    return body[:place] + rng.randbytes(rng.randrange(3)) + body[place + rng.randrange(3) :]
