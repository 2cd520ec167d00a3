"""The block manager against a plain model of it: no leak, no page in two places, no content under another's key."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from leadline.engine.blocks import BlockManager, extend_keys, page_key, root_key

PAGES, SIZE = 12, 4
SALTS = (b"", b"alice", b"bob")


def keys_of(ids: tuple[int, ...], salt: bytes = b"") -> list[bytes]:
    keys: list[bytes] = []
    extend_keys(keys, root_key("m", "bf16", salt), ids, len(ids) // SIZE, SIZE)
    return keys


def test_keys_name_everything_they_should() -> None:
    fields: list[tuple[str, str, bytes, str | None]]
    fields = [("m", "f", b"", None), ("n", "f", b"", None), ("m", "g", b"", None), ("m", "f", b"s", None)]
    fields += [("m", "f", b"", "a"), ("m", "f", b"", ""), ("mf", "", b"", None), ("m", "", b"f", None)]
    assert len({root_key(*each) for each in fields}) == len(fields)
    root = root_key("m", "f")
    assert page_key(root, [1, 2]) != page_key(root, [2, 1])
    assert page_key(page_key(root, [1]), [2]) != page_key(page_key(root, [2]), [1])


def test_a_prefix_is_found_as_far_as_it_is_known() -> None:
    blocks = BlockManager(PAGES, page_size=SIZE)
    ids = tuple(range(16))
    pages = blocks.allocate(4)
    assert pages is not None
    for page, key in zip(pages, keys_of(ids), strict=True):
        blocks.publish(page, key)
    assert blocks.match_prefix(keys_of(ids)) == pages
    assert blocks.match_prefix(keys_of((*ids[:8], 99, *ids[9:]))) == pages[:2]
    assert blocks.match_prefix(keys_of(ids, b"other")) == []
    blocks.release(pages)
    assert blocks.free == PAGES
    assert blocks.match_prefix(keys_of(ids)) == pages


def test_the_least_recently_used_goes_first_and_a_prefix_from_its_end() -> None:
    blocks = BlockManager(4, page_size=SIZE)
    old, new = tuple(range(8)), tuple(range(100, 108))
    for ids in (old, new):
        pages = blocks.allocate(2)
        assert pages is not None
        for page, key in zip(pages, keys_of(ids), strict=True):
            blocks.publish(page, key)
        blocks.release(pages)
    assert blocks.allocate(1) is not None
    assert len(blocks.match_prefix(keys_of(old))) == 1
    assert len(blocks.match_prefix(keys_of(new))) == 2
    assert blocks.allocate(1) is not None
    assert blocks.match_prefix(keys_of(old)) == []
    assert blocks.allocate(3) is None
    assert blocks.free == 2


def test_without_a_prefix_cache_nothing_is_known() -> None:
    blocks = BlockManager(2, page_size=SIZE, prefix_cache=False)
    pages = blocks.allocate(1)
    assert pages is not None
    blocks.publish(pages[0], b"k")
    assert blocks.match_prefix([b"k"]) == []


@pytest.mark.parametrize("tokens", [0, 1, 4, 5, 48])
def test_grow_takes_whole_pages(tokens: int) -> None:
    blocks, pages = BlockManager(PAGES, page_size=SIZE), list[int]()
    assert blocks.grow(pages, tokens)
    assert len(pages) == blocks.pages_for(tokens) == -(-tokens // SIZE)
    assert not blocks.grow(pages, 49)
    assert len(pages) == -(-tokens // SIZE)


class Blocks(RuleBasedStateMachine):
    """Sequences come, grow, are filled and go. `content` remembers what was last written to each page, and for whom."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[tuple[bytes, tuple[int, ...], list[int]]] = []
        self.content: dict[int, tuple[bytes, tuple[int, ...]]] = {}

    @initialize(prefix_cache=st.booleans())
    def start(self, prefix_cache: bool) -> None:
        self.blocks = BlockManager(PAGES, page_size=SIZE, prefix_cache=prefix_cache)

    @rule(salt=st.sampled_from(SALTS), ids=st.lists(st.integers(0, 1), min_size=1, max_size=20).map(tuple))
    def arrive(self, salt: bytes, ids: tuple[int, ...]) -> None:
        keys = keys_of(ids, salt)
        matched = self.blocks.match_prefix(keys[: (len(ids) - 1) // SIZE])
        for place, page in enumerate(matched):
            assert self.content[page] == (salt, ids[: (place + 1) * SIZE]), "a page of other content or another salt"
        self.blocks.acquire(matched)
        pages = list(matched)
        if not self.blocks.grow(pages, len(ids)):
            self.blocks.release(pages)
            return
        for place in range(len(matched), len(pages)):
            self.content[pages[place]] = (salt, ids[: (place + 1) * SIZE])
        for page, key in zip(pages, keys, strict=False):
            self.blocks.publish(page, key)
        self.tables.append((salt, ids, pages))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        _, _, pages = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.blocks.release(pages)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        _, _, pages = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.blocks.forget(pages)
        self.blocks.release(pages)

    @rule()
    def clear(self) -> None:
        self.blocks.clear()
        assert self.blocks.cached == 0

    @invariant()
    def nothing_is_lost_or_shared_by_mistake(self) -> None:
        self.blocks.check_integrity([pages for _, _, pages in self.tables])


TestBlocks = Blocks.TestCase
