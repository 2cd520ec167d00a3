"""From a folder or a hub id to an engine that is ready: the one place where checkpoints meet the engine."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from leadline.checkpoint.fingerprint import fingerprint
from leadline.checkpoint.generation import GenerationConfig
from leadline.checkpoint.load import find_model
from leadline.checkpoint.machine import parse_bytes
from leadline.checkpoint.plan import Plan
from leadline.checkpoint.quantised import Placement
from leadline.engine.bind import UNBOUND_CACHES, bind
from leadline.engine.engine import Engine, EngineConfig
from leadline.engine.grammar import GrammarProvider
from leadline.engine.scheduler import SchedulerConfig
from leadline.engine.store import LIMIT_BYTES, TTL_SECONDS, default_root
from leadline.errors import ConfigError
from leadline.ops.cpu import native
from leadline.tokenizer import Tokenizer

DAY = 24 * 3600.0


@dataclasses.dataclass(frozen=True)
class LoadedEngine:
    """An engine and what its users need besides it."""

    engine: Engine
    tokenizer: Tokenizer
    generation: GenerationConfig
    folder: Path
    plan: Plan


def load_engine(
    model: str | Path | None = None,
    *,
    dtype: str = "auto",
    device: str = "auto",
    max_model_len: int | None = None,
    max_memory: str | int | None = None,
    max_num_seqs: int = 32,
    max_num_batched_tokens: int = 1024,
    max_waiting: int = 1024,
    kv_cache_dtype: str = "auto",
    quantize: str | None = None,
    placement: Placement = "auto",
    isa: str | None = None,
    enable_prefix_caching: bool = True,
    name: str | None = None,
    progress: bool | None = None,
    disk_cache: bool = False,
    disk_cache_size: str | int = LIMIT_BYTES,
    disk_cache_days: float = TTL_SECONDS / DAY,
    disk_cache_folder: Path | None = None,
) -> LoadedEngine:
    """Load `model` (None: the embedded one) and give it the cache that its plan says. Names are vLLM's.

    On a CPU the model runs on leadline's own kernels where they are built and can run it; `isa` names an instruction
    set, or none for PyTorch.

    With `disk_cache` full pages of prompts and answers are kept in a folder, so that what was computed by an earlier
    process need not be computed again: at most `disk_cache_size`, none unused for `disk_cache_days`.
    """
    disk_cache_size = parse_bytes(disk_cache_size)
    if disk_cache_days <= 0:
        raise ConfigError(f"disk_cache_days must be positive, not {disk_cache_days}")
    scheduler = SchedulerConfig(max_num_seqs, max_num_batched_tokens, max_waiting)
    loaded = find_model(
        model,
        dtype=dtype,
        device=device,
        max_model_len=max_model_len,
        max_memory=max_memory,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        cache_dtype=kv_cache_dtype,
        quantize=quantize,
        in_kernel_layout=native.choose(isa) is not None and kv_cache_dtype not in UNBOUND_CACHES,
        progress=progress,
    )
    config = EngineConfig(
        name=name or loaded.name,
        max_model_len=loaded.plan.context_length,
        cache_tokens=loaded.plan.cache_tokens,
        cache_dtype=loaded.plan.cache_dtype,
        prefix_cache=enable_prefix_caching,
        weights=f"{fingerprint(loaded.folder)} {quantize}",
        scheduler=scheduler,
    )
    eos_ids = loaded.generation.eos_token_ids
    grammars = GrammarProvider(loaded.tokenizer, eos_ids or ())
    runs = bind(loaded, isa=isa, placement=placement, progress=progress)
    engine = Engine(runs, loaded.tokenizer, config, eos_ids=eos_ids, constraints=grammars)
    if disk_cache and enable_prefix_caching:
        engine.keep_pages(disk_cache_folder or default_root(), limit=disk_cache_size, ttl=disk_cache_days * DAY)
    engine.warm_up()
    return LoadedEngine(engine, loaded.tokenizer, loaded.generation, loaded.folder, loaded.plan)
