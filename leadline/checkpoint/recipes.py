"""Recipes: in how many bits each matrix of a model is kept.

    int8    8 bits in groups of 32; bfloat16 for the first layer and the latents' matrices
    int4    4 bits, in groups of 64 for the experts; 8 for the first layer and the latents' matrices
    mixed   4 bits for the routed experts; 8 for what every token meets: attention, first layer, shared experts, head,
            and the down projections of the first and the last MoE layer

The first layer's errors go through all others; what compresses to the latent (kv_a) and expands it (k_b, v_b) is read
by every later token. Both are small: 3.3% and 3.6% of what V2-Lite reads for a token. A matrix in bfloat16 also meets
its inputs unrounded, and in 8 bits it is the inputs' rounding that costs more. The gate stays float32 in all of them:
its smallest difference changes who computes. Norms and biases are float32; the embedding, of which a token reads one
row, is bfloat16.

Invariant: a recipe says the same for a kind and a layer whatever the weights. No torch here.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from leadline.errors import ConfigError
from leadline.model.config import ModelConfig

Recipe = Literal["int8", "int4", "mixed"]
RECIPES: tuple[str, ...] = get_args(Recipe)
Stored = Literal["int8", "int4", "bf16"]

_LATENT = ("kv_a", "k_b", "v_b")
_ROUTED = ("experts_gate_up", "experts_down")
_SHARED = ("shared_gate_up", "shared_down")


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """`group` columns share a scale; 0 where there are none."""

    format: Stored
    group: int = 0


def check_recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise ConfigError(f"recipe {name!r} is not one of {', '.join(RECIPES)}", param="quantize")
    return name  # type: ignore[return-value]


def choose(recipe: Recipe, kind: str, layer: int | None, columns: int, config: ModelConfig) -> Choice:
    """How the matrices of a kind (`leadline.checkpoint.regions`) are stored in this layer."""
    if kind == "embed":
        return Choice("bf16")
    sensitive = kind in _LATENT or layer == 0
    if recipe == "int8":
        return Choice("bf16") if sensitive else Choice("int8", 32)
    if sensitive:
        return _eight(columns)
    if recipe == "mixed" and not _may_be_four(kind, layer, config):
        return _eight(columns)
    wide = recipe == "int4" and kind in (*_ROUTED, *_SHARED) and columns % 64 == 0
    return Choice("int4", 64 if wide else 32)


def _may_be_four(kind: str, layer: int | None, config: ModelConfig) -> bool:
    moe = [i for i in range(config.num_hidden_layers) if config.is_moe_layer(i)]
    return kind in _ROUTED and not (kind == "experts_down" and layer in (moe[0], moe[-1]))


def _eight(columns: int) -> Choice:
    return Choice("int8", 64 if columns % 64 == 0 else 32)
