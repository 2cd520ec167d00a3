"""A queue for one at a time, in which the urgent go first."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator


class Turn:
    """Like asyncio.Lock, in order of arrival, but whoever is urgent waits for none that are not."""

    def __init__(self) -> None:
        self._busy = False
        self._urgent: deque[asyncio.Future[None]] = deque()
        self._others: deque[asyncio.Future[None]] = deque()

    @contextlib.asynccontextmanager
    async def take(self, *, urgent: bool = False) -> AsyncGenerator[None, None]:
        await self._wait(self._urgent if urgent else self._others)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, queue: deque[asyncio.Future[None]]) -> None:
        if not self._busy:
            self._busy = True
            return
        place = asyncio.get_running_loop().create_future()
        queue.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():  # it was this one's turn just then
                self._pass_on()
            elif place in queue:
                queue.remove(place)
            raise

    def _pass_on(self) -> None:
        for queue in (self._urgent, self._others):
            while queue:
                place = queue.popleft()
                if not place.done():
                    place.set_result(None)
                    return
        self._busy = False
