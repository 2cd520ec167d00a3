"""`leadline plan`: what a model needs and what fits here, from its config.json alone."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from leadline.checkpoint.folder import MANIFEST
from leadline.checkpoint.machine import check_space, measure_bandwidth, parse_bytes, read_machine, show_bytes
from leadline.checkpoint.plan import Plan, make_plan, require
from leadline.checkpoint.source import Folder, Source, find_source
from leadline.model.config import DTYPE_BYTES, PRESETS, ModelConfig

if TYPE_CHECKING:
    from leadline.checkpoint.recipes import Recipe

LARGE = 1 << 30  # bytes of weights from which fewer bits are worth a line
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
    quantize: Literal["int8", "int4", "mixed"] | None = None,
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
        quantize: Plan it in 8 or 4 bits; of a model that has more, all three are listed.
        kv_cache_dtype: How the cache stores a token's latents; auto is the weights' type.
        max_memory: What weights, cache and activations may take together, as 8GiB or 500MB; what is free by default.
        max_model_len: Tokens of context wanted; by default what fits, at most what the model was released with.
        concurrency: Sequences of that length at the same time.
        bandwidth: The memory's bandwidth in GB/s; measured on a CPU, from the maker's sheet on a GPU.
        json_output: Print one JSON object.
    """
    config, name, source = _find(model)
    options: dict[str, Any] = {
        "name": name,
        "reference": None if source is None else source.reference,
        "device": device,
        "dtype": dtype,
        "cache_dtype": kv_cache_dtype,
        "context": max_model_len,
        "concurrency": concurrency,
        "max_memory": None if max_memory is None else parse_bytes(max_memory),
        "bandwidth": None if bandwidth is None else bandwidth * 1e9,
    }
    result, others = _plans(config, source, quantize, options)
    download_folder = _download_folder(source, quantize)
    disk = _disk_bytes(config, quantize)
    if json_output:
        more = {"fewer_bits": {name: other.to_dict() for name, other in others.items()}} if others else {}
        print(json.dumps({**result.to_dict(), **more}, indent=2))
    else:
        for label, value in (
            *_rows(result),
            *_other_rows(others),
            *_disk_rows(disk, config, quantize, download_folder),
        ):
            print(f"{label:<13} {value}")
    sys.stdout.flush()  # before the error that may follow on the other stream
    require(result)
    if download_folder is not None:
        check_space(download_folder, disk)


def _plans(
    config: ModelConfig, source: Source | None, quantize: Recipe | None, options: dict[str, Any]
) -> tuple[Plan, dict[Recipe, Plan]]:
    """The plan, in the recipe that was asked for or that the folder has; without one, of a large model or one that does
    not fit, the plans of all recipes too, which its problem then names."""
    machine = read_machine()
    plan = make_plan(config, machine, **options)
    quantised = isinstance(source, Folder) and (source.path / MANIFEST).is_file()
    if plan.bandwidth is None and plan.device == "cpu":
        options = {**options, "bandwidth": measure_bandwidth()}
        plan = dataclasses.replace(plan, bandwidth=options["bandwidth"])
    wanted = quantize is not None or quantised or not plan.fits or plan.weight_bytes >= LARGE
    if not wanted or not _runs_in_fewer_bits(plan):
        return plan, {}
    from leadline.checkpoint import fewer_bits

    others = fewer_bits.plans(plan, config, machine, **options)
    recipe = fewer_bits.recipe_of(source, config) or quantize
    if recipe in others:
        return others[recipe], {}
    return fewer_bits.advise(plan, others), others


def _runs_in_fewer_bits(plan: Plan) -> bool:
    """Whether there are kernels for it; without torch there are none."""
    if plan.device != "cpu" or importlib.util.find_spec("torch") is None:
        return False
    from leadline.engine.bind import UNBOUND_CACHES
    from leadline.ops.cpu import native

    return native.choose() is not None and plan.cache_dtype not in UNBOUND_CACHES


def _find(model: str | None) -> tuple[ModelConfig, str, Source | None]:
    """Its configuration and name, and where it is; a preset is nowhere."""
    if model in PRESETS and not Path(model).is_dir():
        return PRESETS[model], PUBLISHED.get(model, model), None
    source = find_source(model)
    return source.read_config(), source.name, source


def _download_folder(source: Source | None, quantize: Recipe | None) -> Path | None:
    """Where a download would go; None for what is here already."""
    if source is None or source.download_folder is None or quantize is None:
        return None if source is None else source.download_folder
    from leadline.checkpoint.pull import quantised_folder

    return quantised_folder(source.name, quantize)


def _disk_bytes(config: ModelConfig, quantize: Recipe | None) -> int:
    """What stays on the disk of a model that is downloaded, whatever it then runs in."""
    if quantize is None:
        return config.parameters() * DTYPE_BYTES[config.dtype]
    from leadline.checkpoint.fewer_bits import packed_bytes

    return packed_bytes(config, quantize)[0]


def _rows(plan: Plan) -> Iterator[tuple[str, str]]:
    yield "model", f"{plan.name}, {plan.parameters:,} parameters, {plan.active_parameters:,} active"
    yield "device", f"{plan.device}, {plan.budget:,} bytes usable ({plan.budget_reason})"
    yield "weights", f"{plan.weight_bytes:,} bytes in {plan.weight_format} ({show_bytes(plan.weight_bytes)})"
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
        yield "decode", f"about {_rate(plan.tokens_per_second)} tokens/s{full}, at {plan.bandwidth / 1e9:,.0f} GB/s"


def _rate(tokens_per_second: float) -> str:
    return f"{tokens_per_second:,.0f}" if tokens_per_second >= 10 else f"{tokens_per_second:.2g}"


def _other_rows(others: dict[Recipe, Plan]) -> Iterator[tuple[str, str]]:
    for recipe, plan in others.items():
        context = f"context {plan.context_length:,}" if plan.fits else "does not fit"
        speed = f", about {_rate(plan.tokens_per_second)} tokens/s" if plan.tokens_per_second else ""
        yield f"in {recipe}", f"weights {show_bytes(plan.weight_bytes)}, {context}{speed}: --quantize {recipe}"


def _disk_rows(
    needed: int, config: ModelConfig, quantize: Recipe | None, download_folder: Path | None
) -> Iterator[tuple[str, str]]:
    if download_folder is None:
        return
    home = next(path for path in (download_folder, *download_folder.parents) if path.exists())
    free = show_bytes(shutil.disk_usage(home).free)
    if quantize is None:
        yield "download", f"{show_bytes(needed)} to {download_folder}, {free} free"
    else:
        whole = show_bytes(config.parameters() * DTYPE_BYTES[config.dtype])
        yield "download", f"{whole}, shard by shard; {show_bytes(needed)} stay in {download_folder}, {free} free"
