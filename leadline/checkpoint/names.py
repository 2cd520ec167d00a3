"""Every tensor of a checkpoint: the hub's name, its shape, and where it lives in our parameters (appendix B's sizes).

In the file each expert's matrices are tensors of their own; in memory the experts of a layer are stacked:
`experts.gate_up_proj` (E, 2F, D), gate rows above up rows, and `experts.down_proj` (E, D, F). Everything else has one
name in both places.

Invariant: `tensor_shapes` is derived from the configuration alone, its sizes add up to `ModelConfig.parameters()`, and
`place` maps its names one to one onto the whole of the model's parameters. No torch here.
"""

from __future__ import annotations

import dataclasses
import re

from leadline.model.config import ModelConfig

Shape = tuple[int, ...]

_EXPERT = re.compile(r"(model\.layers\.\d+\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor of the file lives: a whole parameter, or the rows `start:stop` of one expert in a stack."""

    parameter: str
    expert: int | None = None
    start: int = 0
    stop: int | None = None


def place(name: str, config: ModelConfig) -> Place:
    """The parameter, or the slice of a stacked one, that holds the tensor the hub calls `name`."""
    match = _EXPERT.fullmatch(name)
    if match is None:
        return Place(name)
    stack, expert, kind = match.group(1), int(match.group(2)), match.group(3)
    width = config.moe_intermediate_size
    if kind == "down":
        return Place(f"{stack}.down_proj", expert, 0, config.hidden_size)
    start = 0 if kind == "gate" else width
    return Place(f"{stack}.gate_up_proj", expert, start, start + width)


def layer_of(name: str) -> int | None:
    """The layer a tensor belongs to; None for embeddings, final norm and head."""
    match = _LAYER.match(name)
    return int(match.group(1)) if match else None


def is_derived(name: str) -> bool:
    """Old checkpoints carry rotary tables; they follow from the configuration and are left in the file."""
    return ".rotary_emb." in name and name.rpartition(".")[2] in ("inv_freq", "cos_cached", "sin_cached")


def tensor_shapes(config: ModelConfig) -> dict[str, Shape]:
    """The hub's name and shape of every tensor of the model, in the model's own order."""
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (config.vocab_size, config.hidden_size)}
    for layer in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in _layer(config, layer).items()}
    shapes["model.norm.weight"] = (config.hidden_size,)
    if config.num_labels:
        shapes["score.weight"] = (config.num_labels, config.hidden_size)
    elif not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
    return shapes


def _layer(config: ModelConfig, layer: int) -> dict[str, Shape]:
    d = config.hidden_size
    attention = _latent_attention(config) if config.is_mla else _plain_attention(config)
    shapes: dict[str, Shape] = {"input_layernorm.weight": (d,)}
    shapes |= {f"self_attn.{name}": shape for name, shape in attention.items()}
    shapes["post_attention_layernorm.weight"] = (d,)
    ffn = _moe(config) if config.is_moe_layer(layer) else _mlp(d, config.intermediate_size)
    return shapes | {f"mlp.{name}": shape for name, shape in ffn.items()}


def _latent_attention(config: ModelConfig) -> dict[str, Shape]:
    """Appendix C's matrices under the hub's names: W^DQ q_a, W^UQ q_b, W^DKV with W^KR kv_a, W^UK with W^UV kv_b."""
    assert config.kv_lora_rank is not None
    d, heads, rank = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
    shapes: dict[str, Shape] = {}
    if config.q_lora_rank is None:
        shapes["q_proj.weight"] = (heads * config.qk_head_dim, d)
    else:
        shapes |= _linear("q_a_proj", (config.q_lora_rank, d), config.attention_bias)
        shapes["q_a_layernorm.weight"] = (config.q_lora_rank,)
        shapes["q_b_proj.weight"] = (heads * config.qk_head_dim, config.q_lora_rank)
    shapes |= _linear("kv_a_proj_with_mqa", (config.cache_row, d), config.attention_bias)
    shapes["kv_a_layernorm.weight"] = (rank,)
    shapes["kv_b_proj.weight"] = (heads * (config.qk_nope_head_dim + config.v_head_dim), rank)
    return shapes | _linear("o_proj", (d, heads * config.v_head_dim), config.attention_bias)


def _plain_attention(config: ModelConfig) -> dict[str, Shape]:
    d, width = config.hidden_size, config.plain_head_dim
    queries, keys = config.num_attention_heads * width, config.num_key_value_heads * width
    sizes = {"q_proj": (queries, d), "k_proj": (keys, d), "v_proj": (keys, d), "o_proj": (d, queries)}
    shapes: dict[str, Shape] = {}
    for name, shape in sizes.items():
        shapes |= _linear(name, shape, config.attention_bias)
    return shapes


def _linear(name: str, shape: Shape, bias: bool) -> dict[str, Shape]:
    weight = {f"{name}.weight": shape}
    return weight | {f"{name}.bias": shape[:1]} if bias else weight


def _moe(config: ModelConfig) -> dict[str, Shape]:
    assert config.n_routed_experts is not None
    d, width = config.hidden_size, config.moe_intermediate_size
    shapes: dict[str, Shape] = {"gate.weight": (config.n_routed_experts, d)}
    for expert in range(config.n_routed_experts):
        shapes |= {f"experts.{expert}.{name}": shape for name, shape in _mlp(d, width).items()}
    if config.n_shared_experts:
        shared = _mlp(d, width * config.n_shared_experts)
        shapes |= {f"shared_experts.{name}": shape for name, shape in shared.items()}
    return shapes


def _mlp(hidden: int, width: int) -> dict[str, Shape]:
    return {
        "gate_proj.weight": (width, hidden),
        "up_proj.weight": (width, hidden),
        "down_proj.weight": (hidden, width),
    }
