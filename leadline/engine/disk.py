"""DiskCache: the prefix cache's second floor. Pages that fill are copied to a `PageStore`; a prefix that memory has
lost, or never had in this process, is read from there.

Writing has a thread of its own, so that a pass never waits for the disk unless it is far behind; reading is the engine
thread's, a page at a time. What fails on the disk costs a page, never an answer.

Invariant: a page is given back only for the key it was saved under, and never after `forget`.
"""

from __future__ import annotations

import logging
import queue
import threading
import weakref
from collections.abc import Iterable
from typing import Protocol

from leadline.engine.store import PageStore

QUEUED_PAGES = 64
"""Copies that may wait for the disk: about 128 MiB at V2-Lite's width."""

_EXIT_SECONDS = 10.0
_log = logging.getLogger(__name__)


class Pages(Protocol):
    """The cache in memory, page by page."""

    def read_page(self, page: int) -> memoryview: ...

    def write_page(self, page: int, data: memoryview) -> bool: ...


Work = tuple[bytes, memoryview | None]  # a key and its page; None: remove it
Queue = queue.Queue[Work | None]


class DiskCache:
    """`load` and `save` are the engine thread's."""

    def __init__(self, store: PageStore, pages: Pages) -> None:
        self.store = store
        self._pages = pages
        self._forgotten: set[bytes] = set()
        self._queue: Queue = queue.Queue(QUEUED_PAGES)
        writer = threading.Thread(target=_write_all, args=(store, self._queue), name="leadline-disk", daemon=True)
        writer.start()
        self._closed = weakref.finalize(self, _finish, self._queue, writer)

    def load(self, key: bytes, page: int) -> bool:
        """Fill a page of the cache; False and no change when the store does not have it."""
        if key in self._forgotten:
            return False
        data = self.store.get(key)
        return data is not None and self._pages.write_page(page, data)

    def save(self, key: bytes, page: int) -> None:
        """Copy a full page, to be written soon."""
        if self._closed.alive:
            self._forgotten.discard(key)
            self._queue.put((key, self._pages.read_page(page)))

    def forget(self, keys: Iterable[bytes]) -> None:
        """What was saved under these keys is not to be trusted."""
        if self._closed.alive:
            for key in keys:
                self._forgotten.add(key)
                self._queue.put((key, None))

    def flush(self) -> None:
        """Wait until everything that was saved is on the disk."""
        self._queue.join()

    def close(self) -> None:
        """Write what is waiting and end the thread; also done when the interpreter leaves."""
        self._closed()


def _write_all(store: PageStore, work: Queue) -> None:
    """Until None comes. A disk that fails is told about once and then left alone."""
    healthy = True
    while (item := work.get()) is not None:
        if healthy:
            healthy = _write_one(store, *item)
        work.task_done()
    work.task_done()


def _write_one(store: PageStore, key: bytes, data: memoryview | None) -> bool:
    try:
        if data is None:
            store.remove(key)
        else:
            store.put(key, data)
    except OSError as error:
        _log.warning("the latent cache on the disk is off: %s: %s", store.root, error.strerror or error)
        return False
    return True


def _finish(work: Queue, writer: threading.Thread) -> None:
    work.put(None)
    writer.join(_EXIT_SECONDS)
