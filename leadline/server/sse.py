"""Answers that take their time: server-sent events, and one JSON body at the end.

Both begin only when there is something to say, so that what is refused gets its own status; both tell a waiting client
that it is still being served; and both stop working the moment the client is gone, before the first token too. Once
begun, an event stream tells of a failure in an event and ends; it never says [DONE] then.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from leadline.errors import EngineOverloaded
from leadline.server.errors import error_body, fault

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"
STOPPING = EngineOverloaded("the server is stopping; ask again in a moment")
BLANK = b"\n"  # whitespace before a JSON value means nothing

EVENT_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}
JSON_HEADERS = {"content-type": "application/json", "cache-control": "no-cache"}


def event(value: Any) -> bytes:
    """One event. ASCII only: clients that split text at U+2028 exist."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n\n"


class ClientLeft(Exception):
    """The client closed its connection before the answer's end."""


class EventStream(Response):
    """Sends each of `events` as it comes. `left` is called when the client does not stay to the end; one that waits
    hears `sign_of_life`, and one that is cut off because the server stops gets the `farewell`."""

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        keep_alive: float,
        left: Callable[[], None] = lambda: None,
        headers: Mapping[str, str] | None = None,
        sign_of_life: bytes = COMMENT,
        farewell: bytes = b"",
    ) -> None:
        self.events = events
        self.farewell = farewell
        self.sign_of_life = sign_of_life
        self.keep_alive = keep_alive
        self.left = left
        self.extra_headers = dict(headers or {})
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = Writer(send, {**EVENT_HEADERS, **self.extra_headers}, self.sign_of_life)
        try:
            await until_disconnect(receive, writer.kept_alive(self.keep_alive, self._write(writer)))
        except ClientLeft:
            if not writer.ended:
                self.left()
        except asyncio.CancelledError:  # the server stops and its grace is over
            if self.farewell and writer.opened and not writer.ended:
                await writer.write(self.farewell)
                await writer.end()
            raise

    async def _write(self, writer: Writer) -> None:
        try:
            async with contextlib.aclosing(self.events):
                async for data in self.events:
                    await writer.write(data)
        except Exception as error:
            if not writer.opened:
                raise
            await writer.write(event(error_body(fault(error))))
        await writer.end()


class JsonWhenDone(Response):
    """One JSON body, when `work` has made it; a client that waits long gets blank lines before it."""

    def __init__(
        self,
        work: Coroutine[Any, Any, bytes],
        *,
        keep_alive: float,
        left: Callable[[], None],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.work = work
        self.keep_alive = keep_alive
        self.left = left
        self.extra_headers = dict(headers or {})
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = Writer(send, {**JSON_HEADERS, **self.extra_headers}, BLANK)
        try:
            await until_disconnect(receive, writer.kept_alive(self.keep_alive, self._write(writer)))
        except ClientLeft:
            if not writer.ended:
                self.left()

    async def _write(self, writer: Writer) -> None:
        body = await self.work
        await writer.write(body, length=len(body))
        await writer.end()


class Writer:
    """A response that opens itself with its first bytes, or with its first sign of life. Once it has `ended`, a server
    tells of a disconnect whether the client stays or not."""

    def __init__(self, send: Send, headers: Mapping[str, str], sign_of_life: bytes) -> None:
        self.opened = self.ended = False
        self._send = send
        self._headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        self._sign_of_life = sign_of_life
        self._lock = asyncio.Lock()
        self._last = asyncio.get_running_loop().time()

    async def write(self, data: bytes, *, length: int | None = None) -> None:
        async with self._lock:
            if not self.opened:
                self.opened = True
                size = [] if length is None else [(b"content-length", b"%d" % length)]
                await self._send({"type": "http.response.start", "status": 200, "headers": self._headers + size})
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
            self._last = asyncio.get_running_loop().time()

    async def end(self) -> None:
        async with self._lock:
            self.ended = True
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def kept_alive(self, interval: float, work: Awaitable[None]) -> None:
        """`work`, with a sign of life whenever it has been silent for `interval` seconds."""
        beat = asyncio.create_task(self._beat(interval))
        try:
            await work
        finally:
            beat.cancel()
            await asyncio.gather(beat, return_exceptions=True)

    async def _beat(self, interval: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            silent = loop.time() - self._last
            if silent >= interval:
                await self.write(self._sign_of_life)
                silent = 0.0
            await asyncio.sleep(interval - silent)


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. When the client goes first, `work` is cancelled and over before `ClientLeft` is raised."""
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientLeft
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
