"""The paper's claims about sizes and costs (sections 2.1.4, 3.2.3, appendix D), computed from the shapes."""

from __future__ import annotations

import dataclasses

import pytest

from leadline.model.config import V2, V2_LITE, ModelConfig
from leadline.train.flops import step_flops
from tests.model.dense import DENSE_67B

MHA = dataclasses.replace(V2, model_type="deepseek", kv_lora_rank=None, q_lora_rank=None, head_dim=128)


def elements(config: ModelConfig) -> int:
    """Cached a token, over all layers."""
    return config.cache_row * config.num_hidden_layers


def test_table_1_counts_cached_elements() -> None:
    heads, width, layers = V2.num_attention_heads, 128, V2.num_hidden_layers
    assert elements(MHA) == 2 * heads * width * layers
    assert elements(dataclasses.replace(MHA, num_key_value_heads=8)) == 2 * 8 * width * layers
    assert elements(dataclasses.replace(MHA, num_key_value_heads=1)) == 2 * width * layers
    assert elements(V2) == (512 + 64) * layers == 4.5 * width * layers
    assert elements(V2) == 2 * 2.25 * width * layers, "GQA with 2.25 groups"


def test_table_9_counts_cached_elements() -> None:
    small = dataclasses.replace(V2_LITE, model_type="deepseek", kv_lora_rank=None, head_dim=128)
    assert (elements(small), elements(V2_LITE), elements(V2)) == (110_592, 15_552, 34_560)
    assert elements(V2_LITE) / elements(small) == pytest.approx(0.14, abs=0.005)


def test_the_cache_is_93_percent_smaller_than_the_dense_models() -> None:
    """Figure 1b: 6 bits an element on average against the 16 of the dense 67B."""
    assert 1 - elements(V2) * 6 / (elements(DENSE_67B) * 16) == pytest.approx(0.933, abs=0.0005)
    ours = V2.cache_bytes_per_token("6bit") / DENSE_67B.cache_bytes_per_token()
    assert 1 - ours > 0.927, "scales and the rope key's 8 bits counted"


def test_training_costs_42_percent_less() -> None:
    """172.8K against 300.6K GPU hours a trillion tokens; by operations alone it would be 63%."""
    assert pytest.approx(0.425, abs=0.0005) == 1 - 172.8 / 300.6
    v2, dense = (step_flops(config, 4096, 4096 * 4097 // 2) / 4096 for config in (V2, DENSE_67B))
    assert v2 == pytest.approx(155e9, rel=0.03)
    assert dense == pytest.approx(419e9, rel=0.01)
    assert 1 - v2 / dense == pytest.approx(0.629, abs=0.01)


def test_the_parameters_are_the_papers() -> None:
    billions = [round(config.parameters() / 1e9, 1) for config in (V2, V2_LITE)]
    assert billions == [235.7, 15.7]
    active = [config.parameters(active=True) / 1e9 for config in (V2, V2_LITE)]
    assert active == pytest.approx([21, 2.4], rel=0.03)
