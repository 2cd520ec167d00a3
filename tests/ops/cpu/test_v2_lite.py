"""Rule 6 at V2-Lite's own widths, in the mode of the speed tables: int4, a bf16 cache, ids and log-probabilities.

One dense layer and one of 64 experts with random weights; only the vocabulary is smaller.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from leadline.checkpoint.synthetic import random_regions
from leadline.engine.bind import from_regions
from leadline.engine.engine import Engine, EngineConfig
from leadline.engine.scheduler import SchedulerConfig
from leadline.model.config import V2_LITE
from leadline.model.cpu import CpuModel
from tests.engine.models import generate, prompt, request
from tests.engine.vocabulary import ByteTokenizer
from tests.ops.cpu.test_company import said, stored

CONFIG = dataclasses.replace(V2_LITE, num_hidden_layers=2, vocab_size=2048)
LENGTH, ANSWER = 260, 12  # three segments of attention's softmax

Said = tuple[list[int], list[float]]


@functools.cache
def model() -> CpuModel:
    weights = random_regions(CONFIG, "int4", std=0.05)
    return CpuModel(CONFIG, from_regions(weights), dtype=torch.bfloat16)


def engine(*, batched: int = 1024, **options: Any) -> Engine:
    config = EngineConfig("wide", scheduler=SchedulerConfig(16, batched), **{"cache_tokens": 64 * 80, **options})
    return Engine(model(), ByteTokenizer(), config)


def ask(engine: Engine, length: int = LENGTH, seed: int = 0) -> Said:
    return said(generate(engine, request("a", prompt(length, seed), logprobs=0, max_tokens=ANSWER))["a", 0])


@functools.cache
def alone(length: int = LENGTH, seed: int = 0) -> Said:
    return ask(engine(prefix_cache=False), length, seed)


@pytest.mark.parametrize("batched", [16, 17, 33, 64, 129])
def test_chunked(batched: int) -> None:
    assert ask(engine(batched=batched, prefix_cache=False)) == alone()


def test_beside_fifteen_others_and_preempted() -> None:
    lengths = [LENGTH, *(10 + 11 * i for i in range(15))]
    crowded = engine(batched=200, cache_tokens=64 * 14, prefix_cache=False)
    requests = [request(f"r{i}", prompt(n, i), logprobs=0, max_tokens=ANSWER) for i, n in enumerate(lengths)]
    together = generate(crowded, *requests)
    assert crowded.scheduler.preemptions > 0
    for i in (0, 1, 7, 15):
        assert said(together[f"r{i}", 0]) == alone(lengths[i], i)


def test_from_the_prefix_cache_and_from_the_disk(tmp_path: Path) -> None:
    first, disk = stored(engine(weights="wide"), tmp_path)
    assert ask(first) == ask(first) == alone()
    assert first.stats().cached_tokens == 256
    disk.flush()
    restarted, _ = stored(engine(weights="wide"), tmp_path)
    assert ask(restarted) == alone()
    assert restarted.stats().cached_tokens == 256, "read, not computed"
