"""The paper's equations in float64, one token and one expert at a time: what the fast forms are measured against.

Written apart from the package and read against the paper: it shares no code with `leadline.model` but the
configuration. Angles are float32, as published implementations have them; everything else is float64. Weights are read
by the hub's names from any state dict and widened where they are used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from leadline.model.config import ModelConfig

Weights = Mapping[str, Tensor]


def logits(config: ModelConfig, weights: Weights, tokens: Sequence[int], offset: int = 0) -> Tensor:
    """(T, V) float64 of one document whose first token is at position `offset`."""
    x_TD = weights["model.embed_tokens.weight"][list(tokens)].double()
    cos_TP, sin_TP = angles(config, range(offset, offset + len(tokens)))
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        attend = mla if config.kv_lora_rank is not None else grouped
        normed_TD = norm(x_TD, weights[f"{name}.input_layernorm.weight"], config)
        x_TD = x_TD + attend(config, weights, f"{name}.self_attn", normed_TD, cos_TP, sin_TP)
        normed_TD = norm(x_TD, weights[f"{name}.post_attention_layernorm.weight"], config)
        ffn = moe if config.is_moe_layer(layer) else swiglu
        x_TD = x_TD + ffn(config, weights, f"{name}.mlp", normed_TD)
    return norm(x_TD, weights["model.norm.weight"], config) @ weights["lm_head.weight"].double().T


def norm(x: Tensor, weight: Tensor, config: ModelConfig) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * weight.double()


def project(weights: Weights, name: str, x: Tensor) -> Tensor:
    y = x @ weights[f"{name}.weight"].double().T
    bias = weights.get(f"{name}.bias")
    return y if bias is None else y + bias.double()


def angles(config: ModelConfig, positions: range) -> tuple[Tensor, Tensor]:
    """cos and sin, (T, P), of YaRN's frequencies (section 3.1.4), or of plain RoPE's."""
    inverse_P = frequencies(config)
    angle_TP = torch.tensor(list(positions), dtype=torch.float32)[:, None] * inverse_P
    return angle_TP.cos().double(), angle_TP.sin().double()


def frequencies(config: ModelConfig) -> Tensor:
    """YaRN: unchanged where a dimension turns more than beta_fast times in the original length, divided by the factor
    where it turns less than beta_slow times, a linear ramp between the two dimensions. float32, as published."""
    width = config.qk_rope_head_dim if config.kv_lora_rank is not None else config.plain_head_dim
    power_P = config.rope_theta ** (torch.arange(0, width, 2).float() / width)
    if config.yarn is None:
        return 1.0 / power_P
    length, theta = config.yarn.original_max_position_embeddings, config.rope_theta

    def dimension(turns: float) -> float:
        return width * math.log(length / (2 * math.pi * turns)) / (2 * math.log(theta))

    low, high = math.floor(dimension(config.yarn.beta_fast)), math.ceil(dimension(config.yarn.beta_slow))
    low, high = max(low, 0), min(high, width - 1)
    keep_P = 1 - torch.tensor([min(max((i - low) / (high - low), 0.0), 1.0) for i in range(width // 2)])
    return 1.0 / (config.yarn.factor * power_P) * (1 - keep_P) + 1.0 / power_P * keep_P


def rotate_pairs(x: Tensor, cos_TP: Tensor, sin_TP: Tensor) -> Tensor:
    """RoPE over (x0, x1), (x2, x3), ...; x is (T, ..., 2P)."""
    out = torch.empty_like(x)
    shape = (len(x), *[1] * (x.dim() - 2), -1)
    cos, sin = cos_TP.view(shape), sin_TP.view(shape)
    out[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
    out[..., 1::2] = x[..., 0::2] * sin + x[..., 1::2] * cos
    return out


def rotate_halves(x: Tensor, cos_TP: Tensor, sin_TP: Tensor) -> Tensor:
    """RoPE over (x0, xP), (x1, xP+1), ..."""
    shape = (len(x), *[1] * (x.dim() - 2), -1)
    cos, sin = cos_TP.view(shape), sin_TP.view(shape)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


def mla(config: ModelConfig, weights: Weights, name: str, x_TD: Tensor, cos_TP: Tensor, sin_TP: Tensor) -> Tensor:
    """Eq. 37-47, keys and values of every head made."""
    assert config.kv_lora_rank is not None
    heads, nope, rope = config.num_attention_heads, config.qk_nope_head_dim, config.qk_rope_head_dim
    if config.q_lora_rank is None:
        q = project(weights, f"{name}.q_proj", x_TD)
    else:
        c_q = norm(project(weights, f"{name}.q_a_proj", x_TD), weights[f"{name}.q_a_layernorm.weight"], config)
        q = project(weights, f"{name}.q_b_proj", c_q)
    q_THK = q.view(len(x_TD), heads, nope + rope)
    compressed = project(weights, f"{name}.kv_a_proj_with_mqa", x_TD)
    c_TC = norm(compressed[:, : config.kv_lora_rank], weights[f"{name}.kv_a_layernorm.weight"], config)
    k_pe_TR = rotate_pairs(compressed[:, config.kv_lora_rank :], cos_TP, sin_TP)
    kv_THX = project(weights, f"{name}.kv_b_proj", c_TC).view(len(x_TD), heads, nope + config.v_head_dim)
    scale = (nope + rope) ** -0.5 * mscale(config) ** 2
    outputs = []
    for head in range(heads):
        q_pe_TR = rotate_pairs(q_THK[:, head, nope:], cos_TP, sin_TP)
        scores_TT = q_THK[:, head, :nope] @ kv_THX[:, head, :nope].T + q_pe_TR @ k_pe_TR.T
        outputs.append(causal_softmax(scores_TT * scale) @ kv_THX[:, head, nope:])
    return project(weights, f"{name}.o_proj", torch.cat(outputs, dim=-1))


def mscale(config: ModelConfig) -> float:
    if config.yarn is None or not config.yarn.mscale_all_dim:
        return 1.0
    return 0.1 * config.yarn.mscale_all_dim * math.log(config.yarn.factor) + 1.0


def grouped(config: ModelConfig, weights: Weights, name: str, x_TD: Tensor, cos_TP: Tensor, sin_TP: Tensor) -> Tensor:
    """MHA, GQA, MQA: head h reads key head h // (H / G)."""
    heads, key_heads = config.num_attention_heads, config.num_key_value_heads
    q, k, v = (project(weights, f"{name}.{part}_proj", x_TD) for part in "qkv")
    q_THK, k_TGK, v_TGK = (x.view(len(x_TD), -1, config.plain_head_dim) for x in (q, k, v))
    q_THK, k_TGK = rotate_halves(q_THK, cos_TP, sin_TP), rotate_halves(k_TGK, cos_TP, sin_TP)
    outputs = []
    for head in range(heads):
        key = head // (heads // key_heads)
        scores_TT = q_THK[:, head] @ k_TGK[:, key].T * config.plain_head_dim**-0.5
        outputs.append(causal_softmax(scores_TT) @ v_TGK[:, key])
    return project(weights, f"{name}.o_proj", torch.cat(outputs, dim=-1))


