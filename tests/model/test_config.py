"""ModelConfig: what a hub's config.json says in either spelling, what it may not say, and the sizes that follow."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from leadline.errors import CheckpointError
from leadline.model.batch import ForwardBatch
from leadline.model.cache import PagedCache
from leadline.model.config import PRESETS, SMALL, V2, V2_5, V2_LITE, ModelConfig, YarnConfig
from leadline.model.transformer import DeepseekV2
from tests.fixtures import TINY_LITE, TINY_V2
from tests.model.dense import DENSE_7B, DENSE_67B, MOE_16B

OLD_SPELLING: dict[str, Any] = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "topk_method": "greedy",
    "scoring_func": "softmax",
    "hidden_act": "silu",
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
    },
    "max_position_embeddings": 163840,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
}


def new_spelling() -> dict[str, Any]:
    raw = {
        name: value for name, value in OLD_SPELLING.items() if name not in ("rope_theta", "rope_scaling", "torch_dtype")
    }
    rope = {name: value for name, value in OLD_SPELLING["rope_scaling"].items() if name != "type"}
    return {**raw, "dtype": "bfloat16", "rope_parameters": {**rope, "rope_type": "yarn", "rope_theta": 10000.0}}


@pytest.mark.parametrize(
    ("config", "total", "active"),
    [(V2, 235_741_434_880, 20.85e9), (V2_5, 235_741_434_880, 20.85e9), (V2_LITE, 15_706_484_224, 2.45e9)],
    ids=["v2", "v2.5", "v2-lite"],
)
def test_published_models_have_exactly_their_parameters(config: ModelConfig, total: int, active: float) -> None:
    assert config.parameters() == total
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in DeepseekV2(config).parameters()) == total
    assert config.parameters(active=True) == pytest.approx(active, rel=0.001)


@pytest.mark.parametrize(
    "config",
    [
        *PRESETS.values(),
        TINY_V2,
        TINY_LITE,
        DENSE_7B,
        DENSE_67B,
        MOE_16B,
        dataclasses.replace(TINY_V2, attention_bias=True),
    ],
)
def test_the_count_from_the_config_is_the_modules(config: ModelConfig) -> None:
    for each in (config, dataclasses.replace(config, tie_word_embeddings=True)):
        with torch.device("meta"):
            model = DeepseekV2(each)
        assert each.parameters() == sum(parameter.numel() for parameter in model.parameters())
        experts = sum(p.numel() for name, p in model.named_parameters() if ".mlp.experts." in name)
        idle = experts - experts * each.num_experts_per_tok // (each.n_routed_experts or 1) if experts else 0
        looked_up = 0 if each.tie_word_embeddings else each.vocab_size * each.hidden_size
        assert each.parameters(active=True) == each.parameters() - idle - looked_up


@pytest.mark.parametrize(("config", "billions"), [(DENSE_7B, 6.9), (DENSE_67B, 67.4), (MOE_16B, 16.4)])
def test_dense_baselines_have_their_published_size(config: ModelConfig, billions: float) -> None:
    assert config.parameters() / 1e9 == pytest.approx(billions, abs=0.05)


@pytest.mark.parametrize(("config", "size"), [(V2, 69_120), (V2_LITE, 31_104), (DENSE_67B, 95 * 2 * 8 * 128 * 2)])
def test_cache_bytes_a_token(config: ModelConfig, size: int) -> None:
    """The config's arithmetic and the allocation itself."""
    assert config.cache_bytes_per_token() == size
    cache = PagedCache(config, pages=2)
    assert cache.bytes_per_token == size
    assert cache.bytes == cache.storage.nbytes == 2 * 64 * size


def test_the_latent_cache_is_smaller_than_keys_and_values_by_the_published_ratio() -> None:
    def naive(config: ModelConfig) -> int:
        heads = config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)
        return 2 * config.num_hidden_layers * heads

    assert (naive(V2_LITE), naive(V2)) == (276_480, 4_915_200)
    assert V2.cache_row * V2.num_hidden_layers == 34_560


