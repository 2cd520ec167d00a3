"""The store on the disk: what was put comes back as it was or not at all, within size and age, for its owner only."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from leadline.engine.store import PageStore, default_root, namespace_of
from leadline.errors import ConfigError, NotFound, ResourceError

HEADER = 80


def key(number: int) -> bytes:
    return number.to_bytes(32, "little")


def payload(number: int, size: int = 100) -> bytes:
    return bytes((number + place) % 256 for place in range(size))


def read(store: PageStore, number: int) -> bytes | None:
    found = store.get(key(number))
    return None if found is None else bytes(found)


def page_file(store: PageStore, number: int) -> Path:
    return next(store.root.rglob(key(number).hex()))


def use(store: PageStore, number: int, seconds_ago: float) -> None:
    moment = time.time() - seconds_ago
    os.utime(page_file(store, number), (moment, moment))


@pytest.fixture
def store(tmp_path: Path) -> PageStore:
    return PageStore(tmp_path / "pages", about={"model": "m", "format": "f"}, reserve=0)


def test_what_was_put_comes_back_in_another_process_too(store: PageStore) -> None:
    assert store.get(key(1)) is None
    assert store.put(key(1), payload(1))
    assert not store.put(key(1), payload(1)), "it was there already"
    assert read(store, 1) == payload(1)
    again = PageStore(store.root, reserve=0)
    assert read(again, 1) == payload(1)
    assert again.get(key(2)) is None
    assert PageStore(store.root, "other", reserve=0).get(key(1)) is None
    again.remove(key(1))
    assert store.get(key(1)) is None


def test_only_the_owner_can_look(store: PageStore) -> None:
    old = os.umask(0)
    try:
        store.put(key(1), payload(1))
        store.pin("p", [key(1)], model="m", tokens=64)
    finally:
        os.umask(old)
    for path in [store.root, *store.root.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


@hypothesis.given(data=st.data())
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_a_miss_and_goes(data: st.DataObject, store: PageStore) -> None:
    """Any byte changed, cut off or added, header and content alike."""
    store.put(key(3), payload(3))
    path = page_file(store, 3)
    raw = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    match data.draw(st.sampled_from(["flip", "cut", "add"])):
        case "flip":
            raw[place] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            del raw[place:]
        case _:
            raw += b"\0" * (place + 1)
    path.write_bytes(raw)
    assert store.get(key(3)) is None
    assert not path.exists()


def test_anothers_page_under_this_name_is_a_miss(store: PageStore) -> None:
    store.put(key(1), payload(1))
    store.put(key(2), payload(2))
    page_file(store, 2).write_bytes(page_file(store, 1).read_bytes())
    assert store.get(key(2)) is None


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    store = PageStore(tmp_path / "pages", limit=10 * (HEADER + 100), reserve=0)
    for number in range(10):
        store.put(key(number), payload(number))
        use(store, number, 100 - number)
    assert store.get(key(0)) is not None
    store.put(key(10), payload(10))
    kept = [number for number in range(11) if store.get(key(number)) is not None]
    assert kept == [0, 3, 4, 5, 6, 7, 8, 9, 10]


def test_what_nobody_used_for_long_goes(tmp_path: Path) -> None:
    store = PageStore(tmp_path / "pages", ttl=50.0, reserve=0)
    for number in range(3):
        store.put(key(number), payload(number))
    use(store, 0, 60)
    use(store, 1, 60)
    use(store, 2, 40)
    assert store.get(key(0)) is None
    assert read(store, 2) == payload(2)
    use(store, 2, 40)
    store.trim()
    assert [each.pages for each in store.holdings()] == [1]


def test_a_pinned_context_stays(tmp_path: Path) -> None:
    store = PageStore(tmp_path / "pages", limit=10 * (HEADER + 100), ttl=50.0, reserve=0)
    for number in range(3):
        store.put(key(number), payload(number))
    store.pin("course", [key(0), key(1)], model="m", tokens=128)
    for number in range(3):
        use(store, number, 1000)
    store.trim()
    assert [store.get(key(number)) is not None for number in range(3)] == [True, True, False]
    for number in range(20, 40):
        store.put(key(number), payload(number))
    assert store.get(key(0)) is not None
    assert [(pin.name, pin.model, pin.tokens) for pin in store.pins()] == [("course", "m", 128)]
    with pytest.raises(ConfigError, match="pinned already"):
        store.pin("course", [key(0)], model="m", tokens=64)
    store.unpin("course")
    use(store, 0, 1000)
    assert store.get(key(0)) is None
    with pytest.raises(NotFound, match="course"):
        store.unpin("course")


def test_what_cannot_be_pinned(tmp_path: Path) -> None:
    store = PageStore(tmp_path / "pages", limit=10 * (HEADER + 100), reserve=0)
    for number in range(10):
        store.put(key(number), payload(number))
    with pytest.raises(ResourceError, match="1 of 1 pages"):
        store.pin("lost", [key(77)], model="m", tokens=64)
    with pytest.raises(ResourceError, match="pinned pages would take"):
        store.pin("all", [key(number) for number in range(10)], model="m", tokens=640)
    for name in ("", "../x", "a/b", "x" * 65, ".hidden"):
        with pytest.raises(ConfigError, match="no name"):
            store.pin(name, [key(1)], model="m", tokens=64)


def test_a_damaged_pin_is_none(store: PageStore) -> None:
    store.put(key(1), payload(1))
    store.pin("good", [key(1)], model="m", tokens=64)
    for name, text in (("bad", "{"), ("worse", "[]"), ("half", '{"name": "half"}')):
        (store.root / "pins" / f"{name}.json").write_text(text)
    assert [pin.name for pin in store.pins()] == ["good"]


def test_a_disk_that_is_nearly_full_is_left_alone(tmp_path: Path) -> None:
    store = PageStore(tmp_path / "pages", reserve=1 << 62)
    assert not store.put(key(1), payload(1))
    assert not store.root.exists()


def test_a_killed_writers_half_file_is_swept_up(store: PageStore) -> None:
    store.put(key(1), payload(1))
    young, old = (page_file(store, 1).with_name(f".half.{number}") for number in (1, 2))
    for path in (young, old):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    store.trim()
    assert (young.exists(), old.exists()) == (True, False)
    assert store.holdings()[0].pages == 1


def test_clear_takes_everything(store: PageStore) -> None:
    store.put(key(1), payload(1))
    PageStore(store.root, "other", reserve=0).put(key(2), payload(2))
    store.pin("p", [key(1)], model="m", tokens=64)
    assert [(each.model, each.pages) for each in store.holdings()] == [("m", 1), ("?", 1)] or len(store.holdings()) == 2
    assert store.clear() == (2, 2 * (HEADER + 100))
    assert (store.holdings(), store.pins(), store.clear()) == ([], [], (0, 0))
    assert store.put(key(1), payload(1))


def test_the_folder_is_the_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "leadline" / "pages"


def test_namespaces_are_told_apart() -> None:
    assert len({namespace_of("ab", "c"), namespace_of("a", "bc"), namespace_of("abc"), namespace_of("abc", "")}) == 4


class Store(RuleBasedStateMachine):
    """Two processes share a folder. A page that is there is what was put; together they stay within the limit."""

    LIMIT = 12 * (HEADER + 100)

    @initialize()
    def start(self) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        root = Path(self.folder.name) / "pages"
        self.stores = [PageStore(root, limit=self.LIMIT, reserve=0) for _ in range(2)]
        self.removed: set[int] = set(range(40))

    @rule(who=st.integers(0, 1), number=st.integers(0, 39))
    def put(self, who: int, number: int) -> None:
        self.stores[who].put(key(number), payload(number))
        self.removed.discard(number)

    @rule(who=st.integers(0, 1), number=st.integers(0, 39))
    def get(self, who: int, number: int) -> None:
        found = read(self.stores[who], number)
        assert found is None or found == payload(number)
        assert found is None or number not in self.removed

    @rule(who=st.integers(0, 1), number=st.integers(0, 39))
    def remove(self, who: int, number: int) -> None:
        self.stores[who].remove(key(number))
        self.removed.add(number)

    @rule(who=st.integers(0, 1))
    def trim(self, who: int) -> None:
        self.stores[who].trim()
        assert sum(each.bytes for each in self.stores[who].holdings()) <= self.LIMIT

    @invariant()
    def never_far_beyond_the_limit(self) -> None:
        """Each process knows of the other's pages since it last looked: at most twice the limit lies there."""
        assert sum(each.bytes for each in self.stores[0].holdings()) <= 2 * self.LIMIT

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()


TestStore = Store.TestCase
TestStore.settings = hypothesis.settings(max_examples=20, stateful_step_count=30, deadline=None)
