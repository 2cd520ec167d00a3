"""A model in fewer bits, before anything is loaded: what every recipe takes, and which fit where the whole does not.

Only the CPU kernels run weights in their bits; elsewhere they are dequantised and take what the original takes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from leadline.checkpoint.machine import Machine, show_bytes
from leadline.checkpoint.pack import read_bytes
from leadline.checkpoint.plan import Plan, make_plan
from leadline.checkpoint.quantised import is_quantised, read_manifest
from leadline.checkpoint.recipes import RECIPES, Recipe, check_recipe
from leadline.checkpoint.regions import regions, total_bytes
from leadline.checkpoint.source import Folder, Source
from leadline.model.config import ModelConfig


def recipe_of(source: Source | None, config: ModelConfig) -> Recipe | None:
    """What a folder here was quantised by; asks no hub."""
    if isinstance(source, Folder) and is_quantised(source.path):
        return read_manifest(source.path, config).recipe
    return None


def packed_bytes(config: ModelConfig, recipe: Recipe) -> tuple[int, int]:
    """All weights, and what a token reads of them."""
    found = regions(config, recipe)
    return total_bytes(found), read_bytes(found, config)


def plans(plan: Plan, config: ModelConfig, machine: Machine, **options: Any) -> dict[Recipe, Plan]:
    """The same plan in every recipe, the most bits first; none off the CPU and for models without latents. `options`
    are those of `make_plan` that `plan` was made with."""
    if plan.device != "cpu" or not config.is_mla:
        return {}
    sizes = {check_recipe(name): packed_bytes(config, check_recipe(name)) for name in RECIPES}
    order = sorted(sizes, key=lambda recipe: sizes[recipe], reverse=True)
    return {recipe: make_plan(config, machine, **options, packed=sizes[recipe], recipe=recipe) for recipe in order}


def advise(plan: Plan, others: Mapping[Recipe, Plan]) -> Plan:
    """The plan, whose problem, if it has one, ends with the recipes that fit."""
    fitting = [
        f"--quantize {recipe} fits: a context of {other.context_length:,} in {show_bytes(other.total_bytes)}"
        for recipe, other in others.items()
        if other.fits
    ]
    if plan.problem is None or not fitting:
        return plan
    return dataclasses.replace(plan, problem="; ".join((plan.problem, *fitting)))
