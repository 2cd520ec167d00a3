"""The paged cache: what is stored where, and that one sequence's NaN never reaches another."""

from __future__ import annotations

import pytest
import torch

from leadline.model.batch import ForwardBatch
from leadline.model.cache import PagedCache
from leadline.model.config import V2, V2_LITE
from tests.fixtures import TINY_LITE
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


def test_parts_lie_side_by_side_in_their_slots() -> None:
    cache = PagedCache(TINY_LITE, 2, dtype=torch.float32, page_size=4)
    latent, key = torch.arange(32.0).view(2, 16), torch.arange(100.0, 116.0).view(2, 8)
    cache.write(1, torch.tensor([6, 1]), latent, key)
    assert torch.equal(cache.layer(1)[1, 2], torch.cat((latent[0], key[0])))
    assert torch.equal(cache.layer(1)[0, 1], torch.cat((latent[1], key[1])))
    assert cache.storage.count_nonzero() == 2 * 24 - 1  # one of the numbers is 0
    assert cache.layer(1).data_ptr() == cache.storage[1].data_ptr()


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
