"""Where everything of a quantised model lies: one file, or one block of memory, cut into regions.

The regions are the matrices as the CPU kernels read them (`leadline.ops.cpu.layout`, names as in
`leadline.model.packed`): the experts of a layer stacked, gate and up in turns, W^UKV taken apart into heads, W^UK
transposed for the absorbed form. Their places follow from configuration and recipe alone, so tensors of the hub can be
written in any order, as they come.

Invariant: regions begin on cache lines, follow each other without overlap and hold every parameter once; `pieces` cuts
a hub tensor into them and `originals` gives it back, to the bit for formats that do not round.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from leadline.checkpoint.names import Shape
from leadline.checkpoint.recipes import Recipe, choose
from leadline.errors import CheckpointError
from leadline.model.config import ModelConfig
from leadline.ops.cpu.layout import LINE, PANEL, Layout, Packed, deinterleave, unpack

Weights = Mapping[str, Packed | Tensor]

_ITEM = {"float32": 4, "bfloat16": 2}
_EXPERT = re.compile(r"mlp\.experts\.(\d+)\.(gate|up|down)_proj\.weight")
_PLAIN = {
    "input_layernorm.weight": "input_norm",
    "post_attention_layernorm.weight": "post_norm",
    "self_attn.q_proj.weight": "q",
    "self_attn.q_a_proj.weight": "q_a",
    "self_attn.q_a_proj.bias": "q_a_bias",
    "self_attn.q_a_layernorm.weight": "q_a_norm",
    "self_attn.q_b_proj.weight": "q_b",
    "self_attn.kv_a_proj_with_mqa.weight": "kv_a",
    "self_attn.kv_a_proj_with_mqa.bias": "kv_a_bias",
    "self_attn.kv_a_layernorm.weight": "kv_a_norm",
    "self_attn.o_proj.weight": "o",
    "self_attn.o_proj.bias": "o_bias",
    "mlp.down_proj.weight": "down",
    "mlp.gate.weight": "router",
    "mlp.shared_experts.down_proj.weight": "shared_down",
}
_PAIRS = {
    "mlp.gate_proj.weight": ("gate_up", 0),
    "mlp.up_proj.weight": ("gate_up", 1),
    "mlp.shared_experts.gate_proj.weight": ("shared_gate_up", 0),
    "mlp.shared_experts.up_proj.weight": ("shared_gate_up", 1),
}
_TOP = {"model.embed_tokens.weight": "embed", "model.norm.weight": "norm", "lm_head.weight": "head"}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


@dataclasses.dataclass(frozen=True, slots=True)
class Region:
    """One entry: `count` matrices of a layout, or a plain tensor of `shape` in `dtype`. Offsets and sizes in bytes."""

    name: str
    offset: int
    layout: Layout | None = None
    count: int = 1
    dtype: str = ""
    shape: Shape = ()

    @property
    def nbytes(self) -> int:
        """What is used of it."""
        if self.layout is not None:
            return self.count * self.layout.nbytes
        return math.prod(self.shape) * _ITEM[self.dtype]

    @property
    def size(self) -> int:
        """With the padding to a cache line."""
        return -(-self.nbytes // LINE) * LINE

    @property
    def parameters(self) -> int:
        return math.prod(self.shape) if self.layout is None else self.count * self.layout.rows * self.layout.columns

    def view(self, block: Tensor) -> Packed | Tensor:
        """The entry within the whole block of bytes."""
        data = block[self.offset : self.offset + self.nbytes]
        if self.layout is not None:
            return Packed(self.layout, data, self.count)
        return data.view(getattr(torch, self.dtype)).view(self.shape)


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Part of a hub tensor: `matrix` goes to place `index` of a region; `turn` 0 or 1 is its share of the panels."""

    region: str
    matrix: Tensor
    index: int = 0
    turn: int | None = None


# ---- where -------------------------------------------------------------------------------------------------------


def regions(config: ModelConfig, recipe: Recipe) -> dict[str, Region]:
    """Every region by its name, in the order of the bytes."""
    if config.kv_lora_rank is None:
        raise CheckpointError(
            "only models with latent attention can be quantised: this one has keys and values of heads"
        )
    found: dict[str, Region] = {}
    offset = 0
    for name, kind, count, shape in _entries(config):
        layer = int(name.split(".")[1]) if "." in name else None
        region = _region(name, kind, count, shape, offset, recipe, layer, config)
        found[name] = region
        offset += region.size
    return found


