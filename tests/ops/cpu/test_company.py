"""Rule 6, to the bit: a token's numbers depend on nothing but its own sequence, in the very mode that is measured."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from leadline.engine.disk import DiskCache
from leadline.engine.engine import Engine, EngineConfig
from leadline.engine.scheduler import SchedulerConfig
from leadline.engine.types import EngineOutput
from leadline.model.cpu import CpuModel
from tests.engine.models import generate, logprobs, prompt, request, tokens
from tests.engine.vocabulary import ByteTokenizer
from tests.ops.cpu.models import CONFIGS, exact_pair, new_cache, quantised_pair, run, tokens_of

MODES = ["exact", "int8", "int4"]
LENGTH = 300  # three segments of attention's softmax, the last one not full
PAGES = [4, 0, 9, 2, 7]


@functools.cache
def bound(name: str, mode: str) -> CpuModel:
    config = CONFIGS[name]
    return exact_pair(config)[0] if mode == "exact" else quantised_pair(config, mode)[0]  # type: ignore[arg-type]


@functools.cache
def alone(name: str, mode: str, kind: str = "float32") -> Tensor:
    """Every token's logits, the sequence whole and by itself."""
    config = CONFIGS[name]
    return run(bound(name, mode), new_cache(config, kind=kind), tokens_of(config, LENGTH), [0], [LENGTH], [PAGES])


each_mode = pytest.mark.parametrize("mode", MODES)
each_model = pytest.mark.parametrize("name", CONFIGS)


@each_mode
@each_model
def test_cut_at_any_place_the_numbers_are_the_same(name: str, mode: str) -> None:
    config, model = CONFIGS[name], bound(name, mode)
    ids = tokens_of(config, LENGTH)
    for cut in (1, 7, 63, 64, 65, 127, 128, 129, 192, 255, 256, 257, LENGTH - 1):
        cache = new_cache(config)
        parts = [
            run(model, cache, ids[:cut], [0], [cut], [PAGES]),
            run(model, cache, ids[cut:], [cut], [LENGTH - cut], [PAGES]),
        ]
        assert torch.equal(torch.cat(parts), alone(name, mode)), cut


@each_mode
def test_cut_at_every_place_the_last_numbers_are_the_same(mode: str) -> None:
    """Two pages, and the second segment of the softmax just begun."""
    config, model, length = CONFIGS["lite"], bound("lite", mode), 131
    ids = tokens_of(config, LENGTH)[:length]
    for cut in range(1, length):
        cache = new_cache(config)
        run(model, cache, ids[:cut], [0], [cut], [PAGES])
        rest = run(model, cache, ids[cut:], [cut], [length - cut], [PAGES])
        assert torch.equal(rest, alone("lite", mode)[cut:length]), cut


@each_mode
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "6bit"])
def test_token_by_token_the_numbers_are_the_same(mode: str, kind: str) -> None:
    config, model, cache = CONFIGS["lite"], bound("lite", mode), new_cache(CONFIGS["lite"], kind=kind)
    ids = tokens_of(config, LENGTH)
    expected = alone("lite", mode, kind)
    for place in range(LENGTH):
        assert torch.equal(run(model, cache, ids[place : place + 1], [place], [1], [PAGES])[0], expected[place]), place


@each_mode
@each_model
def test_beside_fifteen_others_the_numbers_are_the_same(name: str, mode: str) -> None:
    """Its prompt and its last token, between decoding and beginning sequences."""
    config, model = CONFIGS[name], bound(name, mode)
    ids = tokens_of(config, LENGTH)
    others = [tokens_of(config, 1 + 3 * (i % 5), seed=i) for i in range(1, 16)]
    tables = [[20 + i] for i in range(15)]
    cache = new_cache(config, pages=40)
    lengths = [len(each) for each in others]
    for start, end in ((0, LENGTH - 1), (LENGTH - 1, LENGTH)):
        batch = torch.cat([*others[:7], ids[start:end], *others[7:]])
        computed = [0] * 7 + [start] + [0] * 8
        found = run(
            model, cache, batch, computed, [*lengths[:7], end - start, *lengths[7:]], [*tables[:7], PAGES, *tables[7:]]
        )
        first = sum(lengths[:7])
        assert torch.equal(found[first : first + end - start], alone(name, mode)[start:end])


# ---- through the engine ------------------------------------------------------------------------------------------


def engine_of(name: str, mode: str, **options: int | bool | str) -> Engine:
    batched = int(options.pop("batched", 64))
    config = EngineConfig(**{"name": name, "cache_tokens": 64 * 20, **options}, scheduler=SchedulerConfig(16, batched))  # type: ignore[arg-type]
    return Engine(bound(name, mode), ByteTokenizer(), config)


def stored(engine: Engine, folder: Path) -> tuple[Engine, DiskCache]:
    """The engine, keeping its pages in `folder` from now on."""
    disk = engine.keep_pages(folder / "pages", limit=1 << 30, ttl=1000.0)
    disk.store.reserve = 0
    return engine, disk


def said(outputs: Iterable[EngineOutput]) -> tuple[list[int], list[float]]:
    outputs = list(outputs)
    return tokens(outputs), logprobs(outputs)


@functools.cache
def answer(name: str, mode: str, length: int, seed: int) -> tuple[list[int], list[float]]:
    engine = engine_of(name, mode, batched=1024)
    return said(generate(engine, request("a", prompt(length, seed), logprobs=0, max_tokens=30))["a", 0])


@each_mode
@each_model
def test_preempted_and_among_others_the_answers_are_the_same(name: str, mode: str) -> None:
    lengths = [20 + 11 * i for i in range(16)]
    engine = engine_of(name, mode, cache_tokens=64 * 12, prefix_cache=False)
    requests = [request(f"r{i}", prompt(n, i), logprobs=0, max_tokens=30) for i, n in enumerate(lengths)]
    together = generate(engine, *requests)
    assert engine.scheduler.preemptions > 0
    for i, length in enumerate(lengths):
        assert said(together[f"r{i}", 0]) == answer(name, mode, length, i)


@each_mode
@each_model
def test_from_a_warm_prefix_cache_the_answers_are_the_same(name: str, mode: str) -> None:
    engine = engine_of(name, mode)
    for length in (200, 65, 128, 129, 200):
        ids = prompt(200, 0)[:length]
        warm = said(generate(engine, request("w", ids, logprobs=0, max_tokens=30))["w", 0])
        fresh = engine_of(name, mode, batched=1024, prefix_cache=False)
        assert warm == said(generate(fresh, request("c", ids, logprobs=0, max_tokens=30))["c", 0])
    assert engine.stats().pages_cached > 0


@each_mode
@each_model
def test_from_the_disk_after_a_restart_the_answers_are_the_same(name: str, mode: str, tmp_path: Path) -> None:
    first, disk = stored(engine_of(name, mode, weights=mode), tmp_path)
    ask = functools.partial(request, "d", prompt(200, 0), logprobs=0, max_tokens=30)
    computed = said(generate(first, ask())["d", 0])
    disk.flush()
    restarted, _ = stored(engine_of(name, mode, weights=mode), tmp_path)
    assert said(generate(restarted, ask())["d", 0]) == computed == answer(name, mode, 200, 0)
    assert restarted.stats().cached_tokens == 192
