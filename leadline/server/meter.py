"""Meters: one for each request that runs, between its tokens and its bill.

A meter opens with a hold, keeps the answer covered while it streams, and closes with a settlement, whatever happens to
the task that runs the request: every piece of database work is a task of its own, which no cancellation reaches. The
`Meters` of a process also write the counts of all of them down four times a second, and sweep up after other processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from leadline.engine.types import Usage
from leadline.errors import BooksUnavailable, LeadlineError
from leadline.server.access import Outcome
from leadline.server.billing import HOLD_TOKENS, LEASE_SECONDS, Billing, Hold, Order, Settlement

T = TypeVar("T")

log = logging.getLogger("leadline.server.billing")

PERSIST_SECONDS = 0.25  # with a write's own time on top, well under a second behind delivery
BEHIND_SECONDS = 1.0  # where writing takes longer than that, answers wait for it
PATIENCE_SECONDS = 30.0  # and end when it does not come
SWEEP_SECONDS = 5.0
MOST_SETTLED = 200  # in one transaction
LOW_WATER = 64  # covered tokens left when a hold is extended


class HoldMeter:
    def __init__(self, meters: Meters, order: Order) -> None:
        self.meters = meters
        self.order = order
        self.usage = Usage()  # what is delivered, as far as `delivered` was told
        self._opening: asyncio.Task[Hold] | None = None
        self._hold: Hold | None = None
        self._closing: asyncio.Task[None] | None = None
        self._extending: asyncio.Task[None] | None = None
        self._dry = False  # the last extension brought nothing; the next is tried when nothing is left

    @property
    def held(self) -> int:
        """Nano-units."""
        hold = self._hold
        return 0 if hold is None else hold.price.ceiling(hold.order.prompt_tokens, hold.covered)

    async def open(self) -> None:
        """Hold, or raise `InsufficientBalance`."""
        self._opening = self.meters.spawn(self.meters.billing.hold(self.order))
        self._hold = await asyncio.shield(self._opening)
        self.meters.live[self.order.request_id] = self

    async def cover(self, completion_tokens: int) -> bool:
        """Whether so many tokens of output are paid for.

        More is held before it is needed and waited for only when it is: streams that began together extend their holds
        together, and none should stand still until the others' are written.
        """
        assert self._hold is not None
        if self._extending is None and self._wants_more(completion_tokens):
            self._extending = self.meters.spawn(self._extend())
        if self._extending is not None and (self._extending.done() or completion_tokens > self._hold.covered):
            extending, self._extending = self._extending, None
            await asyncio.shield(extending)
        await self.meters.written_down()
        return completion_tokens <= self._hold.covered

    def _wants_more(self, completion_tokens: int) -> bool:
        assert self._hold is not None
        left = self._hold.covered - completion_tokens
        return left < (0 if self._dry else LOW_WATER) and self._hold.covered < self.order.most

    async def _extend(self) -> None:
        """After the settlement, should that come first, this changes nothing: the hold is gone then."""
        assert self._hold is not None
        before = self._hold.covered
        more = min(HOLD_TOKENS, self.order.most - before)
        self._hold = await self.meters.billing.extend(self._hold, more)
        self._dry = self._hold.covered == before

    def delivered(self, usage: Usage) -> None:
        self.usage = usage

    async def close(self, outcome: Outcome) -> None:
        """Settle; a second call changes nothing. Returns when the bill is written, unless it is cancelled: then the
        bill is written all the same."""
        self._closing = self._closing or self.meters.spawn(self._settle(outcome))
        await asyncio.shield(self._closing)

    async def _settle(self, outcome: Outcome) -> None:
        if self._opening is None:
            return
        try:
            await self._opening
        except LeadlineError:
            return  # nothing was held
        try:
            await self.meters.settle(Settlement(self.order.request_id, self.usage, outcome))
        finally:
            self.meters.live.pop(self.order.request_id, None)


class Meters:
    """The meters of this process."""

    def __init__(self, billing: Billing) -> None:
        self.billing = billing
        self.live: dict[str, HoldMeter] = {}
        self.settled = 0  # nano-units that this process has billed
        self._written: dict[str, tuple[Usage, float]] = {}
        # The loop's time of the last counts that were written down; infinite while nobody does.
        self._snapshot = math.inf
        self._progress = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._waiting: list[tuple[Settlement, asyncio.Future[None]]] = []
        self._writing = False

    @property
    def held(self) -> int:
        return sum(meter.held for meter in self.live.values())

    @property
    def open_holds(self) -> int:
        return len(self.live)

    @property
    def behind_seconds(self) -> float:
        """Since the counts were last written down; the loop's clock is `time.monotonic`."""
        return max(0.0, time.monotonic() - self._snapshot)

    def meter(self, order: Order) -> HoldMeter:
        return HoldMeter(self, order)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """`work` as a task that outlives its caller; `drain` waits for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def drain(self) -> None:
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def settle(self, settlement: Settlement) -> None:
        """Together with all that wait when the writer is free: of many that end at once none waits for each other."""
        written = asyncio.get_running_loop().create_future()
        self._waiting.append((settlement, written))
        if len(self._waiting) == 1 and not self._writing:
            self._writing = True
            self.spawn(self._write())
        await written

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:MOST_SETTLED], self._waiting[MOST_SETTLED:]
            try:
                await self._settle_all([settlement for settlement, _ in batch])
            except BooksUnavailable as error:
                log.error("settlements wait for the sweep: %s", error.message)
            except Exception as error:
                log.error("a settlement failed", exc_info=error)
            for _, written in batch:
                if not written.done():
                    written.set_result(None)
        self._writing = False

    async def _settle_all(self, settlements: list[Settlement]) -> None:
        """One that cannot be written keeps no other from it; its hold is left to the sweep."""
        try:
            self.settled += sum((await self.billing.settle_all(settlements)).values())
        except Exception:
            if len(settlements) == 1:
                raise
            for each in settlements:
                with contextlib.suppress(Exception):
                    await self._settle_all([each])

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Persist and sweep meanwhile; at the end, wait for the settlements that are on their way."""
        self._tell(asyncio.get_running_loop().time())
        async with every(PERSIST_SECONDS, self.persist), every(SWEEP_SECONDS, self.sweep):
            try:
                yield
            finally:
                self._tell(math.inf)
                await self.drain()

    async def written_down(self) -> None:
        """Wait while the last counts that were written down are older than a second: no more than that is ever lost."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._snapshot <= BEHIND_SECONDS:
            return
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while loop.time() - self._snapshot > BEHIND_SECONDS:
                    await self._progress.wait()
        except TimeoutError:
            raise BooksUnavailable("what was delivered could not be written down in time; try again later") from None

    def _tell(self, snapshot: float) -> None:
        self._snapshot = snapshot
        self._progress.set()
        self._progress = asyncio.Event()

    async def persist(self) -> None:
        """Write down what has changed, and of the rest what would soon lose its lease."""
        now, snapshot = self.billing.clock(), asyncio.get_running_loop().time()
        self._written = {request_id: seen for request_id, seen in self._written.items() if request_id in self.live}
        counts = {request_id: meter.usage for request_id, meter in self.live.items() if self._due(meter, now)}
        await self.billing.persist(counts)
        self._written |= {request_id: (usage, now) for request_id, usage in counts.items()}
        if self._snapshot < math.inf:
            self._tell(snapshot)

    async def sweep(self) -> None:
        """Settle for the dead and empty what has expired."""
        await self.billing.sweep(self.live)
        await self.billing.expire()

    def _due(self, meter: HoldMeter, now: float) -> bool:
        usage, when = self._written.get(meter.order.request_id, (Usage(), 0.0))
        return usage != meter.usage or now - when >= LEASE_SECONDS / 3


@contextlib.asynccontextmanager
async def every(seconds: float, work: Callable[[], Awaitable[None]]) -> AsyncGenerator[None, None]:
    """`work` again and again, meanwhile."""
    loop = asyncio.create_task(_again(seconds, work))
    try:
        yield
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)


async def _again(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    """From start to start, so that slow work hardly comes less often; but never without a pause for others."""
    loop = asyncio.get_running_loop()
    while True:
        start = loop.time()
        try:
            await work()
        except BooksUnavailable:
            pass  # the database has said so in the log
        except Exception:
            log.exception("upkeep of the books failed; it is tried again")
        await asyncio.sleep(max(seconds / 5, start + seconds - loop.time()))
