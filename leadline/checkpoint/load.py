"""From what a user typed to a model that can run: find, plan, check, download, load, in that order.

Invariant: nothing large is downloaded or allocated before the plan says that it fits.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from leadline.checkpoint.generation import GenerationConfig, read_generation_config
from leadline.checkpoint.machine import Machine, parse_bytes, read_machine
from leadline.checkpoint.plan import BATCHED_TOKENS, Plan, make_plan, require
from leadline.checkpoint.quality import fill_parameters
from leadline.checkpoint.quantise import pack_folder
from leadline.checkpoint.quantised import Placement, is_quantised, load_block
from leadline.checkpoint.recipes import check_recipe
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


def load_model(
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
    placement: Placement = "auto",
    progress: bool | None = None,
) -> LoadedModel:
    """Load a folder, a hub id (`org/name`, `modelscope:org/name`) or, for None, the model that ships with leadline.

    `max_model_len` None is the longest context that fits, at most the advertised one. `max_memory` bounds weights,
    cache and activations together. `quantize` is a recipe (int8, int4, mixed) for weights that are not quantised;
    `placement` says whether a quantised folder's are mapped or copied. Raises `CheckpointError`, `TokenizerError`,
    `ModelNotFound` or `ResourceError`.
    """
    source = find_source(model)
    config = source.read_config()
    plan = require(
        make_plan(
            config,
            usable_machine(),
            name=source.name,
            reference=source.reference,
            device=device,
            dtype=dtype,
            cache_dtype=cache_dtype,
            context=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_memory=None if max_memory is None else parse_bytes(max_memory),
        )
    )
    recipe = None if quantize is None else check_recipe(quantize)
    folder = source.fetch(progress=progress)
    if recipe is not None and is_quantised(folder):
        raise ConfigError(f"{folder} is quantised already; leave --quantize out", param="quantize")
    tokenizer = Tokenizer.from_folder(folder)
    check_vocabulary(folder, config, tokenizer)
    generation = read_generation_config(folder).with_eos(tokenizer.eos_id)
    with torch.device("meta"):
        empty = DeepseekV2(config)
    kind, where = getattr(torch, plan.dtype), torch.device(plan.device)
    if is_quantised(folder):
        weights, _ = load_block(folder, config, placement)
        loaded = dequantise(empty, weights, kind, where)
    elif recipe is not None:
        loaded = dequantise(empty, pack_folder(folder, config, recipe, progress=progress), kind, where)
    else:
        loaded = load_weights(empty, folder, dtype=kind, device=where, progress=progress)
    loaded.eval().requires_grad_(False)
    return LoadedModel(loaded, config, tokenizer, generation, source.name, folder, plan)


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
