"""The inventory of tensors: exact sizes, and a one-to-one map onto the model's parameters."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from leadline.checkpoint.names import Place, is_derived, layer_of, place, tensor_shapes
from leadline.model.config import PRESETS, ModelConfig
from leadline.model.transformer import DeepseekV2
from tests.fixtures import TINY_LITE, TINY_V2

CONFIGS = {
    "tiny-v2": TINY_V2,
    "tiny-lite": TINY_LITE,
    "biased": dataclasses.replace(TINY_V2, attention_bias=True),
    "tied": dataclasses.replace(TINY_LITE, tie_word_embeddings=True),
    "every second layer": dataclasses.replace(TINY_LITE, moe_layer_freq=2, first_k_dense_replace=0),
    "mha": dataclasses.replace(TINY_LITE, model_type="deepseek", kv_lora_rank=None, attention_bias=True),
    "gqa dense": dataclasses.replace(
        TINY_LITE, model_type="llama", kv_lora_rank=None, num_key_value_heads=2, n_routed_experts=None
    ),
}


@pytest.mark.parametrize("config", [*PRESETS.values(), *CONFIGS.values()], ids=[*PRESETS, *CONFIGS])
def test_sizes_add_up_to_the_parameter_count(config: ModelConfig) -> None:
    assert sum(map(math.prod, tensor_shapes(config).values())) == config.parameters()


def test_published_counts() -> None:
    counts = {name: sum(map(math.prod, tensor_shapes(PRESETS[name]).values())) for name in ("v2", "v2-lite")}
    assert counts == {"v2": 235_741_434_880, "v2-lite": 15_706_484_224}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_element_of_every_parameter_is_one_tensors_place(config: ModelConfig) -> None:
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in DeepseekV2(config).named_parameters()}
    covered = {name: torch.zeros(shape, dtype=torch.int32) for name, shape in shapes.items()}
    for name, shape in tensor_shapes(config).items():
        where = place(name, config)
        target = covered[where.parameter]
        target = target if where.expert is None else target[where.expert, where.start : where.stop]
        assert target.shape == shape, name
        target += 1
    assert all(bool((count == 1).all()) for count in covered.values())


def test_official_names() -> None:
    names = tensor_shapes(TINY_V2)
    assert names["model.layers.1.mlp.experts.7.up_proj.weight"] == (32, 64)
    assert names["model.layers.0.self_attn.kv_a_proj_with_mqa.weight"] == (16 + 8, 64)
    assert names["model.layers.2.mlp.shared_experts.gate_proj.weight"] == (2 * 32, 64)
    assert "model.layers.0.self_attn.q_proj.weight" in tensor_shapes(TINY_LITE)


def test_gate_rows_lie_above_up_rows() -> None:
    prefix = "model.layers.1.mlp.experts"
    assert place(f"{prefix}.3.gate_proj.weight", TINY_V2) == Place(f"{prefix}.gate_up_proj", 3, 0, 32)
    assert place(f"{prefix}.3.up_proj.weight", TINY_V2) == Place(f"{prefix}.gate_up_proj", 3, 32, 64)
    assert place("lm_head.weight", TINY_V2) == Place("lm_head.weight")


def test_layers_and_derived_tensors() -> None:
    assert layer_of("model.layers.12.mlp.gate.weight") == 12
    assert layer_of("model.norm.weight") is None
    assert is_derived("model.layers.0.self_attn.rotary_emb.inv_freq")
    assert not is_derived("model.layers.0.self_attn.q_proj.weight")
