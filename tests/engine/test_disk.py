"""The prefix cache on the disk: what is resent after a restart is read, not computed, and the answer is the same."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leadline.engine.blocks import extend_keys, root_key
from leadline.engine.disk import DiskCache
from leadline.engine.engine import Engine
from leadline.engine.load import load_engine
from leadline.engine.store import PageStore
from leadline.errors import ConfigError
from leadline.model.transformer import DeepseekV2
from tests.engine.models import drain, generate, logprobs, make_engine, prompt, request, tokens

PAGE = 64
LIMIT, TTL = 1 << 30, 1000.0
MODELS = ("lite", "v2")
FORMATS = ("auto", "bf16", "int8", "6bit")


def stored(tmp_path: Path, name: str = "lite", **options: Any) -> Engine:
    engine = make_engine(name, weights="w", **options)
    engine.keep_pages(tmp_path / "pages", limit=LIMIT, ttl=TTL).store.reserve = 0
    return engine


def flush(engine: Engine) -> DiskCache:
    assert engine.disk is not None
    engine.disk.flush()
    return engine.disk


def files(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "pages").rglob("??/*") if path.is_file())


@pytest.mark.parametrize("name", MODELS)
def test_after_a_restart_a_resent_prompt_is_read(name: str, tmp_path: Path) -> None:
    """The rows come back to the bit, and so with them the log-probabilities that are computed over them."""
    ids = prompt(300)
    cold = make_engine(name)
    first = generate(cold, request("a", ids, logprobs=3))["a", 0]
    flush(engine := stored(tmp_path, name))
    written = generate(engine, request("a", ids, logprobs=3))["a", 0]
    disk = flush(engine)
    assert len(files(tmp_path)) == 300 // PAGE
    again = stored(tmp_path, name)
    steps = again.stats().steps
    read = generate(again, request("b", ids, logprobs=3))["b", 0]
    assert read[-1].usage.cached_tokens == 256
    assert again.stats().cached_tokens == 256
    assert again.stats().steps - steps == len(read), "one pass for 44 tokens, then one a token"
    assert tokens(read) == tokens(written) == tokens(first)
    assert logprobs(read) == pytest.approx(logprobs(first), abs=1e-4)
    pages, keys = again.blocks.match_prefix(keys_of(again, ids)), keys_of(engine, ids)
    assert len(pages) == 4
    for key, page in zip(keys, pages, strict=True):
        assert disk.store.get(key) == again.cache.read_page(page)


def keys_of(engine: Engine, ids: tuple[int, ...]) -> list[bytes]:
    keys: list[bytes] = []
    extend_keys(keys, root_key(engine.scheduler.model, engine.layout), ids, len(ids) // PAGE)
    return keys


@pytest.mark.parametrize("cache_dtype", FORMATS)
def test_the_cache_in_memory_and_on_the_disk_agree_to_the_bit(cache_dtype: str, tmp_path: Path) -> None:
    """The same passes over the same rows: warm from memory, warm from the disk."""
    ids = prompt(200)
    warm = stored(tmp_path, cache_dtype=cache_dtype)
    generate(warm, request("a", ids))
    from_memory = generate(warm, request("b", ids, logprobs=5))["b", 0]
    flush(warm)
    again = stored(tmp_path, cache_dtype=cache_dtype)
    from_disk = generate(again, request("b", ids, logprobs=5))["b", 0]
    assert logprobs(from_disk) == logprobs(from_memory)
    assert tokens(from_disk) == tokens(from_memory)


def test_a_page_that_memory_lost_is_read(tmp_path: Path) -> None:
    engine = stored(tmp_path, cache_tokens=PAGE * 6)
    ids = prompt(300)
    expected = tokens(generate(engine, request("a", ids))["a", 0])
    generate(engine, request("other", prompt(350, seed=1), max_tokens=1))
    flush(engine)
    answer = generate(engine, request("b", ids))["b", 0]
    assert answer[-1].usage.cached_tokens == 256
    assert tokens(answer) == expected


def test_an_answers_pages_are_kept_for_the_next_turn(tmp_path: Path) -> None:
    engine = stored(tmp_path)
    ids = prompt(100)
    answer = tokens(generate(engine, request("a", ids, max_tokens=60))["a", 0])
    flush(engine)
    turn = generate(stored(tmp_path), request("b", (*ids, *answer, *prompt(10, seed=3))))["b", 0]
    assert turn[-1].usage.cached_tokens == 128


def test_accounts_models_and_formats_do_not_meet(tmp_path: Path) -> None:
    ids = prompt(200)
    engine = stored(tmp_path)
    generate(engine, request("a", ids, salt=b"alice"))
    flush(engine)
    for other, salt in (
        (stored(tmp_path), b"bob"),
        (stored(tmp_path), b""),
        (stored(tmp_path, cache_dtype="bfloat16"), b"alice"),
    ):
        assert generate(other, request("b", ids, salt=salt))["b", 0][-1].usage.cached_tokens == 0
    other_weights = make_engine(weights="other")
    other_weights.keep_pages(tmp_path / "pages", limit=LIMIT, ttl=TTL)
    assert generate(other_weights, request("b", ids, salt=b"alice"))["b", 0][-1].usage.cached_tokens == 0
    assert generate(stored(tmp_path), request("b", ids, salt=b"alice"))["b", 0][-1].usage.cached_tokens == 192


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:90] + b"\xff" + path.read_bytes()[91:]),
        lambda path: path.unlink(),
    ],
)
def test_a_damaged_page_is_computed_again(damage: Callable[[Path], object], tmp_path: Path) -> None:
    ids = prompt(300)
    engine = stored(tmp_path)
    expected = tokens(generate(engine, request("a", ids))["a", 0])
    disk = flush(engine)
    third = disk.store.folder / keys_of(engine, ids)[2].hex()[:2] / keys_of(engine, ids)[2].hex()
    damage(third)
    again = stored(tmp_path)
    answer = generate(again, request("b", ids))["b", 0]
    assert answer[-1].usage.cached_tokens == 2 * PAGE
    assert tokens(answer) == expected
    flush(again)
    assert generate(stored(tmp_path), request("c", ids))["c", 0][-1].usage.cached_tokens == 4 * PAGE


def test_a_page_of_another_size_is_a_miss(tmp_path: Path) -> None:
    engine = stored(tmp_path)
    disk = flush(engine)
    disk.store.put(b"k" * 32, b"too short")
    before = engine.cache.read_page(0)
    assert not disk.load(b"k" * 32, 0)
    assert engine.cache.read_page(0) == before


def test_what_a_failed_request_computed_is_removed(tmp_path: Path) -> None:
    engine = stored(tmp_path, max_num_batched_tokens=64)
    engine.add(request("a", prompt(300)))
    for _ in range(3):
        engine.step()
    flush(engine)
    assert len(files(tmp_path)) == 3
    model = engine.model_runner.model
    assert isinstance(model, DeepseekV2)
    model.lm_head.weight.data.fill_(float("nan"))
    try:
        outputs = drain(engine)
    finally:
        from tests.engine.models import tiny_model

        tiny_model.cache_clear()
    assert outputs[-1].finish_reason == "error"
    flush(engine)
    assert files(tmp_path) == []


def test_new_weights_leave_the_disk_alone(tmp_path: Path) -> None:
    engine = stored(tmp_path)
    generate(engine, request("a", prompt(200)))
    flush(engine)
    engine.reset_prefix_cache()
    assert engine.disk is None
    assert generate(engine, request("b", prompt(200)))["b", 0][-1].usage.cached_tokens == 0
    with pytest.raises(ConfigError, match="fingerprint"):
        make_engine().keep_pages(tmp_path / "pages", limit=LIMIT, ttl=TTL)


def test_a_disk_that_fails_costs_no_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "pages").write_text("a file where the folder should be")
    engine = stored(tmp_path)
    assert len(tokens(generate(engine, request("a", prompt(200)))["a", 0])) == 8
    flush(engine)
    assert [record.message for record in caplog.records if "is off" in record.message]


def test_closing_writes_what_waits(tmp_path: Path) -> None:
    class SlowStore(PageStore):
        gate = threading.Event()

        def put(self, key: bytes, payload: bytes | memoryview) -> bool:
            self.gate.wait(10)
            return super().put(key, payload)

    engine = stored(tmp_path)
    store = SlowStore(tmp_path / "pages", "slow", reserve=0)
    disk = DiskCache(store, engine.cache)
    for number in range(5):
        disk.save(bytes([number]) * 32, number)
    SlowStore.gate.set()
    disk.close()
    assert all(store.get(bytes([number]) * 32) is not None for number in range(5))
    disk.save(b"x" * 32, 0)
    assert store.get(b"x" * 32) is None


def test_load_engine_knows_the_folder_by_its_weights(tiny_lite_folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "device": "cpu",
        "disk_cache_folder": tmp_path / "pages",
        "disk_cache": True,
        "max_model_len": 512,
    }
    ids = tuple(range(2, 202))
    for number, cached in enumerate((0, 192)):
        loaded = load_engine(tiny_lite_folder, name=f"name {number}", **options)
        assert flush(loaded.engine).store.limit == 4 << 30
        loaded.engine.disk.store.reserve = 0  # type: ignore[union-attr]
        assert generate(loaded.engine, request("a", ids))["a", 0][-1].usage.cached_tokens == cached
        flush(loaded.engine)
    assert load_engine(tiny_lite_folder, **{**options, "disk_cache": False}).engine.disk is None
    with pytest.raises(ConfigError, match="disk_cache_days"):
        load_engine(tiny_lite_folder, **options, disk_cache_days=0)
    with pytest.raises(ConfigError, match="not a size"):
        load_engine(tiny_lite_folder, **options, disk_cache_size="huge")


PROGRAM = """
import json, sys, time
from pathlib import Path
from typing import Any
from tests.engine.models import make_engine, request, prompt, generate, tokens
engine = make_engine(weights="w", cache_tokens=64 * 40, max_num_batched_tokens=64)
engine.keep_pages(Path(sys.argv[1]), limit=1 << 30, ttl=1000.0).store.reserve = 0
started = time.perf_counter()
answer = generate(engine, request("a", prompt(1024)))["a", 0]
took = time.perf_counter() - started
print(json.dumps([answer[-1].usage.cached_tokens, tokens(answer), took]), flush=True)
if len(sys.argv) > 2:
    engine.add(request("long", prompt(1500, seed=9), max_tokens=1000))
    while True:
        engine.step()
"""


@pytest.mark.slow
def test_kill_9_loses_nothing_that_was_written(tmp_path: Path) -> None:
    """Killed while it writes, again and again: every later process gives the same answer from what the disk has."""
    root = str(tmp_path / "pages")
    expected = run_program(root)
    for _ in range(4):
        with subprocess.Popen([sys.executable, "-c", PROGRAM, root, "go on"], stdout=subprocess.PIPE) as killed:
            assert killed.stdout is not None
            assert json.loads(killed.stdout.readline())[1] == expected[1]
            killed.send_signal(signal.SIGKILL)
        cached, answer, _ = run_program(root)
        assert answer == expected[1]
        assert cached == 1024 - PAGE


def run_program(root: str) -> tuple[int, list[int], float]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, root], stdout=subprocess.PIPE, check=True)
    cached, answer, took = json.loads(done.stdout)
    return cached, answer, took
