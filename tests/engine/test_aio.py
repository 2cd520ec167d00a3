"""The engine's thread: streams, cancels within two steps, a death that reaches everybody, a close that drains."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from leadline.engine.aio import AsyncEngine
from leadline.engine.engine import Engine
from leadline.engine.types import EngineOutput, EngineProtocol, EngineRequest
from leadline.errors import ContextLengthExceeded, EngineDead, EngineOverloaded, InvalidRequest
from tests.engine.models import drain, generate, make_engine, prompt, request, tokens


def run(engine: Engine, scenario: Callable[[AsyncEngine], Awaitable[None]]) -> None:
    """Run a scenario over an engine in its thread; nothing may be left of it in the end."""

    async def main() -> None:
        served = AsyncEngine(engine)
        try:
            async with asyncio.timeout(30):
                await scenario(served)
        finally:
            await served.close(drain_seconds=5)
        assert not any(thread.name == "leadline-engine" for thread in threading.enumerate())

    asyncio.run(main())


async def collect(stream: AsyncIterator[EngineOutput]) -> list[EngineOutput]:
    return [output async for output in stream]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the thread under test has no event to wait for
            await asyncio.sleep(0.001)


def endless(name: str, **params: Any) -> EngineRequest:
    return request(name, prompt(10), max_tokens=None, **params)


def test_streams_equal_the_engine_alone() -> None:
    requests = [request(f"r{i}", prompt(30 + i, i), max_tokens=10, n=1 + i % 2) for i in range(6)]
    wanted = generate(make_engine(), *requests)

    async def scenario(served: AsyncEngine) -> None:
        streams = await asyncio.gather(*(collect(served.submit(each)) for each in requests))
        for each, outputs in zip(requests, streams, strict=True):
            for index in range(each.params.n):
                mine = [output for output in outputs if output.index == index]
                assert tokens(mine) == tokens(wanted[each.request_id, index])
                assert mine[-1].finish_reason == "length"
        assert served.stats().requests_finished == 6
        assert served.stats().pages_free == served.stats().pages_total

    run(make_engine(), scenario)


def slowly(engine: Engine, seconds: float = 0.005) -> Engine:
    step = engine.step

    def slow() -> list[EngineOutput]:
        time.sleep(seconds)
        return step()

    engine.step = slow  # type: ignore[method-assign]
    return engine


def gated(engine: Engine) -> threading.Semaphore:
    """Each step waits for a permit: a test counts steps, whatever the machine is busy with."""
    permits, step = threading.Semaphore(0), engine.step

    def permitted() -> list[EngineOutput]:
        assert permits.acquire(timeout=20)
        return step()

    engine.step = permitted  # type: ignore[method-assign]
    return permits


@pytest.mark.parametrize("way", ["cancel", "aclose", "task", "break"])
def test_leaving_frees_within_two_steps(way: str) -> None:
    engine = make_engine()
    permits = gated(engine)

    async def scenario(served: AsyncEngine) -> None:
        stream = served.submit(endless("r"))
        permits.release()
        await anext(stream)
        assert served.stats().pages_free < served.stats().pages_total
        if way == "cancel":
            served.cancel("r")
        elif way == "aclose":
            await stream.aclose()  # type: ignore[attr-defined]
        elif way == "task":
            task = asyncio.create_task(collect(stream))
            await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        else:
            del stream  # the loop closes what nobody holds
        await until(lambda: bool(served._cancelling or served.stats().requests_cancelled))
        permits.release(2)
        await until(lambda: served.stats().pages_free == served.stats().pages_total)
        assert served.stats().requests_cancelled == 1
        if way == "cancel":
            assert (await collect(stream))[-1].finish_reason == "cancelled"
        permits.release(2)

    run(engine, scenario)


def test_cancel_before_the_first_token() -> None:
    async def scenario(served: AsyncEngine) -> None:
        first = served.submit(endless("a"))
        await anext(first)
        waiting = asyncio.create_task(collect(served.submit(endless("b"))))
        await until(lambda: served.stats().waiting == 1)
        served.cancel("b")
        (only,) = await waiting
        assert (only.finish_reason, only.token_ids) == ("cancelled", ())
        served.cancel("a")
        await collect(first)

    run(slowly(make_engine(max_num_seqs=1)), scenario)


def test_a_cancel_means_the_request_of_its_time() -> None:
    async def scenario(served: EngineProtocol) -> None:
        for _ in range(5):
            served.cancel("r")
            outputs = await collect(served.submit(request("r", prompt(5))))
            assert outputs[-1].finish_reason == "length"

    run(make_engine(), scenario)


def test_mistakes_are_raised_and_harm_nobody() -> None:
    async def scenario(served: AsyncEngine) -> None:
        running = served.submit(endless("a"))
        await anext(running)
        with pytest.raises(ContextLengthExceeded):
            served.submit(request("b", prompt(5000)))
        with pytest.raises(InvalidRequest, match="in use"):
            await anext(served.submit(endless("a")))
        later = asyncio.create_task(collect(served.submit(endless("c"))))
        await until(lambda: served.stats().waiting == 1)
        with pytest.raises(EngineOverloaded):
            await anext(served.submit(endless("d")))
        assert (await anext(running)).token_ids
        for name in ("a", "c"):
            served.cancel(name)
        await later

    run(slowly(make_engine(max_num_seqs=1, max_waiting=1)), scenario)


def test_a_dead_thread_reaches_everybody() -> None:
    engine = make_engine(max_num_seqs=1)

    async def scenario(served: AsyncEngine) -> None:
        streams = [asyncio.create_task(collect(served.submit(endless(name)))) for name in ("a", "b")]
        await until(lambda: served.stats().running == 1)

        def broken() -> None:
            raise AssertionError("a page is lost")

        engine.scheduler.schedule = broken  # type: ignore[assignment, method-assign]
        for stream in streams:
            with pytest.raises(EngineDead, match="a page is lost"):
                await stream
        with pytest.raises(EngineDead):
            served.submit(endless("c"))
        assert not served.stats().alive

    run(slowly(engine), scenario)


def test_close_drains_and_then_cancels() -> None:
    async def main() -> None:
        served = AsyncEngine(slowly(make_engine()))
        short = asyncio.create_task(collect(served.submit(request("short", prompt(5), max_tokens=20))))
        await until(lambda: served.stats().running == 1)
        closing = asyncio.create_task(served.close())
        await asyncio.sleep(0)
        with pytest.raises(EngineOverloaded, match="shutting down"):
            served.submit(endless("late"))
        assert (await short)[-1].finish_reason == "length"
        await closing

        served = AsyncEngine(slowly(make_engine()))
        stream = asyncio.create_task(collect(served.submit(endless("long"))))
        await until(lambda: served.stats().running == 1)
        await served.close(drain_seconds=0.02)
        assert (await stream)[-1].finish_reason == "cancelled"
        await served.close()
        with pytest.raises(EngineDead, match="closed"):
            served.submit(endless("after"))

    asyncio.run(main())


def test_an_idle_thread_does_not_spin() -> None:
    async def scenario(served: AsyncEngine) -> None:
        await collect(served.submit(request("r", prompt(5))))
        before = time.process_time()
        await asyncio.sleep(0.3)
        assert time.process_time() - before < 0.1

    run(make_engine(), scenario)


def test_eight_clients_around_the_limit() -> None:
    """Prompts and max_tokens around the context's end, by eight at once: an answer or one clear refusal."""
    limit, seed = 96, random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)

    async def client(served: AsyncEngine, number: int) -> None:
        for turn in range(6):
            length, most = chance.randint(limit - 6, limit + 3), chance.choice([None, 1, 2, 5, limit])
            wanted = request(f"{number}-{turn}", prompt(length, turn), max_tokens=most)
            if length >= limit:
                with pytest.raises(ContextLengthExceeded):
                    served.submit(wanted)
                continue
            outputs = await collect(served.submit(wanted))
            assert outputs[-1].finish_reason == "length"
            assert len(tokens(outputs)) == min(most or limit, limit - length)

    async def scenario(served: AsyncEngine) -> None:
        await asyncio.gather(*(client(served, number) for number in range(8)))
        assert served.stats().alive

    engine = make_engine(max_model_len=limit, cache_tokens=256, max_num_seqs=4, max_num_batched_tokens=32)
    run(engine, scenario)
    drain(engine)
