"""The fake engine keeps the contract that the real one keeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from leadline.engine.fake import ANSWER, FakeEngine
from leadline.engine.types import EngineOutput, EngineProtocol, EngineRequest, SamplingParams
from leadline.errors import ContextLengthExceeded, EngineDead, EngineOverloaded, InvalidRequest
from tests.engine.vocabulary import ByteTokenizer


def request(name: str = "r", prompt: str = "hi", salt: bytes = b"", **params: Any) -> EngineRequest:
    return EngineRequest(name, tuple(prompt.encode()), SamplingParams(**params), cache_salt=salt)


async def collect(stream: AsyncIterator[EngineOutput]) -> list[EngineOutput]:
    return [output async for output in stream]


def run(engine: EngineProtocol, wanted: EngineRequest) -> list[EngineOutput]:
    return asyncio.run(collect(engine.submit(wanted)))


def engine(**options: Any) -> FakeEngine:
    return FakeEngine(ByteTokenizer(), **options)


def test_answers_and_ends_with_eos() -> None:
    outputs = run(engine(), request())
    assert "".join(output.text for output in outputs) == ANSWER
    assert [o.finish_reason for o in outputs] == [None] * (len(outputs) - 1) + ["stop"]
    assert outputs[-1].usage.completion_tokens == len(ANSWER.encode()) + 1


def test_max_tokens_stop_strings_and_ignore_eos() -> None:
    assert run(engine(), request(max_tokens=3))[-1].finish_reason == "length"
    stopped = run(engine(), request(stop=("sailors",)))
    assert "".join(o.text for o in stopped) == " A lead line is what "
    assert stopped[-1].stop_reason == "sailors"
    endless = run(engine(answer="ab"), request(ignore_eos=True, max_tokens=7))
    assert "".join(o.text for o in endless) == "abababa"


def test_n_answers_with_logprobs_interleave() -> None:
    fake = engine(answer=lambda request, index: "xyz"[index] * 2)
    outputs = run(fake, request(n=3, logprobs=2))
    assert [o.index for o in outputs[:3]] == [0, 1, 2]
    assert "".join(o.text for o in outputs if o.index == 1) == "yy"
    assert all(len(o.logprobs) == 1 and len(o.logprobs[0].top) == 2 for o in outputs)


def test_a_prompt_seen_before_is_cached_but_not_for_another_salt() -> None:
    fake, prompt = engine(), "p" * 200
    usages = [run(fake, request(prompt=prompt, salt=salt))[-1].usage for salt in (b"", b"", b"other")]
    assert [usage.cached_tokens for usage in usages] == [0, 192, 0]
    assert fake.stats().prompt_tokens == 600
    assert fake.stats().cached_tokens == 192


def test_refuses_what_the_real_engine_refuses() -> None:
    with pytest.raises(ContextLengthExceeded, match="4096"):
        engine().submit(request(prompt="x" * 4096))
    with pytest.raises(InvalidRequest, match="empty"):
        engine().submit(request(prompt=""))
    with pytest.raises(EngineOverloaded):
        engine(max_requests=0).submit(request())


def test_cancel_and_a_closed_iterator_free_the_request() -> None:
    async def scenario() -> None:
        fake = engine(tokens_per_second=1000)
        stream = fake.submit(request("a"))
        await anext(stream)
        assert fake.stats().running == 1
        fake.cancel("a")
        rest = await collect(stream)
        assert rest[-1].finish_reason == "cancelled"
        assert len(rest) <= 2
        other = fake.submit(request("b"))
        await anext(other)
        await other.aclose()  # type: ignore[attr-defined]
        assert fake.stats().running == 0
        assert fake.stats().requests_cancelled == 2
        await fake.close()

    asyncio.run(scenario())


def test_faults_on_demand() -> None:
    assert run(engine(error_after=2), request())[-1].finish_reason == "error"
    fake = engine()
    fake.kill()
    with pytest.raises(EngineDead):
        fake.submit(request())
    assert not fake.stats().alive
