"""A token's result does not depend on its company: the house's rule 6 on the plain PyTorch path.

In float64 every way to compute a sequence agrees to rounding; in float32 the greedy ids are the same and logprobs are
within 1e-4.
"""

from __future__ import annotations

import dataclasses
import functools

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from leadline.model.batch import ForwardBatch
from leadline.model.cache import PagedCache
from leadline.model.config import ModelConfig
from leadline.model.transformer import DeepseekV2
from tests.fixtures import TINY_LITE, TINY_V2
from tests.model.dense import TINY_GQA, TINY_MOE_16B
from tests.model.oracle import build, expanded, paged, relative_error, sample_tokens

CONFIGS = {"v2": TINY_V2, "v2-lite": TINY_LITE, "gqa": TINY_GQA, "moe-16b": TINY_MOE_16B}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@each_config
def test_absorbed_is_expanded_in_float64(config: ModelConfig) -> None:
    model, tokens = build(config, torch.float64), sample_tokens(config, 70)
    assert relative_error(paged(model, tokens, [70]), expanded(model, tokens)) < 1e-12


@each_config
def test_chunked_at_every_split_is_one_pass(config: ModelConfig) -> None:
    model, tokens = build(config, torch.float64), sample_tokens(config, 67)
    whole = expanded(model, tokens)
    for split in range(1, 67):
        assert relative_error(paged(model, tokens, [split, 67 - split]), whole) < 1e-12


@each_config
def test_token_by_token_is_one_pass(config: ModelConfig) -> None:
    model, tokens = build(config, torch.float64), sample_tokens(config, 67)
    assert relative_error(paged(model, tokens, [1] * 67), expanded(model, tokens)) < 1e-12


@each_config
def test_float32_has_the_same_greedy_ids_and_logprobs(config: ModelConfig) -> None:
    model, tokens = build(config, std=0.1), sample_tokens(config, 130)
    whole = expanded(model, tokens).log_softmax(-1)
    for chunks in ([130], [1] * 130, [64, 66], [63, 2, 65], [100, 30]):
        logprobs = paged(model, tokens, chunks).log_softmax(-1)
        assert torch.equal(logprobs.argmax(-1), whole.argmax(-1))
        assert (logprobs - whole).abs().max() < 1e-4


@each_config
def test_documents_packed_together_do_not_see_each_other(config: ModelConfig) -> None:
    model = build(config, torch.float64)
    documents = [sample_tokens(config, length, seed) for seed, length in enumerate((5, 1, 30, 12))]
    with torch.no_grad():
        packed = model(torch.cat(documents), ForwardBatch.packed([5, 1, 30, 12])).logits
    alone = torch.cat([expanded(model, document) for document in documents])
    assert relative_error(packed, alone) < 1e-12


@hypothesis.settings(max_examples=20)
@hypothesis.given(data=st.data())
@pytest.mark.parametrize("config", [TINY_V2, TINY_GQA], ids=["v2", "gqa"])
def test_any_schedule_of_sequences_gives_each_its_own_result(config: ModelConfig, data: st.DataObject) -> None:
    """Sequences advance by any number of tokens in any company, their pages anywhere in the cache."""
    model = float64_model(config)
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=4), label="lengths")
    tokens = [sample_tokens(config, length, seed) for seed, length in enumerate(lengths)]
    page_size = data.draw(st.sampled_from([1, 4, 16]), label="page size")
    shuffled = data.draw(st.permutations(range(4 * -(-40 // page_size))), label="pages")
    tables = [shuffled[i * -(-40 // page_size) : (i + 1) * -(-40 // page_size)] for i in range(len(lengths))]
    cache = PagedCache(config, len(shuffled), dtype=torch.float64, page_size=page_size)
    done = [0] * len(lengths)
    logits: list[list[torch.Tensor]] = [[] for _ in lengths]
    while any(count < length for count, length in zip(done, lengths, strict=True)):
        ready = [s for s in range(len(lengths)) if done[s] < lengths[s]]
        chosen = data.draw(st.lists(st.sampled_from(ready), unique=True, min_size=1), label="who")
        counts = [data.draw(st.integers(1, lengths[s] - done[s]), label="tokens") for s in chosen]
        batch = ForwardBatch.paged(cache, [done[s] for s in chosen], counts, [tables[s] for s in chosen])
        step = torch.cat([tokens[s][done[s] : done[s] + n] for s, n in zip(chosen, counts, strict=True)])
        with torch.no_grad():
            parts = model(step, batch).logits.split(counts)
        for s, n, part in zip(chosen, counts, parts, strict=True):
            logits[s].append(part)
            done[s] += n
    for s, parts in enumerate(logits):
        assert relative_error(torch.cat(parts), expanded(model, tokens[s])) < 1e-12


@functools.cache
def float64_model(config: ModelConfig) -> DeepseekV2:
    return build(config, torch.float64)


def test_a_pass_writes_its_own_slots_only() -> None:
    model, tokens = build(TINY_V2), sample_tokens(TINY_V2, 10)
    cache = PagedCache(TINY_V2, 4, dtype=torch.float32, page_size=8)
    cache.storage.fill_(7.0)
    with torch.no_grad():
        model(tokens, ForwardBatch.paged(cache, [0], [10], [[3, 1]]))
    written = (cache.storage != 7.0).any(-1).any(0)
    assert written.nonzero().flatten().tolist() == [8, 9, *range(24, 32)]


def test_logit_rows_are_the_rows_asked_for() -> None:
    model, tokens = build(TINY_LITE, torch.float64), sample_tokens(TINY_LITE, 12)
    batch = ForwardBatch.packed([7, 5])
    rows = torch.tensor([6, 11])
    with torch.no_grad():
        all_rows = model(tokens, batch).logits
        chosen = model(tokens, dataclasses.replace(batch, logit_rows=rows)).logits
    assert relative_error(chosen, all_rows[rows]) < 1e-12


def test_an_empty_pass_is_no_error() -> None:
    model = build(TINY_V2)
    with torch.no_grad():
        assert model(torch.zeros(0, dtype=torch.long), ForwardBatch.packed([])).logits.shape == (0, TINY_V2.vocab_size)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_cache_may_be_of_another_type_than_the_model(dtype: torch.dtype) -> None:
    """A bf16 cache under a float32 model, say: latents are rounded when written and read as they were stored."""
    model, tokens = build(TINY_LITE), sample_tokens(TINY_LITE, 20)
    cache = PagedCache(TINY_LITE, 1, dtype=dtype)
    with torch.no_grad():
        logits = model(tokens, ForwardBatch.paged(cache, [0], [20], [[0]])).logits
    assert logits.dtype == torch.float32
    assert relative_error(logits, expanded(model, tokens)) < (1e-5 if dtype == torch.float32 else 0.1)
