"""An engine over random weights of a published shape, for measurements: no checkpoint, no tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from leadline.checkpoint.recipes import check_recipe
from leadline.checkpoint.synthetic import random_regions
from leadline.engine.bind import from_regions
from leadline.engine.engine import Engine, EngineConfig
from leadline.engine.scheduler import SchedulerConfig
from leadline.errors import ConfigError
from leadline.model.config import PRESETS
from leadline.model.cpu import CpuModel


class Numbers:
    """Stands where a tokenizer stands; token 7 is spelled <7>."""

    special_ids = control_ids = frozenset({0, 1})
    bos_id, eos_id = 0, 1

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def token_bytes(self, token_id: int) -> bytes:
        return b"<%d>" % token_id

    def encode(self, text: str) -> list[int]:
        return [int(part) for part in text.strip("<>").split("><") if part]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return b"".join(map(self.token_bytes, ids)).decode()


def synthetic_engine(
    shape: str,
    recipe: str,
    *,
    layers: int | None = None,
    isa: str | None = None,
    cache_tokens: int = 16384,
    max_num_seqs: int = 1,
    max_num_batched_tokens: int = 1024,
) -> Engine:
    """`shape` is a preset's name; `layers` takes a slice of it; the cache is bfloat16."""
    if shape not in PRESETS:
        raise ConfigError(f"shape {shape!r} is not one of {', '.join(PRESETS)}", param="shape")
    config = PRESETS[shape]
    if layers is not None:
        if not 1 <= layers <= config.num_hidden_layers:
            raise ConfigError(f"layers must be between 1 and {config.num_hidden_layers}, not {layers}", param="layers")
        config = dataclasses.replace(config, num_hidden_layers=layers)
    model = CpuModel(config, from_regions(random_regions(config, check_recipe(recipe))), isa=isa)
    options = EngineConfig(
        name=f"{shape} {recipe}, random weights" + (f", {layers} layers" if layers else ""),
        cache_tokens=cache_tokens,
        prefix_cache=False,
        scheduler=SchedulerConfig(max_num_seqs, max(max_num_batched_tokens, max_num_seqs)),
    )
    return Engine(model, Numbers(config.vocab_size), options)
