"""One at a time, the urgent first, and nobody who left is waited for."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from leadline.server.turn import Turn


async def work(turn: Turn, name: str, done: list[str], *, urgent: bool = False) -> None:
    async with turn.take(urgent=urgent):
        assert done.count("(") == done.count(")"), "one at a time"
        done.append("(")
        try:
            await asyncio.sleep(0)
            done.append(name)
        finally:
            done.append(")")


def names(done: list[str]) -> list[str]:
    return [each for each in done if each not in "()"]


def test_the_urgent_go_before_all_that_wait() -> None:
    async def run() -> list[str]:
        turn, done = Turn(), list[str]()
        tasks = [asyncio.create_task(work(turn, name, done, urgent=name.isupper())) for name in "abcXdY"]
        await asyncio.gather(*tasks)
        return names(done)

    assert asyncio.run(run()) == ["a", "X", "Y", "b", "c", "d"]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12)), min_size=1, max_size=12))
def test_whoever_leaves_at_any_moment_keeps_nobody(crowd: list[tuple[bool, int]]) -> None:
    """Each is cancelled after so many steps of the loop, or, at 12, never."""

    async def run() -> None:
        turn, done = Turn(), list[str]()
        tasks = [asyncio.create_task(work(turn, str(n), done, urgent=urgent)) for n, (urgent, _) in enumerate(crowd)]
        for step in range(12):
            for task, (_, leaves) in zip(tasks, crowd, strict=True):
                if leaves == step:
                    task.cancel()
            await asyncio.sleep(0)
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        stayed = [leaves == 12 for _, leaves in crowd]
        assert all(result is None for result, stays in zip(results, stayed, strict=True) if stays)
        async with asyncio.timeout(5), turn.take():
            pass

    asyncio.run(run())
