"""Tiny models bound to the kernels beside the PyTorch models that they must equal."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from leadline.checkpoint.load import dequantise
from leadline.checkpoint.recipes import Recipe
from leadline.checkpoint.synthetic import random_regions
from leadline.engine.bind import from_regions
from leadline.model.batch import ForwardBatch
from leadline.model.cache import PagedCache, latent_format
from leadline.model.config import ModelConfig
from leadline.model.cpu import CpuModel
from leadline.model.packed import pack_model
from leadline.model.transformer import DeepseekV2
from tests.engine.models import random_model
from tests.fixtures import TINY_LITE, TINY_V2

CONFIGS = {"v2": TINY_V2, "lite": TINY_LITE}


def exact_pair(config: ModelConfig, **options: int | str) -> tuple[CpuModel, DeepseekV2]:
    model = random_model(config)
    return CpuModel(config, pack_model(model), dtype=torch.float32, **options), model  # type: ignore[arg-type]


def quantised_pair(config: ModelConfig, recipe: Recipe, **options: int | str) -> tuple[CpuModel, DeepseekV2]:
    """Random weights of a recipe, and the PyTorch model of their dequantised values."""
    weights = random_regions(config, recipe, std=0.15)
    with torch.device("meta"):
        empty = DeepseekV2(config)
    reference = dequantise(empty, weights, torch.float32, torch.device("cpu")).eval().requires_grad_(False)
    return CpuModel(config, from_regions(weights), dtype=torch.float32, **options), reference  # type: ignore[arg-type]


def everywhere(config: ModelConfig) -> ModelConfig:
    """The same with every expert chosen, so that rounding cannot change the choice."""
    assert config.n_routed_experts is not None
    return dataclasses.replace(config, num_experts_per_tok=config.n_routed_experts, topk_method="greedy")


def new_cache(config: ModelConfig, pages: int = 16, kind: str = "float32") -> PagedCache:
    packed = latent_format(config, kind)
    dtype = torch.uint8 if packed is not None else getattr(torch, kind)
    return PagedCache(config, pages, dtype=dtype, format=packed)


def tokens_of(config: ModelConfig, count: int, seed: int = 0) -> Tensor:
    return torch.randint(0, config.vocab_size, (count,), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def run(
    model: CpuModel | DeepseekV2, cache: PagedCache, ids_T: Tensor, computed: list[int], lengths: list[int],
    tables: list[list[int]],
) -> Tensor:  # fmt: skip
    """The logits of every token of one pass, a copy."""
    output = model(ids_T, ForwardBatch.paged(cache, computed, lengths, tables))
    logits: Tensor = output.logits.clone()
    return logits
