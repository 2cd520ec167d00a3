"""`leadline plan`: what a model needs and what fits here, from its config.json alone."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from leadline.checkpoint.machine import check_space, measure_bandwidth, parse_bytes, read_machine, show_bytes
from leadline.checkpoint.plan import Plan, make_plan, require
from leadline.checkpoint.source import Source, find_source
from leadline.model.config import DTYPE_BYTES, PRESETS, ModelConfig

# A preset is planned as the model that was published with its sizes.
PUBLISHED = {
    "v2": "deepseek-ai/DeepSeek-V2-Chat",
    "v2.5": "deepseek-ai/DeepSeek-V2.5",
    "v2-lite": "deepseek-ai/DeepSeek-V2-Lite-Chat",
}


def plan(
    model: str | None = None,
    *,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str = "auto",
    kv_cache_dtype: Literal["auto", "bf16", "int8", "6bit", "float32", "float16"] = "auto",
    max_memory: str | None = None,
    max_model_len: Annotated[int | None, Parameter(name=("--max-model-len", "--context"))] = None,
    concurrency: int = 1,
    bandwidth: float | None = None,
    json_output: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """What a model needs and what fits here, before anything is loaded.

    Args:
        model: A folder, a hub id (only its config.json is fetched), or v2, v2.5, v2-lite, small; the embedded model by
            default.
        dtype: The weights' type; auto is the model's own, float32 for a small model on a CPU.
        device: auto, cpu, cuda or cuda:N.
        kv_cache_dtype: How the cache stores a token's latents; auto is the weights' type.
        max_memory: What weights, cache and activations may take together, as 8GiB or 500MB; what is free by default.
        max_model_len: Tokens of context wanted; by default what fits, at most what the model was released with.
        concurrency: Sequences of that length at the same time.
        bandwidth: The memory's bandwidth in GB/s; measured on a CPU, from the maker's sheet on a GPU.
        json_output: Print one JSON object.
    """
    config, name, source = _find(model)
    download_folder = None if source is None else source.download_folder
    result = make_plan(
        config,
        read_machine(),
        name=name,
        reference=None if source is None else source.reference,
        device=device,
        dtype=dtype,
        cache_dtype=kv_cache_dtype,
        context=max_model_len,
        concurrency=concurrency,
        max_memory=None if max_memory is None else parse_bytes(max_memory),
        bandwidth=None if bandwidth is None else bandwidth * 1e9,
    )
    if result.bandwidth is None and result.device == "cpu":
        result = dataclasses.replace(result, bandwidth=measure_bandwidth())
    _print(result, config, download_folder, as_json=json_output)
    require(result)
    if download_folder is not None:
        check_space(download_folder, _download_bytes(config))


def _find(model: str | None) -> tuple[ModelConfig, str, Source | None]:
    """Its configuration and name, and where it is; a preset is nowhere."""
    if model in PRESETS and not Path(model).is_dir():
        return PRESETS[model], PUBLISHED.get(model, model), None
    source = find_source(model)
    return source.read_config(), source.name, source


def _download_bytes(config: ModelConfig) -> int:
    return config.parameters() * DTYPE_BYTES[config.dtype]


def _print(plan: Plan, config: ModelConfig, download_folder: Path | None, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(plan.to_dict(), indent=2))
    else:
        for label, value in (*_rows(plan), *_disk_rows(config, download_folder)):
            print(f"{label:<13} {value}")
    sys.stdout.flush()  # before the error that may follow on the other stream


def _rows(plan: Plan) -> Iterator[tuple[str, str]]:
    yield "model", f"{plan.name}, {plan.parameters:,} parameters, {plan.active_parameters:,} active"
    yield "device", f"{plan.device}, {plan.budget:,} bytes usable ({plan.budget_reason})"
    yield "weights", f"{plan.weight_bytes:,} bytes in {plan.dtype} ({show_bytes(plan.weight_bytes)})"
    yield "cache", f"{plan.cache_bytes_per_token:,} bytes a token in {plan.cache_dtype}"
    yield "activations", f"about {show_bytes(plan.activation_bytes)}"
    if plan.fits:
        sequences = f" x {plan.concurrency}" if plan.concurrency > 1 else ""
        yield "context", f"{plan.context_length:,}{sequences} tokens of {plan.advertised_context:,} advertised"
        yield "together", f"{plan.total_bytes:,} bytes ({show_bytes(plan.total_bytes)})"
    else:
        yield "context", f"does not fit; {plan.advertised_context:,} advertised"
    if plan.bandwidth and plan.tokens_per_second and plan.tokens_per_second_full:
        full = f", {_rate(plan.tokens_per_second_full)} with a full context" if plan.fits else ""
        yield "decode", f"at most {_rate(plan.tokens_per_second)} tokens/s{full}, at {plan.bandwidth / 1e9:,.0f} GB/s"


def _rate(tokens_per_second: float) -> str:
    return f"{tokens_per_second:,.0f}" if tokens_per_second >= 10 else f"{tokens_per_second:.2g}"


def _disk_rows(config: ModelConfig, download_folder: Path | None) -> Iterator[tuple[str, str]]:
    if download_folder is not None:
        home = next(path for path in (download_folder, *download_folder.parents) if path.exists())
        free = show_bytes(shutil.disk_usage(home).free)
        yield "download", f"{show_bytes(_download_bytes(config))} to {download_folder}, {free} free"
