"""Kill a process that bills, at random moments, and look at what it leaves: `python -m ...killer ROUNDS SEED FOLDER`.

Every round forks a child that keeps eight requests in flight on one SQLite file, writing each settled request's id to
a pipe after its settlement is committed; kills it with SIGKILL; moves the clock past the lease; sweeps; and checks
that all that was committed is there, that no hold is left and that the books add up.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from pathlib import Path

from leadline.engine.types import Usage
from leadline.server.billing import LEASE_SECONDS
from leadline.server.meter import Meters
from tests.server.platform.books import MISS, OUTPUT, Books, books, empty_database, order

STREAMS = 8
PROMPT = 10


async def stream(books: Books, meters: Meters, user_id: int, name: str, out: int) -> None:
    number = 0
    while True:
        number += 1
        request_id = f"{name}-{number}"
        meter = meters.meter(order(request_id, user_id, prompt_tokens=PROMPT, most=2000))
        await meter.open()
        for tokens in range(1, 2 + number % 40):
            await meter.cover(tokens)
            meter.delivered(Usage(PROMPT, tokens, 0))
            await asyncio.sleep(0.001)
        await meter.close("finished")
        os.write(out, f"{request_id}\n".encode())


async def child(path: Path, user_id: int, name: str, out: int) -> None:
    async with books(path, priced=False) as opened:
        meters = Meters(opened.billing)
        streams = [stream(opened, meters, user_id, f"{name}-{n}", out) for n in range(STREAMS)]
        async with meters.running():
            os.write(out, b"ready\n")
            await asyncio.gather(*streams)


def fork(path: Path, user_id: int, name: str) -> tuple[int, int]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        asyncio.run(child(path, user_id, name, writing))
        os._exit(1)
    os.close(writing)
    return pid, reading


def killed(path: Path, user_id: int, name: str, seconds: float) -> set[str]:
    """The requests that the child said were settled before it was killed."""
    pid, reading = fork(path, user_id, name)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.readline() == b"ready\n"
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return {line.decode().strip() for line in pipe.read().splitlines()}


async def start(path: Path) -> int:
    async with books(path) as opened:
        user_id = await opened.user()
        await opened.credit(user_id, 10**15)
        return user_id


async def check(path: Path, settled: set[str]) -> int:
    """The number of holds that were swept."""
    async with books(path, priced=False) as opened:
        assert await opened.faults() == [], "before the sweep"
        opened.clock.now += LEASE_SECONDS + 1
        swept = await opened.billing.sweep()
        bills = await opened.bills()
        assert settled <= set(bills), "what was committed survives"
        assert await opened.count_holds() == 0
        assert await opened.faults() == []
        assert all(cost == 0 or (cost - PROMPT * MISS) % OUTPUT == 0 for cost in bills.values())
        return swept


def main(rounds: int, seed: int, folder: Path) -> None:
    path = empty_database(folder)
    user_id = asyncio.run(start(path))
    chance = random.Random(seed)
    settled: set[str] = set()
    swept = 0
    for number in range(rounds):
        settled |= killed(path, user_id, str(number), chance.uniform(0.0, 0.25))
        swept += asyncio.run(check(path, settled))
    print(f"{rounds} kills, {len(settled)} settled before, {swept} swept after")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
