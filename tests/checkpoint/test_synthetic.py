"""Random weights that stand in for a checkpoint's."""

from __future__ import annotations

import dataclasses

import pytest

from leadline.checkpoint.recipes import Recipe
from leadline.checkpoint.regions import originals
from leadline.checkpoint.synthetic import random_regions
from leadline.model.config import PRESETS

CONFIG = dataclasses.replace(PRESETS["small"], num_hidden_layers=2)


@pytest.mark.parametrize("recipe", ["int4", "int8"])
def test_random_weights_have_the_deviation_asked_for_and_no_mean(recipe: Recipe) -> None:
    """A mean adds up over a row: a few layers on, all tokens would look alike."""
    found = random_regions(CONFIG, recipe, std=0.05)
    matrices = {name: weight.float() for name, weight in originals(found, CONFIG) if weight.dim() == 2}
    projections = {name: weight for name, weight in matrices.items() if "proj" in name and "expert" not in name}
    assert len(projections) >= 6
    for name, weight in projections.items():
        assert abs(weight.mean()) < 0.02 * 0.05, name
        assert weight.std() == pytest.approx(0.05, rel=0.1), name
