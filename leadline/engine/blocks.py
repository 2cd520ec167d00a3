"""BlockManager: who holds which page of the cache, and which full pages can be met again (the prefix cache).

A full page is known by a chain of BLAKE2b hashes over (model, cache format, salt, adapter; previous key; its token
ids), so a key names the whole prefix up to and including the page, and requests of unlike salts never meet. Pages that
nobody holds stay known until they are needed, the least recently used first and the end of a prefix before its
beginning.

Invariant: every page is in exactly one of three states: held (references > 0), idle (no references, known by a key, in
the LRU order) or blank (no references, unknown). No torch: the manager deals in page numbers only.
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

PAGE_SIZE = 64
KEY_BYTES = 32


def root_key(model: str, cache_format: str, salt: bytes = b"", adapter: str | None = None) -> bytes:
    """The chain's beginning. Fields carry their lengths, so that no two sets of them read alike."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for field in (model.encode(), cache_format.encode(), salt, b"" if adapter is None else b"+" + adapter.encode()):
        digest.update(struct.pack("<Q", len(field)))
        digest.update(field)
    return digest.digest()


def page_key(previous: bytes, ids: Sequence[int]) -> bytes:
    """The key of a full page of `ids` that follows the prefix `previous`."""
    return hashlib.blake2b(previous + struct.pack(f"<{len(ids)}I", *ids), digest_size=KEY_BYTES).digest()


def extend_keys(keys: list[bytes], root: bytes, ids: Sequence[int], pages: int, page_size: int = PAGE_SIZE) -> None:
    """Make `keys` hold those of the first `pages` full pages of `ids`."""
    for page in range(len(keys), pages):
        keys.append(page_key(keys[-1] if keys else root, ids[page * page_size : (page + 1) * page_size]))


class BlockManager:
    """Pages 0 .. pages - 1, with reference counts and the prefix cache."""

    def __init__(self, pages: int, *, page_size: int = PAGE_SIZE, prefix_cache: bool = True) -> None:
        self.pages = pages
        self.page_size = page_size
        self.prefix_cache = prefix_cache
        self._references = [0] * pages
        self._keys: list[bytes | None] = [None] * pages
        self._known: dict[bytes, int] = {}
        self._blank = list(range(pages - 1, -1, -1))  # taken from the end: low pages first
        self._idle: OrderedDict[int, None] = OrderedDict()  # least recently used first

    @property
    def free(self) -> int:
        """Pages that can be had now: blank, or only held by the prefix cache."""
        return len(self._blank) + len(self._idle)

    @property
    def cached(self) -> int:
        """Pages that the prefix cache knows, held or idle."""
        return len(self._known)

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    # ---- taking and giving back --------------------------------------------------------------------------------

    def allocate(self, count: int) -> list[int] | None:
        """`count` pages with one reference each, or None and no change when there are not as many."""
        if count > self.free:
            return None
        return [self._take() for _ in range(count)]

    def _take(self) -> int:
        page = self._blank.pop() if self._blank else self._evict()
        self._references[page] = 1
        return page

    def _evict(self) -> int:
        page, _ = self._idle.popitem(last=False)
        key = self._keys[page]
        assert key is not None
        del self._known[key]
        self._keys[page] = None
        return page

    def grow(self, pages: list[int], tokens: int) -> bool:
        """Append pages to a sequence's table until it holds `tokens`; False and no change when they are lacking."""
        more = self.allocate(max(self.pages_for(tokens) - len(pages), 0))
        if more is None:
            return False
        pages.extend(more)
        return True

    def acquire(self, pages: Iterable[int]) -> None:
        """One more reference to each: for a prefix that was matched, or a table that is shared."""
        for page in pages:
            if self._references[page] == 0:
                del self._idle[page]
            self._references[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """One reference less to each; a prefix's last pages are the first to be evicted."""
        for page in reversed(pages):
            assert self._references[page] > 0
            self._references[page] -= 1
            if self._references[page] == 0:
                self._retire(page)

    def _retire(self, page: int) -> None:
        if self._keys[page] is None:
            self._blank.append(page)
        else:
            self._idle[page] = None

    # ---- the prefix cache --------------------------------------------------------------------------------------

    def publish(self, page: int, key: bytes) -> None:
        """Make a held, full page findable. The first page of a key stays the one that is found."""
        assert self._references[page] > 0
        if self.prefix_cache and key not in self._known and self._keys[page] is None:
            self._known[key] = page
            self._keys[page] = key

    def forget(self, pages: Iterable[int]) -> None:
        """Make held pages unfindable: their content is not to be trusted."""
        for page in pages:
            assert self._references[page] > 0
            key, self._keys[page] = self._keys[page], None
            if key is not None:
                del self._known[key]

    def match_prefix(self, keys: Sequence[bytes]) -> list[int]:
        """The pages of the longest known prefix, not yet acquired. The caller leaves out the page that would cover the
        whole prompt: at least one token must be computed for its logits."""
        matched: list[int] = []
        for key in keys:
            page = self._known.get(key)
            if page is None:
                break
            matched.append(page)
        return matched

    def clear(self) -> None:
        """Forget every cached prefix; held pages stay held."""
        for page in self._idle:
            self._blank.append(page)
        self._idle.clear()
        for page in self._known.values():
            self._keys[page] = None
        self._known.clear()

    # ---- invariants --------------------------------------------------------------------------------------------

    def check_integrity(self, tables: Iterable[Sequence[int]] | None = None) -> None:
        """Assert every invariant; with `tables` (all that are held), that the references are exactly theirs."""
        blank, idle = set(self._blank), set(self._idle)
        held = {page for page in range(self.pages) if self._references[page] > 0}
        assert len(blank) == len(self._blank), "a page is blank twice"
        assert len(blank | idle | held) == len(blank) + len(idle) + len(held), "a page is in two states"
        assert len(blank) + len(idle) + len(held) == self.pages, "a page is lost"
        assert all(self._keys[page] is None for page in blank)
        assert all(self._keys[page] is not None for page in idle)
        assert {page: key for key, page in self._known.items()} == {
            page: key for page, key in enumerate(self._keys) if key is not None
        }
        if tables is not None:
            counts = Counter(page for table in tables for page in table)
            assert counts == {page: self._references[page] for page in held}, "references are not what the tables hold"
