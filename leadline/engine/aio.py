"""AsyncEngine: an engine in a thread of its own, asked from any event loop.

Commands go in through one locked list and are applied between two steps; outputs go out with one wake-up a step and
event loop. A thread with nothing to do waits on a condition. When the thread dies every stream and every later submit
raises `EngineDead`: nobody waits for an answer that cannot come.

Invariant: a stream that was opened gets a last output or an exception, whatever happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from collections import defaultdict
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

from leadline.engine.engine import Engine
from leadline.engine.types import EngineInfo, EngineOutput, EngineRequest, EngineStats
from leadline.errors import EngineDead, EngineError, EngineOverloaded, InvalidRequest, LeadlineError

Item = EngineOutput | LeadlineError

PREPARE_SECONDS = 10.0  # until a request whose grammar is not compiled by then is refused


@dataclasses.dataclass(eq=False, slots=True)
class Stream:
    """Where one request's outputs go: a queue of the loop that asked."""

    request: EngineRequest
    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[Item]
    unfinished: int


class AsyncEngine:
    """Implements `EngineProtocol` over an `Engine`. `close` drains: no new requests, the running ones end."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._changed = threading.Condition()
        self._arriving: list[Stream] = []
        self._cancelling: list[str] = []
        self._streams: dict[str, Stream] = {}
        self._closing = self._stopping = False
        self._death: str | None = None
        self._preparing = ThreadPoolExecutor(1, "leadline-grammars")  # its thread starts with the first grammar
        self._thread = threading.Thread(target=self._work, name="leadline-engine", daemon=True)
        self._thread.start()

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    def stats(self) -> EngineStats:
        stats = self._engine.stats()
        arriving = len(self._arriving)
        return dataclasses.replace(stats, waiting=stats.waiting + arriving, alive=self._death is None)

    def submit(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        """Raises what is wrong at once; the work starts with the first step of the iteration."""
        self._refuse_when_down()
        self._engine.check(request)
        return self._stream(request)

    def cancel(self, request_id: str) -> None:
        with self._changed:
            self._cancelling.append(request_id)
            self._changed.notify()

    async def close(self, *, drain_seconds: float = 30.0) -> None:
        """Let the running requests end, cancel what is left after `drain_seconds`, stop the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join, drain_seconds)
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._preparing.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._thread.join)

    # ---- the asking side ---------------------------------------------------------------------------------------

    async def _stream(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        await self._prepare(request)
        stream = Stream(request, asyncio.get_running_loop(), asyncio.Queue(), request.params.n)
        self._open(stream)
        try:
            while stream.unfinished:
                item = await stream.queue.get()
                if isinstance(item, LeadlineError):
                    stream.unfinished = 0
                    raise item
                stream.unfinished -= item.finish_reason is not None
                yield item
        finally:
            self._leave(stream)

    async def _prepare(self, request: EngineRequest) -> None:
        """Compile its grammar beside the engine's thread, so that nobody else's answer waits for it."""
        if request.params.grammar is None:
            return
        work = asyncio.get_running_loop().run_in_executor(self._preparing, self._engine.prepare, request)
        try:
            await asyncio.wait_for(work, PREPARE_SECONDS)
        except TimeoutError:
            raise InvalidRequest("the grammar takes too long to compile; make it simpler", param="grammar") from None

    def _open(self, stream: Stream) -> None:
        name = stream.request.request_id
        with self._changed:
            self._refuse_when_down()
            if name in self._streams:
                raise InvalidRequest(f"request id {name!r} is in use")
            self._streams[name] = stream
            self._cancelling = [other for other in self._cancelling if other != name]  # meant an earlier request
            self._arriving.append(stream)
            self._changed.notify()

    def _leave(self, stream: Stream) -> None:
        """The consumer is gone: cancel, unless the request has ended and its id may be another's by now."""
        with self._changed:
            if self._streams.get(stream.request.request_id) is stream:
                self._cancelling.append(stream.request.request_id)
                self._changed.notify()

    def _refuse_when_down(self) -> None:
        if self._death is not None:
            raise EngineDead(self._death)
        if self._closing:
            raise EngineOverloaded("the engine is shutting down")

    # ---- the thread --------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while self._take_commands():
                self._deliver(self._engine.step())
            self._die("the engine has been closed")
        except BaseException as error:
            self._die(f"the engine has stopped: {type(error).__name__}: {error}")
            if not isinstance(error, Exception):
                raise

    def _take_commands(self) -> bool:
        """Wait for something to do and apply what was asked; False when the thread should end."""
        with self._changed:
            while not (self._arriving or self._cancelling or self._engine.has_work or self._closing):
                self._changed.wait()
            arriving, self._arriving = self._arriving, []
            cancelling, self._cancelling = self._cancelling, []
            closing = self._closing
            if self._stopping:
                cancelling += self._streams
        for stream in arriving:
            self._add(stream)
        for request_id in cancelling:
            self._engine.cancel(request_id)
        return self._engine.has_work or not closing

    def _add(self, stream: Stream) -> None:
        try:
            self._engine.add(stream.request)
        except Exception as error:
            wrapped = error if isinstance(error, LeadlineError) else EngineError(f"{type(error).__name__}: {error}")
            self._forget(stream.request.request_id)
            self._give(stream.loop, [(stream, wrapped)])

    def _deliver(self, outputs: list[EngineOutput]) -> None:
        """One wake-up an event loop, however many answers moved."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Stream, Item]]] = defaultdict(list)
        for output in outputs:
            if (stream := self._streams.get(output.request_id)) is not None:
                by_loop[stream.loop].append((stream, output))
        for output in outputs:
            if output.finish_reason is not None and not self._engine.knows(output.request_id):
                self._forget(output.request_id)  # before its end is told: the id may be used again at once
        for loop, items in by_loop.items():
            self._give(loop, items)

    def _give(self, loop: asyncio.AbstractEventLoop, items: list[tuple[Stream, Item]]) -> None:
        def put() -> None:
            for stream, item in items:
                stream.queue.put_nowait(item)

        with contextlib.suppress(RuntimeError):  # the loop has been closed, and with it whoever waited there
            loop.call_soon_threadsafe(put)

    def _forget(self, request_id: str) -> None:
        with self._changed:
            self._streams.pop(request_id, None)

    def _die(self, reason: str) -> None:
        with self._changed:
            self._death = reason
            streams, self._streams = list(self._streams.values()), {}
            self._arriving.clear()
        for stream in streams:
            self._give(stream.loop, [(stream, EngineDead(reason))])
