"""A whole model in kernel layout: what each of its matrices is called.

    model       embed (V, D), norm (D,), head
    a layer     input_norm post_norm kv_a_norm [q_a_norm]; q | q_a q_b; kv_a; k_b v_b, one matrix a head; o
                [q_a_bias kv_a_bias o_bias]
    dense       gate_up (interleaved), down
    MoE         router; experts_gate_up experts_down, one matrix an expert; shared_gate_up shared_down

k_b is W^UK transposed, (C, N) a head, as absorption needs it; v_b is W^UV, (V, C). The router is never quantised.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from leadline.model.config import ModelConfig
from leadline.model.mla import MLA
from leadline.model.moe import MLP, MoE
from leadline.model.transformer import DecoderLayer, DeepseekV2
from leadline.ops.cpu.layout import Format, Packed, interleave, pack
from leadline.ops.cpu.memory import allocate

MODEL = -1
"""The layer number of what belongs to no layer."""


@dataclasses.dataclass
class PackedWeights:
    """By (layer, name). Vectors are float32; the embedding is bfloat16 or float32, a row a token."""

    embedding: Tensor
    matrices: dict[tuple[int, str], Packed]
    vectors: dict[tuple[int, str], Tensor]

    @property
    def nbytes(self) -> int:
        parts = (*(each.data for each in self.matrices.values()), *self.vectors.values())
        return self.embedding.nbytes + sum(part.nbytes for part in parts)

    def decode_bytes(self, config: ModelConfig) -> int:
        """What one token reads: every matrix, but of the experts only the chosen."""
        total = 0
        for (_, name), each in self.matrices.items():
            chosen = config.num_experts_per_tok if name.startswith("experts_") else each.count
            total += each.layout.nbytes * chosen
        return total


# ---- from a model ------------------------------------------------------------------------------------------------


def pack_model(model: DeepseekV2, *, release: bool = False) -> PackedWeights:
    """The model's weights in kernel layout, exactly: in bfloat16 where that holds them, else in float32.

    `release` gives each weight's memory back once it is packed, so that the two never lie side by side; the model is
    of no use afterwards.
    """
    packer = _Packer(release)
    head = model.lm_head.weight
    packer.matrix(MODEL, "head", head.detach(), [])
    for index, layer in enumerate(model.model.layers):
        assert isinstance(layer, DecoderLayer)
        _pack_layer(packer, index, layer)
    packer.vector(MODEL, "norm", model.model.norm.weight)
    embedding = exact(model.model.embed_tokens.weight.detach())
    packer.free([head, model.model.embed_tokens.weight])
    return PackedWeights(embedding, packer.matrices, packer.vectors)


class _Packer:
    def __init__(self, release: bool) -> None:
        self.release = release
        self.matrices: dict[tuple[int, str], Packed] = {}
        self.vectors: dict[tuple[int, str], Tensor] = {}

    def matrix(self, layer: int, name: str, weight: Tensor, sources: list[Tensor]) -> None:
        self.matrices[layer, name] = pack(weight, float_format([weight]))
        self.free(sources)

    def stack(self, layer: int, name: str, count: int, part: Callable[[int], Tensor]) -> None:
        """One matrix after the other, so that no more than one is held beside the result."""
        format = float_format(part(index) for index in range(count))
        first = pack(part(0), format)
        data = allocate(first.nbytes * count)
        for index in range(count):
            data[index * first.nbytes : (index + 1) * first.nbytes] = pack(part(index), format).data
        self.matrices[layer, name] = Packed(first.layout, data, count)

    def vector(self, layer: int, name: str, value: Tensor | None) -> None:
        if value is not None:
            self.vectors[layer, name] = value.detach().float().clone()

    def free(self, sources: list[Tensor]) -> None:
        if self.release:
            for each in sources:
                each.data = each.data.new_empty(0)


def float_format(weights: Iterable[Tensor]) -> Format:
    return "bf16" if all(map(is_bf16, weights)) else "f32"


def is_bf16(weight: Tensor) -> bool:
    """Whether bfloat16 holds it exactly."""
    return weight.dtype == torch.bfloat16 or torch.equal(weight.bfloat16().to(weight.dtype), weight)


def exact(weight: Tensor) -> Tensor:
    """In bfloat16 where nothing is lost, else in float32; its own memory."""
    return weight.to(torch.bfloat16 if is_bf16(weight) else torch.float32, copy=True).contiguous()


def _pack_layer(packer: _Packer, index: int, layer: DecoderLayer) -> None:
    packer.vector(index, "input_norm", layer.input_layernorm.weight)
    packer.vector(index, "post_norm", layer.post_attention_layernorm.weight)
    assert isinstance(layer.self_attn, MLA)
    _pack_attention(packer, index, layer.self_attn)
    if isinstance(layer.mlp, MoE):
        _pack_moe(packer, index, layer.mlp)
    else:
        assert isinstance(layer.mlp, MLP)
        _pack_mlp(packer, index, "", layer.mlp)


def _pack_attention(packer: _Packer, index: int, attention: MLA) -> None:
    names = ["kv_a_proj_with_mqa:kv_a", "o_proj:o"]
    names += ["q_a_proj:q_a", "q_b_proj:q_b"] if attention.compresses_queries else ["q_proj:q"]
    for pair in names:
        module, _, name = pair.partition(":")
        linear = getattr(attention, module)
        packer.vector(index, f"{name}_bias", linear.bias)
        packer.matrix(index, name, linear.weight.detach(), [linear.weight])
    packer.vector(index, "kv_a_norm", attention.kv_a_layernorm.weight)
    if attention.compresses_queries:
        packer.vector(index, "q_a_norm", attention.q_a_layernorm.weight)
    weight = attention.kv_b_proj.weight
    kv_b_HXC: Tensor = weight.detach().unflatten(0, (attention.heads, -1))
    packer.stack(index, "k_b", attention.heads, lambda head: kv_b_HXC[head, : attention.nope].T.contiguous())
    packer.stack(index, "v_b", attention.heads, lambda head: kv_b_HXC[head, attention.nope :])
    packer.free([weight])


def _pack_mlp(packer: _Packer, index: int, prefix: str, mlp: MLP) -> None:
    gate, up, down = mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight
    packer.matrix(index, f"{prefix}gate_up", interleave(gate.detach(), up.detach()), [gate, up])
    packer.matrix(index, f"{prefix}down", down.detach(), [down])


def _pack_moe(packer: _Packer, index: int, moe: MoE) -> None:
    packer.matrix(index, "router", moe.gate.weight.detach(), [moe.gate.weight])
    gate_up, down = moe.experts.gate_up_proj, moe.experts.down_proj
    packer.stack(index, "experts_gate_up", len(gate_up), lambda e: interleave(*gate_up[e].detach().chunk(2)))
    packer.stack(index, "experts_down", len(down), lambda e: down[e].detach())
    packer.free([gate_up, down])
    if moe.shared_experts is not None:
        _pack_mlp(packer, index, "shared_", moe.shared_experts)
