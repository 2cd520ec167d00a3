"""Configurations without MLA: the dense baselines and MoE-16B as published, and their like in small."""

from __future__ import annotations

import dataclasses
from typing import Any

from leadline.model.config import ModelConfig

DENSE_7B = ModelConfig(
    model_type="llama",
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=30,
    num_attention_heads=32,
    num_key_value_heads=32,
    kv_lora_rank=None,
    n_routed_experts=None,
)
"""DeepSeek LLM 7B: MHA, dense."""

DENSE_67B = dataclasses.replace(
    DENSE_7B,
    hidden_size=8192,
    intermediate_size=22016,
    num_hidden_layers=95,
    num_attention_heads=64,
    num_key_value_heads=8,
)
"""DeepSeek LLM 67B: GQA, dense."""

MOE_16B = ModelConfig(
    model_type="deepseek",
    hidden_size=2048,
    intermediate_size=10944,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=16,
    kv_lora_rank=None,
    n_routed_experts=64,
    n_shared_experts=2,
    num_experts_per_tok=6,
    moe_intermediate_size=1408,
    norm_topk_prob=False,
)
"""DeepSeekMoE 16B: MHA, shared and routed experts."""

_TINY: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "bos_token_id": 0,
    "eos_token_id": 1,
}

TINY_MHA = dataclasses.replace(DENSE_7B, **_TINY, intermediate_size=96, num_hidden_layers=2, num_key_value_heads=4)
TINY_GQA = dataclasses.replace(TINY_MHA, num_key_value_heads=2)
TINY_MQA = dataclasses.replace(TINY_MHA, num_key_value_heads=1, head_dim=24)
TINY_MOE_16B = dataclasses.replace(
    MOE_16B,
    **_TINY,
    intermediate_size=96,
    num_hidden_layers=3,
    num_key_value_heads=4,
    n_routed_experts=8,
    num_experts_per_tok=3,
    moe_intermediate_size=24,
)
TINY_GQA_MOE = dataclasses.replace(TINY_MOE_16B, num_key_value_heads=2, norm_topk_prob=True)
"""An ablation the paper could have run: grouped heads over normalised experts."""