def causal_softmax(scores_TT: Tensor) -> Tensor:
    future = torch.ones_like(scores_TT, dtype=torch.bool).triu(1)
    return scores_TT.masked_fill(future, float("-inf")).softmax(-1)


def swiglu(config: ModelConfig, weights: Weights, name: str, x: Tensor) -> Tensor:
    gate, up = project(weights, f"{name}.gate_proj", x), project(weights, f"{name}.up_proj", x)
    return project(weights, f"{name}.down_proj", gate * gate.sigmoid() * up)


def choose(config: ModelConfig, scores: Sequence[float]) -> dict[int, float]:
    """Expert to gate of one token: device-limited top-k (2.2.2), gates as the published weights use them."""
    experts = range(len(scores))
    if config.topk_method == "group_limited_greedy":
        size = len(scores) // config.n_group
        best = sorted(range(config.n_group), key=lambda g: -max(scores[g * size : (g + 1) * size]))
        experts = [e for e in experts if e // size in best[: config.topk_group]]  # type: ignore[assignment]
    chosen = sorted(experts, key=lambda e: -scores[e])[: config.num_experts_per_tok]
    if config.norm_topk_prob and len(chosen) > 1:
        total = sum(scores[e] for e in chosen)
        return {e: scores[e] / total for e in chosen}
    return {e: scores[e] * config.routed_scaling_factor for e in chosen}


def moe(config: ModelConfig, weights: Weights, name: str, x_TD: Tensor) -> Tensor:
    """Eq. 20, one token at a time."""
    scores_TE = (x_TD @ weights[f"{name}.gate.weight"].double().T).softmax(-1)
    routed_TD = torch.zeros_like(x_TD)
    for token, scores in enumerate(scores_TE.tolist()):
        for expert, gate in choose(config, scores).items():
            gate_up = weights[f"{name}.experts.gate_up_proj"][expert].double() @ x_TD[token]
            first, second = gate_up.chunk(2)
            down = weights[f"{name}.experts.down_proj"][expert].double()
            routed_TD[token] += gate * (down @ (first * first.sigmoid() * second))
    return routed_TD + swiglu(config, weights, f"{name}.shared_experts", x_TD)