def test_both_spellings_are_one_config() -> None:
    old, new = ModelConfig.from_dict(OLD_SPELLING), ModelConfig.from_dict(new_spelling())
    assert old == new
    assert old.yarn == YarnConfig(40, 4096, 32, 1, 0.707, 0.707)
    assert (old.rope_theta, old.dtype, old.kv_lora_rank, old.q_lora_rank) == (10000.0, "bfloat16", 16, None)


@pytest.mark.parametrize("name", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("value", [None, {}, {"rope_type": "default"}, {"type": "default"}])
def test_no_scaling_is_plain_rope(name: str, value: dict[str, Any] | None) -> None:
    raw = {key: value for key, value in OLD_SPELLING.items() if key != "rope_scaling"}
    assert ModelConfig.from_dict({**raw, name: value}).yarn is None


@pytest.mark.parametrize("config", [*PRESETS.values(), TINY_V2, TINY_LITE, DENSE_67B, MOE_16B])
def test_written_and_read_again(config: ModelConfig, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    assert ModelConfig.from_folder(tmp_path) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "architecture MixtralForCausalLM is not one of"),
        ({"architectures": None, "model_type": "gpt2"}, "architecture gpt2"),
        ({"architectures": None, "model_type": None}, "architecture unnamed"),
        ({"architectures": ["DeepseekV3ForCausalLM"]}, "DeepseekV3ForCausalLM"),
        ({"scoring_func": "sigmoid"}, "scoring_func 'sigmoid' is not implemented"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"topk_method": "noaux_tc"}, "topk_method 'noaux_tc'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config 'fp8'"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope scaling 'linear'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2}}, "lacks original_max_position_embeddings"),
        ({"n_group": 3}, "n_routed_experts 8 is not a multiple of n_group 3"),
        ({"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 3}, "topk_group 3 is more than n_group 2"),
        (
            {"topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 2},
            "num_experts_per_tok 3 is more than 2",
        ),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok 9 is more than 8"),
        ({"hidden_size": 0}, "hidden_size must be a positive whole number"),
        ({"hidden_size": "64"}, "hidden_size must be a positive whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be a positive"),
        ({"vocab_size": 1.5}, "vocab_size must be"),
        ({"num_key_value_heads": 3}, "num_attention_heads is not a multiple"),
        ({"qk_rope_head_dim": 7}, "rotary width 7 is odd"),
        ({"torch_dtype": "int3"}, "dtype 'int3'"),
    ],
)
def test_what_would_change_the_numbers_is_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        ModelConfig.from_dict({**OLD_SPELLING, **change})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "is not a model folder"), ("{", "cannot be read"), ("[1]", "JSON object"), (b"\xff\xfe", "cannot be read")],
)
def test_a_folder_without_a_readable_config(tmp_path: Path, content: str | bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(CheckpointError, match=message):
        ModelConfig.from_folder(tmp_path)


def test_a_refusal_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**OLD_SPELLING, "hidden_act": "gelu"}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config\.json: hidden_act"):
        ModelConfig.from_folder(tmp_path)


def test_unknown_fields_are_the_hubs_business() -> None:
    assert ModelConfig.from_dict({**OLD_SPELLING, "auto_map": {"AutoConfig": "x"}, "pretraining_tp": 1})


def test_several_stop_ids_begin_with_the_models_own() -> None:
    assert ModelConfig.from_dict({**OLD_SPELLING, "eos_token_id": [5, 6]}).eos_token_id == 5


def test_query_compression_and_dense_layers_follow_the_published_shapes() -> None:
    assert V2.q_lora_rank == 1536
    assert V2_LITE.q_lora_rank is None
    assert [layer for layer in range(60) if not V2.is_moe_layer(layer)] == [0]
    assert (V2.cache_row, V2_LITE.cache_row, V2.qk_head_dim) == (576, 576, 192)


def test_small_fits_its_purpose() -> None:
    assert 10e6 < SMALL.parameters() < 30e6


def test_a_model_without_shared_experts_is_one_too() -> None:
    raw = {**dataclasses.replace(SMALL, num_hidden_layers=2).to_dict(), "n_shared_experts": None}
    config = ModelConfig.from_dict(raw)
    model = DeepseekV2(config)
    model.initialise()
    assert sum(parameter.numel() for parameter in model.parameters()) == config.parameters()
    assert model(torch.arange(5), ForwardBatch.packed([5])).logits.shape == (5, config.vocab_size)
