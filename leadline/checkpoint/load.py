"""From what a user typed to a model that can run: find, plan, check, download, load, in that order.

Invariant: nothing large is downloaded or allocated before the plan says that it fits.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from leadline.checkpoint import fewer_bits
from leadline.checkpoint.generation import GenerationConfig, read_generation_config
from leadline.checkpoint.machine import Machine, parse_bytes, read_machine
from leadline.checkpoint.plan import BATCHED_TOKENS, Plan, make_plan, require
from leadline.checkpoint.pull import Pulled, in_fewer_bits
from leadline.checkpoint.quality import fill_parameters
from leadline.checkpoint.quantise import pack_folder
from leadline.checkpoint.quantised import Placement, is_quantised, load_block
from leadline.checkpoint.recipes import Recipe, check_recipe
from leadline.checkpoint.regions import Weights, originals
from leadline.checkpoint.source import find_source
from leadline.checkpoint.weights import allocate, load_weights
from leadline.errors import CheckpointError, ConfigError
from leadline.model.config import ModelConfig
from leadline.model.transformer import DeepseekV2
from leadline.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """`name` is what an API lists the model as; `plan` says how much context and cache it may use here."""

    model: DeepseekV2
    config: ModelConfig
    tokenizer: Tokenizer
    generation: GenerationConfig
    name: str
    folder: Path
    plan: Plan

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        return self.model.device


@dataclasses.dataclass(frozen=True)
class FoundModel:
    """A model that fits and whose files are here, before its weights are read."""

    config: ModelConfig
    tokenizer: Tokenizer
    generation: GenerationConfig
    name: str
    folder: Path
    plan: Plan
    recipe: Recipe | None
    """What weights that are not quantised are quantised by."""


def load_model(
    model: str | Path | None = None,
    *,
    placement: Placement = "auto",
    progress: bool | None = None,
    **options: Any,
) -> LoadedModel:
    """Load a folder, a hub id (`org/name`, `modelscope:org/name`) or, for None, the model that ships with leadline, as
    a PyTorch model. The options are those of `find_model`; `placement` says whether a quantised folder's weights are
    mapped or copied. Raises `CheckpointError`, `TokenizerError`, `ModelNotFound` or `ResourceError`.
    """
    found = find_model(model, progress=progress, **options)
    loaded = torch_model(found, placement=placement, progress=progress)
    return LoadedModel(loaded, found.config, found.tokenizer, found.generation, found.name, found.folder, found.plan)


def find_model(
    model: str | Path | None = None,
    *,
    dtype: str = "auto",
    device: str = "auto",
    max_model_len: int | None = None,
    max_memory: str | int | None = None,
    max_num_seqs: int = 1,
    max_num_batched_tokens: int = BATCHED_TOKENS,
    cache_dtype: str = "auto",
    quantize: str | None = None,
    in_kernel_layout: bool = False,
    progress: bool | None = None,
) -> FoundModel:
    """Find, plan, check, download.

    `max_model_len` None is the longest context that fits, at most the advertised one. `max_memory` bounds weights,
    cache and activations together. `quantize` is a recipe (int8, int4, mixed) for weights that are not quantised.
    `in_kernel_layout`: quantised weights will run as they are, and only they need memory.
    """
    recipe = None if quantize is None else check_recipe(quantize)
    source = find_source(model)
    if recipe is not None:
        source = in_fewer_bits(source, recipe)
    config = source.read_config()
    options: dict[str, Any] = {
        "name": source.name,
        "reference": source.reference,
        "device": device,
        "dtype": dtype,
        "cache_dtype": cache_dtype,
        "context": max_model_len,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens,
        "max_memory": None if max_memory is None else parse_bytes(max_memory),
    }
    kept = fewer_bits.recipe_of(source, config) or recipe
    plan = require(_plan(config, kept if in_kernel_layout else None, options, advice=in_kernel_layout and kept is None))
    folder = source.fetch(progress=progress)
    if recipe is not None and is_quantised(folder) and not isinstance(source, Pulled):
        raise ConfigError(f"{folder} is quantised already; leave --quantize out", param="quantize")
    tokenizer = Tokenizer.from_folder(folder)
    check_vocabulary(folder, config, tokenizer)
    generation = read_generation_config(folder).with_eos(tokenizer.eos_id)
    return FoundModel(config, tokenizer, generation, source.name, folder, plan, recipe)


def _plan(config: ModelConfig, recipe: Recipe | None, options: dict[str, Any], *, advice: bool) -> Plan:
    """The plan of weights that run as they are in `recipe`, or plainly; with `advice` one that does not fit says in how
    many bits it would."""
    machine = usable_machine()
    packed = None if recipe is None else fewer_bits.packed_bytes(config, recipe)
    plan = make_plan(config, machine, **options, packed=packed, recipe=recipe)
    if plan.fits or not advice:
        return plan
    return fewer_bits.advise(plan, fewer_bits.plans(plan, config, machine, **options))


def torch_model(found: FoundModel, *, placement: Placement = "auto", progress: bool | None = None) -> DeepseekV2:
    """The model in PyTorch, in the plan's type and place; quantised weights are dequantised."""
    with torch.device("meta"):
        empty = DeepseekV2(found.config)
    kind, where = getattr(torch, found.plan.dtype), torch.device(found.plan.device)
    packed = packed_regions(found, placement=placement, progress=progress)
    if packed is not None:
        loaded = dequantise(empty, packed, kind, where)
    else:
        loaded = load_weights(empty, found.folder, dtype=kind, device=where, progress=progress)
    return loaded.eval().requires_grad_(False)


def packed_regions(found: FoundModel, *, placement: Placement = "auto", progress: bool | None = None) -> Weights | None:
    """The weights in kernel layout, where the folder is quantised or is to be; else None."""
    if is_quantised(found.folder):
        return load_block(found.folder, found.config, placement)[0]
    if found.recipe is not None:
        return pack_folder(found.folder, found.config, found.recipe, progress=progress)
    return None


def dequantise(model: DeepseekV2, weights: Weights, dtype: torch.dtype, device: torch.device) -> DeepseekV2:
    """Fill a model on the meta device with the values that quantised weights stand for."""
    allocate(model, dtype, device)
    with torch.no_grad():
        fill_parameters(dict(model.named_parameters()), originals(weights, model.config), model.config)
    return model


def usable_machine() -> Machine:
    """The machine as PyTorch can use it: a build without CUDA sees no GPU, whatever the driver lists."""
    machine = read_machine()
    return machine if torch.cuda.is_available() else dataclasses.replace(machine, gpus=())


def check_vocabulary(folder: Path, config: ModelConfig, tokenizer: Tokenizer) -> None:
    """A token without a row in the embedding would end the process when it is first typed."""
    if tokenizer.vocab_size > config.vocab_size:
        sizes = f"{tokenizer.vocab_size:,} tokens, the model {config.vocab_size:,} rows"
        raise CheckpointError(f"{folder / 'tokenizer.json'} is another model's: it has {sizes}")
