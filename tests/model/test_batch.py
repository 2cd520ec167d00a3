"""ForwardBatch: positions, slots and lengths of one pass."""

from __future__ import annotations

import pytest
import torch

from leadline.model.batch import ForwardBatch
from leadline.model.cache import PagedCache
from leadline.model.config import ModelConfig
from leadline.model.transformer import DeepseekV2
from tests.fixtures import TINY_LITE, TINY_V2
from tests.model.dense import TINY_GQA, TINY_MOE_16B


def test_packed_documents_begin_anew() -> None:
    batch = ForwardBatch.packed([3, 1, 2], offset=10)
    assert batch.positions.tolist() == [10, 11, 12, 10, 10, 11]
    assert (batch.starts, batch.lengths, batch.num_sequences) == ((0, 3, 4, 6), (3, 1, 2), 3)
    assert batch.cache is None


def test_no_documents_are_an_empty_batch() -> None:
    batch = ForwardBatch.packed([])
    assert (batch.positions.tolist(), batch.positions.dtype, batch.starts) == ([], torch.int64, (0,))


def test_paged_sequences_continue_in_their_own_pages() -> None:
    cache = PagedCache(TINY_LITE, 6, page_size=4)
    batch = ForwardBatch.paged(cache, computed=[3, 0], lengths=[3, 1], page_tables=[[5, 2], [4]])
    assert batch.positions.tolist() == [3, 4, 5, 0]
    assert batch.slots is not None
    assert batch.slots.tolist() == [5 * 4 + 3, 2 * 4, 2 * 4 + 1, 4 * 4]
    assert batch.page_tables is not None
    assert batch.page_tables.tolist() == [[5, 2], [4, 0]]
    assert batch.context_lens == (6, 1)


def test_tied_embeddings_are_one_parameter() -> None:
    config = ModelConfig.from_dict({**TINY_LITE.to_dict(), "tie_word_embeddings": True})
    model = DeepseekV2(config)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sum(parameter.numel() for parameter in model.parameters()) == config.parameters()


@pytest.mark.parametrize("config", [TINY_V2, TINY_LITE, TINY_GQA, TINY_MOE_16B])
def test_one_routing_a_moe_layer_and_no_derived_state_in_the_checkpoint(config: ModelConfig) -> None:
    model = DeepseekV2(config)
    model.initialise(torch.Generator().manual_seed(0))
    output = model(torch.arange(5), ForwardBatch.packed([5]))
    assert len(output.routings) == sum(map(config.is_moe_layer, range(config.num_hidden_layers)))
    for routing in output.routings:
        assert routing.expert_ids_TK.shape == routing.weights_TK.shape == (5, 3)
        assert routing.scores_TE.shape == (5, 8)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters(remove_duplicate=False)}
