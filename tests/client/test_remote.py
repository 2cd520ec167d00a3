"""RemoteEngine: the platform's engine behind another server's completions, with that server's counts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncGenerator, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from leadline.client.http import AsyncClient
from leadline.client.remote import RemoteEngine, _logprobs, connect
from leadline.engine.fake import ANSWER
from leadline.engine.types import EngineInfo, EngineOutput, EngineProtocol, EngineRequest, SamplingParams
from leadline.errors import (
    ConfigError,
    ConnectionFailed,
    ContextLengthExceeded,
    EngineError,
    EngineOverloaded,
    InvalidRequest,
    LeadlineError,
)
from leadline.tokenizer import Tokenizer
from tests.fixtures_server import LiveServer, live_server, small_tokenizer, wait_until

INFO = EngineInfo("here", 512, 400, 0, 0, "remote", "elsewhere")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def upstream(tokenizer: Tokenizer) -> Generator[LiveServer, None, None]:
    with live_server(tokenizer, context_length=512) as live:
        yield live


@contextlib.asynccontextmanager
async def engine(url: str, model: str = "fake") -> AsyncGenerator[RemoteEngine, None]:
    made = RemoteEngine(AsyncClient(url, max_retries=0), INFO, model)
    yield made
    await made.close()


async def answer(made: EngineProtocol, request: EngineRequest) -> list[EngineOutput]:
    return [output async for output in made.submit(request)]


def ask(url: str, prompt_ids: tuple[int, ...] = (0, 2, 3), **params: Any) -> list[EngineOutput]:
    async def run() -> list[EngineOutput]:
        async with engine(url) as made:
            outputs = await answer(made, EngineRequest("r", prompt_ids, SamplingParams(**params), cache_salt=b"salt"))
            assert made.stats().running == 0
            return outputs

    return asyncio.run(run())


def test_it_answers_as_the_engine_there_does_and_counts_as_it(upstream: LiveServer, tokenizer: Tokenizer) -> None:
    outputs = ask(upstream.url)
    assert "".join(output.text for output in outputs) == ANSWER
    ids = tokenizer.encode(ANSWER)
    assert outputs[-1].finish_reason == "stop"
    assert outputs[-1].usage.completion_tokens == len(ids) + 1  # EOS is one
    assert outputs[-1].usage.prompt_tokens == 3
    assert [output.usage.completion_tokens for output in outputs] == sorted(
        output.usage.completion_tokens for output in outputs
    )
    assert all(not output.logprobs for output in outputs)


def test_what_was_asked_for_arrives(upstream: LiveServer) -> None:
    ask(
        upstream.url,
        max_tokens=4,
        temperature=0.3,
        top_k=7,
        seed=5,
        stop=("x",),
        logit_bias=((3, 1.5),),
        ignore_eos=True,
        min_tokens=2,
    )
    params = upstream.engine.requests[-1].params
    assert (params.max_tokens, params.temperature, params.top_k, params.seed) == (4, 0.3, 7, 5)
    assert (params.stop, params.logit_bias, params.ignore_eos, params.min_tokens) == (("x",), ((3, 1.5),), True, 2)
    assert upstream.engine.requests[-1].prompt_ids == (0, 2, 3)


def test_lengths_logprobs_and_several_answers(upstream: LiveServer) -> None:
    cut = ask(upstream.url, max_tokens=4)
    assert (cut[-1].finish_reason, cut[-1].usage.completion_tokens) == ("length", 4)
    shown = [entry for output in ask(upstream.url, max_tokens=4, logprobs=2) for entry in output.logprobs]
    assert [len(entry.top) for entry in shown] == [2, 2, 2, 2]
    several = ask(upstream.url, n=2, max_tokens=4)
    ends = [output for output in several if output.finish_reason]
    assert [(output.index, output.usage.completion_tokens) for output in ends] == [(0, 4), (1, 4)]


def test_hits_of_the_other_cache_are_told(upstream: LiveServer) -> None:
    long = (0, *range(5, 204))
    assert ask(upstream.url, long, max_tokens=1)[-1].usage.cached_tokens == 0
    assert ask(upstream.url, long, max_tokens=1)[-1].usage.cached_tokens == 192


def test_leaving_and_cancelling_stop_the_engine_there(tokenizer: Tokenizer) -> None:
    async def leave(url: str, *, cancel: bool) -> None:
        async with engine(url) as made:
            outputs = made.submit(EngineRequest("r", (1, 2, 3)))
            seen = [await anext(outputs) for _ in range(3)]
            if cancel:
                made.cancel("r")
                seen += [output async for output in outputs]
                assert seen[-1].finish_reason == "cancelled"
            await outputs.aclose()  # type: ignore[attr-defined]
            assert made.stats().requests_cancelled == 1

    for cancel in (False, True):
        with live_server(tokenizer, context_length=2048, tokens_per_second=50, answer=ANSWER * 40) as slow:
            asyncio.run(leave(slow.url, cancel=cancel))
            wait_until(lambda: not slow.engine.running)


def test_what_cannot_be_asked(upstream: LiveServer) -> None:
    with pytest.raises(InvalidRequest, match="no log-probabilities of the prompt"):
        ask(upstream.url, prompt_logprobs=1)
    with pytest.raises(ContextLengthExceeded):
        ask(upstream.url, tuple(range(512)))
    with pytest.raises(EngineOverloaded, match="not available"):
        ask("http://127.0.0.1:9")


def reply(status: int, body: bytes, kind: str = "text/event-stream") -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@contextlib.contextmanager
def other_server(handler: type[BaseHTTPRequestHandler]) -> Generator[str, None, None]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def stream(*events: Any, end: bool = True) -> bytes:
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    return (text + ("data: [DONE]\n\n" if end else "")).encode()


def test_a_server_that_tells_no_tokens_is_counted_by_its_chunks_and_then_by_its_sum() -> None:
    chunks = [{"choices": [{"index": 0, "text": text, "finish_reason": None}]} for text in ("Four", " fathoms")]
    last = {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 9}}
    with other_server(reply(200, stream(*chunks, last, usage))) as url:
        outputs = ask(url)
    assert [output.usage.completion_tokens for output in outputs] == [1, 2, 9]
    with other_server(reply(200, stream(*chunks, last))) as url:
        assert ask(url)[-1].usage.completion_tokens == 2


@pytest.mark.parametrize(
    ("handler", "error"),
    [
        (reply(401, b'{"error": {"message": "no", "code": "invalid_api_key"}}'), EngineError),
        (reply(402, b'{"error": {"message": "no"}}'), EngineError),
        (reply(404, b"nothing"), EngineError),
        (reply(429, b"{}"), EngineOverloaded),
        (reply(500, b"{}"), EngineError),
        (reply(503, b"{}"), EngineError),
        (reply(400, b'{"error": {"message": "bad"}}'), InvalidRequest),
        (reply(200, b"data: nonsense\n\n"), EngineError),
        (reply(200, stream({"error": {"message": "it failed"}})), EngineError),
        (reply(200, stream({"choices": [3]})), EngineError),
        (
            reply(200, stream({"choices": [{"text": "x", "logprobs": {"tokens": ["a"], "token_logprobs": []}}]})),
            EngineError,
        ),
        (reply(200, stream({"choices": []}, end=False)), EngineError),
        (reply(200, stream({"choices": []})), EngineError),
    ],
)
def test_what_another_server_does_wrong_is_the_engines_error(
    handler: type[BaseHTTPRequestHandler], error: type[LeadlineError]
) -> None:
    with other_server(handler) as url, pytest.raises(error) as raised:
        ask(url)
    assert raised.value.status in (400, 500, 503), "never 401, 402 or 429: those would be this server's own words"


def connected(url: str, **options: Any) -> RemoteEngine:
    given = {"key": None, "model": None, "name": None, "context_length": None, "vocab_size": 400, **options}
    return asyncio.run(connect(url, **given))


def test_it_learns_what_it_serves(upstream: LiveServer) -> None:
    made = connected(upstream.url, name="mine")
    assert (made.info.model, made.info.context_length, made.model) == ("mine", 512, "fake")
    assert connected(upstream.url, context_length=100).info.context_length == 100
    with pytest.raises(ConfigError, match="serves fake; choose"):
        connected(upstream.url, model="other")
    with pytest.raises(ConnectionFailed):
        connected("http://127.0.0.1:9")
    several = {"data": [{"id": "a"}, {"id": "b"}]}
    with other_server(reply(200, json.dumps(several).encode())) as url:
        with pytest.raises(ConfigError, match="serves a, b; choose"):
            connected(url)
        with pytest.raises(ConfigError, match="--max-model-len"):
            connected(url, model="b")


def test_a_platform_stands_before_it(upstream: LiveServer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A whole server over another whole server: what is billed here is what was counted there."""
    from tests.server.platform.books import MISS, OUTPUT
    from tests.server.platform.site import chat, live_site

    remote = RemoteEngine(AsyncClient(upstream.url, max_retries=0), INFO, "fake")
    with live_site(tokenizer, tmp_path, made=remote) as site:
        user_id, client = site.customer()
        answered = chat(client, model="here").json()
        assert answered["choices"][0]["message"]["content"] == ANSWER.strip()
        used = answered["usage"]
        spent = used["prompt_tokens"] * MISS + used["completion_tokens"] * OUTPUT
        assert site.balance(user_id).total == 10**9 - spent
        assert site.faults() == []


def test_no_more_likeliest_tokens_than_were_asked_for() -> None:
    """vLLM adds the token that was chosen."""
    given = {"tokens": ["c"], "token_logprobs": [-3.0], "top_logprobs": [{"c": -3.0, "a": -0.5, "b": -1.0}]}
    (found,) = _logprobs(given, 2)
    assert [(each.text_bytes, each.logprob) for each in found.top] == [(b"a", -0.5), (b"b", -1.0)]
    assert found.logprob == -3.0
    assert _logprobs(given, 0)[0].top == ()
