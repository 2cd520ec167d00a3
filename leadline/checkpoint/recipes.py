"""Recipes: in how many bits each matrix of a model is kept.

    int8    everything in 8 bits
    int4    4 bits, but 8 for what compresses to the latent and what expands it, which every later token reads
    mixed   4 bits for the routed experts; 8 for what every token meets: attention, first layer, shared experts, head,
            and the down projections of the first and the last MoE layer

The gate stays float32 in all of them: its smallest difference changes who computes. Norms and biases are float32.

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
_EMBED_SHARE = 0.1  # of the parameters: a smaller embedding is kept in bf16, whose rows are read where they lie


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
        embedding = config.vocab_size * config.hidden_size
        return _eight(columns) if embedding > _EMBED_SHARE * config.parameters() else Choice("bf16")
    if recipe == "int8" or kind in _LATENT:
        return _eight(columns)
    if recipe == "mixed" and not _may_be_four(kind, layer, config):
        return _eight(columns)
    return Choice("int4", 32)


def _may_be_four(kind: str, layer: int | None, config: ModelConfig) -> bool:
    moe = [i for i in range(config.num_hidden_layers) if config.is_moe_layer(i)]
    return kind in _ROUTED and not (kind == "experts_down" and layer in (moe[0], moe[-1]))


def _eight(columns: int) -> Choice:
    return Choice("int8", 64 if columns % 64 == 0 else 32)