def total_bytes(found: Mapping[str, Region]) -> int:
    return max(region.offset + region.size for region in found.values())


def _region(
    name: str, kind: str, count: int, shape: Shape, offset: int, recipe: Recipe, layer: int | None, config: ModelConfig
) -> Region:
    if len(shape) == 1:
        return Region(name, offset, dtype="float32", shape=shape)
    if kind == "router":
        return Region(name, offset, Layout("f32", shape[0], shape[1]), count)
    choice = choose(recipe, kind, layer, shape[1], config)
    if kind == "embed" and choice.format == "bf16":
        return Region(name, offset, dtype="bfloat16", shape=shape)
    return Region(name, offset, Layout(choice.format, shape[0], shape[1], choice.group), count)


def _entries(config: ModelConfig) -> Iterator[tuple[str, str, int, Shape]]:
    """(name, kind, matrices, shape of one)."""
    d, vocabulary = config.hidden_size, config.vocab_size
    if not config.tie_word_embeddings:
        yield "embed", "embed", 1, (vocabulary, d)
    for layer in range(config.num_hidden_layers):
        ffn = _moe(config) if config.is_moe_layer(layer) else _mlp("", d, config.intermediate_size)
        for kind, count, shape in (*_attention(config), *ffn):
            yield f"layers.{layer}.{kind}", kind, count, shape
    yield "norm", "norm", 1, (d,)
    yield "head", "head", 1, (vocabulary, d)


def _attention(config: ModelConfig) -> Iterator[tuple[str, int, Shape]]:
    assert config.kv_lora_rank is not None
    d, heads, rank = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
    queries, values = heads * config.qk_head_dim, heads * config.v_head_dim
    yield "input_norm", 1, (d,)
    if config.q_lora_rank is None:
        yield "q", 1, (queries, d)
    else:
        yield "q_a", 1, (config.q_lora_rank, d)
        yield "q_a_norm", 1, (config.q_lora_rank,)
        yield "q_b", 1, (queries, config.q_lora_rank)
    yield "kv_a", 1, (config.cache_row, d)
    yield "kv_a_norm", 1, (rank,)
    yield "k_b", heads, (rank, config.qk_nope_head_dim)
    yield "v_b", heads, (config.v_head_dim, rank)
    yield "o", 1, (d, values)
    if config.attention_bias:
        if config.q_lora_rank is not None:
            yield "q_a_bias", 1, (config.q_lora_rank,)
        yield "kv_a_bias", 1, (config.cache_row,)
        yield "o_bias", 1, (d,)
    yield "post_norm", 1, (d,)


def _moe(config: ModelConfig) -> Iterator[tuple[str, int, Shape]]:
    assert config.n_routed_experts is not None
    yield "router", 1, (config.n_routed_experts, config.hidden_size)
    yield from _mlp("experts_", config.hidden_size, config.moe_intermediate_size, config.n_routed_experts)
    if config.n_shared_experts:
        yield from _mlp("shared_", config.hidden_size, config.moe_intermediate_size * config.n_shared_experts)


