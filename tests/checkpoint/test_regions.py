"""Regions: the whole model once, on cache lines, and every tensor of the hub's back out of them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leadline.checkpoint.pack import Packer, active_bits, bits_per_weight
from leadline.checkpoint.quantised import views
from leadline.checkpoint.recipes import RECIPES, Recipe, check_recipe, choose
from leadline.checkpoint.regions import originals, regions, total_bytes
from leadline.errors import CheckpointError, ConfigError
from leadline.model.config import V2, V2_LITE
from leadline.ops.cpu.layout import LINE, Packed
from leadline.ops.cpu.memory import allocate
from tests.fixtures import TINY_LITE, TINY_V2, random_tensors
from tests.model.dense import TINY_GQA

TIED = dataclasses.replace(TINY_LITE, tie_word_embeddings=True)
BIASED = dataclasses.replace(TINY_V2, attention_bias=True)
CONFIGS = {"lite": TINY_LITE, "v2": TINY_V2, "tied": TIED, "biased": BIASED}
each_recipe = pytest.mark.parametrize("recipe", RECIPES)


@each_recipe
@pytest.mark.parametrize("name", [*CONFIGS, "V2", "V2-Lite"])
def test_regions_lie_side_by_side_on_cache_lines(name: str, recipe: Recipe) -> None:
    config = {**CONFIGS, "V2": V2, "V2-Lite": V2_LITE}[name]
    position = 0
    for region in regions(config, recipe).values():
        assert region.offset == position
        assert region.size % LINE == 0
        assert 0 <= region.size - region.nbytes < LINE
        position += region.size
    assert position == total_bytes(regions(config, recipe))


@each_recipe
def test_every_parameter_is_there_once(recipe: Recipe) -> None:
    for config in (V2, V2_LITE):  # whose widths need no pads
        assert sum(region.parameters for region in regions(config, recipe).values()) == config.parameters()


@each_recipe
@pytest.mark.parametrize("name", CONFIGS)
def test_the_hubs_tensors_come_back(name: str, recipe: Recipe) -> None:
    config = CONFIGS[name]
    tensors = random_tensors(config)
    found = regions(config, recipe)
    block = allocate(total_bytes(found))
    packer = Packer(config, recipe, block)
    for each in reversed(tensors):  # in any order
        packer.add(each, tensors[each])
    back = dict(originals(views(block, found), config))
    assert back.keys() == tensors.keys()
    for each, tensor in tensors.items():
        exact = tensor.float()
        limit = 0.0 if exact.dim() == 1 or ".mlp.gate." in each else 0.15
        assert back[each].shape == exact.shape
        assert float((back[each] - exact).norm()) <= limit * float(exact.norm()), each


@each_recipe
def test_a_layers_experts_and_heads_lie_where_the_kernels_look(recipe: Recipe) -> None:
    entries = views(torch.zeros(total_bytes(regions(TINY_V2, recipe)), dtype=torch.uint8), regions(TINY_V2, recipe))
    for name, count, rows, columns in (
        ("layers.1.experts_gate_up", 8, 64, 64),
        ("layers.1.experts_down", 8, 64, 32),
        ("layers.1.shared_gate_up", 1, 128, 64),
        ("layers.0.gate_up", 1, 192, 64),
        ("layers.2.k_b", 4, 16, 16),
        ("layers.2.v_b", 4, 12, 16),
        ("layers.1.router", 1, 8, 64),
    ):
        entry = entries[name]
        assert isinstance(entry, Packed)
        assert (entry.count, entry.layout.rows, entry.layout.columns) == (count, rows, columns)


def test_the_recipes_bits() -> None:
    """At most 4.8 bits of what a token reads is what the speed of int4 is told at."""
    active = {recipe: active_bits(regions(V2_LITE, check_recipe(recipe)), V2_LITE) for recipe in RECIPES}
    assert active["int4"] == pytest.approx(4.61, abs=0.01)
    assert active["int8"] == pytest.approx(9.04, abs=0.01)
    assert active["int4"] < active["mixed"] < active["int8"]
    assert bits_per_weight(regions(V2_LITE, "int4")) == pytest.approx(4.46, abs=0.01)


@given(columns=st.sampled_from([32, 64, 96, 2048, 1408, 10944]), layer=st.integers(0, 26))
def test_the_gate_is_float32_and_the_latents_have_eight_bits(columns: int, layer: int) -> None:
    found = regions(V2_LITE, "int4")
    for kind in ("kv_a", "k_b", "v_b"):
        assert choose("int4", kind, layer, columns, V2_LITE).format == "int8"
        assert choose("int8", kind, layer, columns, V2_LITE).format == "bf16"
    if layer:
        router = found[f"layers.{layer}.router"].layout
        assert router is not None
        assert router.format == "f32"


def test_mixed_keeps_what_every_token_meets() -> None:
    formats = {name: region.layout.format for name, region in regions(V2_LITE, "mixed").items() if region.layout}
    four = {name for name, format in formats.items() if format == "int4"}
    assert four == {f"layers.{i}.experts_gate_up" for i in range(1, 27)} | {
        f"layers.{i}.experts_down" for i in range(2, 26)
    }


def test_what_cannot_be_quantised_says_so() -> None:
    with pytest.raises(CheckpointError, match="latent attention"):
        regions(TINY_GQA, "int8")
    with pytest.raises(ConfigError, match="recipe 'q4'"):
        check_recipe("q4")


def test_the_embedding_is_stored_in_bfloat16_whatever_the_recipe() -> None:
    for config in (TINY_LITE, V2_LITE, V2):
        for recipe in RECIPES:
            embed = regions(config, check_recipe(recipe))["embed"]
            assert (embed.layout, embed.dtype) == (None, "bfloat16")
