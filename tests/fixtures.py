"""Tiny random model folders in the hub's format, for every test that needs a model.

They are written with the safetensors library, which leadline itself does not use: what reads them is tested against an
implementation that is not its own.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from leadline.checkpoint.names import tensor_shapes
from leadline.model.config import ModelConfig, YarnConfig
from leadline.tokenizer import train_bpe

TINY_TOKENS = 300  # fewer than the model's rows, as in the published models

TINY_V2 = ModelConfig(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    q_lora_rank=24,
    kv_lora_rank=16,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=12,
    n_routed_experts=8,
    n_shared_experts=2,
    num_experts_per_tok=3,
    moe_intermediate_size=32,
    topk_method="group_limited_greedy",
    n_group=4,
    topk_group=2,
    routed_scaling_factor=16.0,
    aux_loss_alpha=0.003,
    yarn=YarnConfig(factor=16.0, original_max_position_embeddings=128, mscale=0.707, mscale_all_dim=0.707),
    max_position_embeddings=2048,
    bos_token_id=0,
    eos_token_id=1,
)
"""V2 in small: query compression, experts in groups, scaling 16, YaRN."""

TINY_LITE = ModelConfig(
    vocab_size=320,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    kv_lora_rank=16,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=16,
    n_routed_experts=8,
    n_shared_experts=2,
    num_experts_per_tok=3,
    moe_intermediate_size=24,
    yarn=YarnConfig(factor=16.0, original_max_position_embeddings=128, mscale=0.707, mscale_all_dim=0.707),
    max_position_embeddings=2048,
    bos_token_id=0,
    eos_token_id=1,
)
"""V2-Lite in small: plain queries, greedy routing, YaRN."""

SAMPLE_TEXT = (
    "A lead line is what sailors let down to find the depth of the water below the ship.\n"
    "The lead falls, the line runs out, and the marks on it tell how deep the channel is.\n"
    "def depth(marks: list[int]) -> int:\n    return max(marks) if marks else 0\n"
)


def make_model_folder(
    path: Path,
    config: ModelConfig,
    *,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    shards: int = 2,
    tokenizer: bool = True,
    std: float = 0.08,
) -> Path:
    """Write a random model of this configuration to `path`, as the hub would hold it; `shards` 0 writes no weights."""
    path.mkdir(parents=True, exist_ok=True)
    raw = {**config.to_dict(), "torch_dtype": str(dtype).removeprefix("torch.")}
    write_json(path / "config.json", raw)
    write_json(path / "generation_config.json", generation_config(config))
    if shards:
        write_weights(path, random_tensors(config, dtype=dtype, seed=seed, std=std), shards)
    if tokenizer:
        make_tokenizer_files(path)
    return path


def generation_config(config: ModelConfig) -> dict[str, object]:
    ids = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.eos_token_id,
    }
    return {**ids, "do_sample": True, "temperature": 0.3, "top_p": 0.95}


def make_tokenizer_files(path: Path) -> None:
    """tokenizer.json and tokenizer_config.json of a byte-level BPE of `TINY_TOKENS` tokens: BOS 0, EOS 1."""
    train_bpe([SAMPLE_TEXT], TINY_TOKENS, path, min_frequency=1)


def random_tensors(
    config: ModelConfig, *, dtype: torch.dtype = torch.bfloat16, seed: int = 0, std: float = 0.08
) -> dict[str, Tensor]:
    """Every tensor under the hub's names: normal matrices, norms near one."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        noise = torch.randn(shape, generator=generator)
        is_norm = name.endswith("norm.weight")
        tensors[name] = (1.0 + 0.1 * noise if is_norm else std * noise).to(dtype)
    return tensors


def write_weights(path: Path, tensors: dict[str, Tensor], shards: int = 1) -> None:
    """model.safetensors, or `shards` files with their index."""
    if shards == 1:
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, path / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    write_json(path / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
