"""The paged cache: what is stored where, and that one sequence's NaN never reaches another."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from leadline.errors import ConfigError
from leadline.model.batch import ForwardBatch
from leadline.model.cache import PagedCache, latent_format
from leadline.model.config import V2, V2_LITE, ModelConfig
from leadline.ops.cpu.memory import HUGE
from tests.fixtures import TINY_LITE, TINY_V2
from tests.model.dense import TINY_GQA
from tests.model.oracle import build, relative_error, sample_tokens


@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.bfloat16, 2), (torch.float16, 2), (torch.float32, 4), (torch.float64, 8)]
)
def test_bytes_are_the_allocations(dtype: torch.dtype, size: int) -> None:
    for config, elements in ((V2, 34_560), (V2_LITE, 15_552), (TINY_GQA, 2 * 2 * 2 * 16)):
        cache = PagedCache(config, 2, dtype=dtype)
        assert cache.bytes_per_token == elements * size
        assert cache.bytes == 2 * 64 * elements * size


@pytest.mark.parametrize("name", [None, "int8"])
def test_the_machine_gives_what_is_written_to(name: str | None) -> None:
    """A gigabyte of cache of which one token is used, in a process whose peak nothing else has raised."""
    code = f"""
import resource, sys, torch
from leadline.model.cache import PagedCache, latent_format
from leadline.model.config import V2_LITE
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
form = None if {name!r} is None else latent_format(V2_LITE, {name!r})
before = peak()
cache = PagedCache(V2_LITE, (1 << 30) // (64 * 15_768), format=form)
assert cache.bytes > 0.9e9
for layer in range(V2_LITE.num_hidden_layers):
    cache.write(layer, torch.tensor([0]), torch.ones(1, 512), torch.ones(1, 64))
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 300e6


@pytest.mark.parametrize(
    ("config", "name", "wanted"),
    [(V2, "int8", 584 * 60), (V2, "6bit", 468 * 60), (V2_LITE, "int8", 15_768), (V2_LITE, "6bit", 12_636)],
)
def test_packed_bytes_are_the_allocations(config: ModelConfig, name: str, wanted: int) -> None:
    cache = PagedCache(config, 2, format=latent_format(config, name))
    assert cache.bytes_per_token == wanted == config.cache_bytes_per_token(name)
    assert cache.bytes == 2 * 64 * wanted
    assert 0 <= cache.storage.untyped_storage().nbytes() - cache.bytes <= HUGE  # to begin on a boundary
    bits = wanted / config.num_hidden_layers / 576 * 8
    assert bits <= (6.5 if name == "6bit" else 8.2)


@pytest.mark.parametrize("config", [TINY_LITE, TINY_V2])
@pytest.mark.parametrize("name", ["int8", "6bit"])
def test_tiny_models_are_packed_as_the_formula_says(config: ModelConfig, name: str) -> None:
    cache = PagedCache(config, 1, format=latent_format(config, name))
    assert cache.bytes_per_token == config.cache_bytes_per_token(name)


def test_keys_and_values_of_heads_are_not_packed() -> None:
    with pytest.raises(ConfigError, match="holds latents"):
        latent_format(TINY_GQA, "int8")
    with pytest.raises(ConfigError, match="holds latents"):
        TINY_GQA.cache_bytes_per_token("6bit")


@pytest.mark.parametrize(("name", "limit"), [("int8", 0.1), ("6bit", 0.4)])
def test_packed_latents_change_the_logits_little(name: str, limit: float) -> None:
    """Little by the measure of a random model, where a choice of experts flips on less than a rounding to bf16."""
    model, tokens = build(TINY_LITE), sample_tokens(TINY_LITE, 90)
    logits = []
    for format in (None, latent_format(TINY_LITE, name)):
        cache = PagedCache(TINY_LITE, 2, dtype=torch.float32, format=format)
        with torch.no_grad():
            logits.append(model(tokens, ForwardBatch.paged(cache, [0], [90], [[1, 0]])).logits)
    assert 0 < relative_error(logits[1], logits[0]) < limit


@pytest.mark.parametrize("name", [None, "int8", "6bit"])
def test_a_page_comes_back_as_it_was(name: str | None) -> None:
    format = latent_format(TINY_LITE, name) if name else None
    cache = PagedCache(TINY_LITE, 3, dtype=torch.float32, format=format, page_size=4)
    for layer in range(TINY_LITE.num_hidden_layers):
        cache.write(layer, torch.arange(12), torch.randn(12, 24))
    before, page = cache.storage.clone(), cache.read_page(1)
    assert len(page) == cache.bytes // 3
    cache.clear_page(1)
    assert not torch.equal(cache.storage, before)
    assert cache.write_page(1, page)
    assert torch.equal(cache.storage, before)
    assert not cache.write_page(1, page[:-1])


def test_parts_lie_side_by_side_in_their_slots() -> None:
    cache = PagedCache(TINY_LITE, 2, dtype=torch.float32, page_size=4)
    latent, key = torch.arange(32.0).view(2, 16), torch.arange(100.0, 116.0).view(2, 8)
    cache.write(1, torch.tensor([6, 1]), latent, key)
    assert torch.equal(cache.rows(1)[1, 2], torch.cat((latent[0], key[0])))
    assert torch.equal(cache.rows(1)[0, 1], torch.cat((latent[1], key[1])))
    assert cache.storage.count_nonzero() == 2 * 24 - 1  # one of the numbers is 0
    assert cache.rows(1).data_ptr() == cache.storage[1].data_ptr()


def test_a_freed_page_that_held_nan_does_not_poison_its_next_owner() -> None:
    model, tokens = build(TINY_LITE), sample_tokens(TINY_LITE, 7)
    logits = []
    for broken in (False, True):
        cache = PagedCache(TINY_LITE, 1, dtype=torch.float32)
        if broken:
            nan = torch.full((64, 24), float("nan"))
            for layer in range(TINY_LITE.num_hidden_layers):
                cache.write(layer, torch.arange(64), nan)
        with torch.no_grad():
            logits.append(model(tokens, ForwardBatch.paged(cache, [0], [7], [[0]])).logits)
    assert torch.isfinite(logits[1]).all()
    assert relative_error(logits[1], logits[0]) < 1e-6


def test_a_sequence_whose_states_are_nan_sees_it_in_its_own_logits() -> None:
    """Stored rows are finite, but the token's own state is what it is: a watcher of the logits notices."""
    model = build(TINY_LITE)
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = float("nan")
        cache = PagedCache(TINY_LITE, 2, dtype=torch.float32)
        batch = ForwardBatch.paged(cache, [0, 0], [2, 2], [[0], [1]])
        logits = model(torch.tensor([3, 5, 3, 4]), batch).logits
    assert logits.isnan().all(-1).tolist() == [False, True, False, False]
