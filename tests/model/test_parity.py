"""Logits against transformers on the same random tensors, and against the paper's equations in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from leadline.model.batch import ForwardBatch
from leadline.model.cache import PagedCache
from leadline.model.config import ModelConfig
from leadline.model.transformer import DeepseekV2
from tests.model import formula
from tests.model.dense import TINY_GQA, TINY_GQA_MOE, TINY_MHA, TINY_MOE_16B, TINY_MQA
from tests.model.oracle import (
    NARROW_LITE,
    NARROW_V2,
    OFFSETS,
    WIDE_LITE,
    build,
    cache_argument,
    expanded,
    paged,
    relative_error,
    sample_tokens,
    transformers_logits,
    transformers_of,
)

SHAPES = {"v2": NARROW_V2, "v2-lite": NARROW_LITE}
DENSE = {"mha": TINY_MHA, "gqa": TINY_GQA, "mqa": TINY_MQA}
WITHOUT_MLA = {**DENSE, "moe-16b": TINY_MOE_16B, "gqa-moe": TINY_GQA_MOE}


@pytest.fixture(scope="module")
def wide() -> tuple[DeepseekV2, Any]:
    """Two layers at V2-Lite's widths, 0.7 billion parameters in float32, held once for both."""
    model = build(WIDE_LITE, std=0.02)
    return model, transformers_of(model)


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("offset", OFFSETS)
def test_float32_logits_are_transformers_at_every_position(config: ModelConfig, offset: int) -> None:
    model, tokens = build(config), sample_tokens(config, 64)
    expected = transformers_logits(transformers_of(model), tokens, offset)
    assert relative_error(expanded(model, tokens, offset), expected) < 1e-4
    assert relative_error(paged(model, tokens, [40, 23, 1], offset=offset), expected) < 1e-4


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_decode_over_pages_is_transformers_decode_over_its_cache(config: ModelConfig) -> None:
    from transformers import DynamicCache

    model, tokens = build(config), sample_tokens(config, 24)
    oracle = transformers_of(model)
    cache, past = PagedCache(config, 1, dtype=torch.float32), DynamicCache(config=oracle.config)
    with torch.no_grad():
        for done, count in [(0, 16), *((i, 1) for i in range(16, 24))]:
            step = tokens[done : done + count]
            expected = oracle(input_ids=step[None], use_cache=True, **{cache_argument(oracle): past}).logits[0]
            logits = model(step, ForwardBatch.paged(cache, [done], [count], [[0]])).logits
            assert relative_error(logits, expected) < 1e-4


@pytest.mark.parametrize("offset", OFFSETS)
def test_float32_logits_are_transformers_at_v2_lite_widths(wide: tuple[DeepseekV2, Any], offset: int) -> None:
    model, oracle = wide
    tokens = sample_tokens(WIDE_LITE, 8)
    expected = transformers_logits(oracle, tokens, offset)
    assert relative_error(expanded(model, tokens, offset), expected) < 1e-4
    assert relative_error(paged(model, tokens, [7, 1], offset=offset), expected) < 1e-4


@pytest.mark.parametrize("config", DENSE.values(), ids=DENSE)
@pytest.mark.parametrize("offset", [0, 4097])
def test_dense_models_are_transformers_llama(config: ModelConfig, offset: int) -> None:
    model, tokens = build(config), sample_tokens(config, 40)
    expected = transformers_logits(transformers_of(model), tokens, offset)
    assert relative_error(expanded(model, tokens, offset), expected) < 1e-4
    assert relative_error(paged(model, tokens, [30, 10], offset=offset), expected) < 1e-4


@pytest.mark.parametrize("config", [*SHAPES.values(), *WITHOUT_MLA.values()], ids=[*SHAPES, *WITHOUT_MLA])
@pytest.mark.parametrize("offset", [0, 30000])
def test_float64_is_the_papers_equations(config: ModelConfig, offset: int) -> None:
    """Both forms; the formula makes keys and values, so this is also expanded = absorbed."""
    model, tokens = build(config, torch.float64), sample_tokens(config, 24)
    expected = formula.logits(config, model.state_dict(), tokens.tolist(), offset)
    assert relative_error(expanded(model, tokens, offset), expected) < 1e-12
    assert relative_error(paged(model, tokens, [20, 4], offset=offset), expected) < 1e-12


def typical_error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    """Median over tokens of the relative error: one flipped expert near a tie does not decide it."""
    return ((actual.double() - exact).norm(dim=-1) / exact.norm(dim=-1)).median().item()


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("offset", [0, 4097, 30000])
def test_bf16_error_is_at_most_one_and_a_half_of_transformers(config: ModelConfig, offset: int) -> None:
    ours, cached, theirs = [], [], []
    for seed in range(3):
        model, tokens = build(config, torch.bfloat16, seed=seed, std=0.08), sample_tokens(config, 64, seed)
        exact = formula.logits(config, model.state_dict(), tokens.tolist(), offset)
        theirs.append(typical_error(transformers_logits(transformers_of(model), tokens, offset), exact))
        ours.append(typical_error(expanded(model, tokens, offset), exact))
        cached.append(typical_error(paged(model, tokens, [63, 1], offset=offset), exact))
    assert sum(ours) <= 1.5 * sum(theirs)
    assert sum(cached) <= 1.5 * sum(theirs)
    assert sum(theirs) / 3 < 0.05, "the comparison is empty where the oracle itself is far off"


def test_bf16_error_at_v2_lite_widths() -> None:
    model, tokens = build(WIDE_LITE, torch.bfloat16, std=0.02), sample_tokens(WIDE_LITE, 8)
    exact = formula.logits(WIDE_LITE, model.state_dict(), tokens.tolist(), 4097)
    theirs = typical_error(transformers_logits(transformers_of(model), tokens, 4097), exact)
    assert typical_error(expanded(model, tokens, 4097), exact) <= 1.5 * theirs
    assert typical_error(paged(model, tokens, [7, 1], offset=4097), exact) <= 1.5 * theirs
