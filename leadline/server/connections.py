"""Connections that take nothing and give nothing: how long the server waits for the other side.

uvicorn waits for ever for a request's head and for a client that does not read its answer. Each such connection keeps a
file open, and an answer that nobody reads keeps its money held and its place taken; so each wait has an end here. A
request's body has one where it is read (`leadline.server.body`), and one between two requests is uvicorn's own.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol as Base
else:
    Base = AutoHTTPProtocol

HEAD_SECONDS = 30.0  # from the connection, or from a head's first byte, to the head's end
MOST_HEAD = 128 << 10  # bytes; h11 has a limit of its own, httptools none
STALLED_SECONDS = 120.0  # in which a client takes nothing of an answer that waits for it


class Connection(Base):
    """uvicorn's protocol, with an end to its patience."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head = self.loop.call_later(HEAD_SECONDS, transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._has_head()
        elif not self.transport.is_closing():
            self._head = self._head or self.loop.call_later(HEAD_SECONDS, self.transport.close)
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD:
                self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._goes_on()

    def connection_lost(self, exc: Exception | None) -> None:
        self._has_head()
        self._goes_on()
        super().connection_lost(exc)

    def _has_head(self) -> None:
        self._head_bytes = 0
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _goes_on(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None


def allow_many() -> None:
    """As many open files as the system lets this process have: shells give 1,024, and each connection is one."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # a system that counts otherwise
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