def _mlp(prefix: str, hidden: int, inner: int, count: int = 1) -> Iterator[tuple[str, int, Shape]]:
    """Gate and up take turns, each padded to whole panels."""
    yield f"{prefix}gate_up", count, (2 * (-(-inner // PANEL) * PANEL), hidden)
    yield f"{prefix}down", count, (hidden, inner)


# ---- from the hub's tensors, and back ------------------------------------------------------------------------------


def pieces(name: str, weight: Tensor, config: ModelConfig) -> Iterator[Piece]:
    """What a tensor of the hub is made into. A tied head is the embedding's only copy."""
    if name in _TOP:
        tied = config.tie_word_embeddings and name == "model.embed_tokens.weight"
        yield Piece("head" if tied else _TOP[name], weight)
        return
    match = _LAYER.fullmatch(name)
    assert match is not None, name
    layer, rest = f"layers.{match.group(1)}", match.group(2)
    expert = _EXPERT.fullmatch(rest)
    if expert is not None:
        index, kind = int(expert.group(1)), expert.group(2)
        turn = {"gate": 0, "up": 1, "down": None}[kind]
        yield Piece(f"{layer}.experts_{'down' if turn is None else 'gate_up'}", weight, index, turn)
    elif rest == "self_attn.kv_b_proj.weight":
        for head, w_XC in enumerate(weight.unflatten(0, (config.num_attention_heads, -1))):
            yield Piece(f"{layer}.k_b", w_XC[: config.qk_nope_head_dim].T.contiguous(), head)
            yield Piece(f"{layer}.v_b", w_XC[config.qk_nope_head_dim :].contiguous(), head)
    elif rest in _PAIRS:
        kind, turn = _PAIRS[rest]
        yield Piece(f"{layer}.{kind}", weight, 0, turn)
    else:
        yield Piece(f"{layer}.{_PLAIN[rest]}", weight)


def place(block: Tensor, region: Region, piece: Piece, packed: Packed, first_row: int = 0) -> None:
    """Copy a packed piece, or its rows from `first_row` on, to where they belong in the block."""
    assert region.layout is not None
    size, panel_bytes = region.layout.nbytes, region.layout.panel_bytes
    start = region.offset + piece.index * size
    panels: Tensor = block[start : start + size].view(-1, panel_bytes)
    if piece.turn is not None:
        panels = panels.view(-1, 2, panel_bytes)[:, piece.turn]
    first = first_row // PANEL
    panels[first : first + packed.layout.panels] = packed.data.view(-1, panel_bytes)


def originals(weights: Weights, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """The hub's tensors out of the regions, dequantised to float32, one at a time."""
    yield "model.embed_tokens.weight", _plain(weights["head" if config.tie_word_embeddings else "embed"])
    yield "model.norm.weight", _plain(weights["norm"])
    if not config.tie_word_embeddings:
        yield "lm_head.weight", _plain(weights["head"])
    for layer in range(config.num_hidden_layers):
        yield from layer_originals(weights, config, layer)


def layer_originals(weights: Weights, config: ModelConfig, layer: int) -> Iterator[tuple[str, Tensor]]:
    mine, theirs = f"layers.{layer}.", f"model.layers.{layer}."
    for rest, kind in _PLAIN.items():
        if (entry := weights.get(mine + kind)) is not None:
            yield theirs + rest, _plain(entry)
    yield f"{theirs}self_attn.kv_b_proj.weight", _kv_b(weights[f"{mine}k_b"], weights[f"{mine}v_b"])
    for prefix, kind, inner in (
        ("mlp.", "gate_up", config.intermediate_size),
        ("mlp.shared_experts.", "shared_gate_up", config.moe_intermediate_size * config.n_shared_experts),
    ):
        if (entry := weights.get(mine + kind)) is not None:
            gate, up = deinterleave(_plain(entry), inner)
            yield f"{theirs}{prefix}gate_proj.weight", gate
            yield f"{theirs}{prefix}up_proj.weight", up
    if f"{mine}experts_down" in weights:
        yield from _expert_originals(weights, config, mine, theirs)


def _expert_originals(weights: Weights, config: ModelConfig, mine: str, theirs: str) -> Iterator[tuple[str, Tensor]]:
    gate_ups, downs = weights[f"{mine}experts_gate_up"], weights[f"{mine}experts_down"]
    assert isinstance(gate_ups, Packed)
    assert isinstance(downs, Packed)
    for expert in range(gate_ups.count):
        gate, up = deinterleave(unpack(gate_ups.part(expert)), config.moe_intermediate_size)
        prefix = f"{theirs}mlp.experts.{expert}."
        yield f"{prefix}gate_proj.weight", gate
        yield f"{prefix}up_proj.weight", up
        yield f"{prefix}down_proj.weight", unpack(downs.part(expert))


def _kv_b(k_b: Packed | Tensor, v_b: Packed | Tensor) -> Tensor:
    k_HCN, v_HVC = _stack(k_b), _stack(v_b)
    return torch.cat((k_HCN.transpose(1, 2), v_HVC), dim=1).flatten(0, 1)


def _stack(entry: Packed | Tensor) -> Tensor:
    plain = _plain(entry)
    return plain if plain.dim() == 3 else plain[None]


def _plain(entry: Packed | Tensor) -> Tensor:
    return unpack(entry) if isinstance(entry, Packed) else entry.float()
