"""Checks of the folder's own weights: absorbed = expanded, cached = cold (section 2.1, appendix C).

The first layer's attention alone is read in float64, where both forms must agree to rounding: that fits nearly
everywhere. The whole model is run where the plan says that it fits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from leadline.checkpoint.folder import weight_entries
from leadline.checkpoint.machine import Machine, show_bytes
from leadline.checkpoint.plan import FREE_SHARE, make_plan
from leadline.checkpoint.verify.report import NotApplicable, expect
from leadline.checkpoint.weights import allocate, fill, load_weights
from leadline.model.attention import GroupedQueryAttention
from leadline.model.batch import ForwardBatch
from leadline.model.cache import PagedCache
from leadline.model.config import ModelConfig
from leadline.model.mla import MLA
from leadline.model.rope import RotaryEmbedding
from leadline.model.transformer import DeepseekV2

TOKENS = 100  # more than a page, so that a sequence crosses into its second
CHUNKS = ((100,), (1,) * 100, (64, 36), (63, 2, 35), (99, 1))
FAR = 30_000  # a position past the original length, where wrong scales and layouts show
EXACT = 1e-9  # of float64 results; angles are float32 in every form and cancel
LOGPROB_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
HALF_TOLERANCE = 0.25  # bfloat16 keeps 8 bits, and absorption rounds in other places

Attention = MLA | GroupedQueryAttention


def model_checks(
    config: ModelConfig, folder: Path, machine: Machine, *, whole: bool = True
) -> Iterator[tuple[str, Callable[[], str]]]:
    yield "absorbed = expanded", partial(absorbed_is_expanded, config, folder, machine)
    yield "cached = cold", partial(cached_is_cold, config, folder, machine)
    if whole:
        yield "whole model", partial(whole_model, config, folder, machine)


def first_attention(config: ModelConfig, folder: Path, machine: Machine) -> Attention:
    """Layer 0's attention with the folder's weights, in float64."""
    needed = config.attention_parameters() * 8
    if needed > machine.memory * FREE_SHARE:
        raise NotApplicable(f"one layer's attention needs {show_bytes(needed)} in float64")
    with torch.device("meta"):
        attention: Attention = MLA(config, 0) if config.is_mla else GroupedQueryAttention(config, 0)
    allocate(attention, torch.float64, torch.device("cpu"))
    _fill_module(attention, "model.layers.0.self_attn.", config, folder)
    return attention.eval()


def _fill_module(module: nn.Module, prefix: str, config: ModelConfig, folder: Path) -> None:
    parameters = {f"{prefix}{name}": parameter for name, parameter in module.named_parameters()}
    for entry in weight_entries(folder, config):
        if entry.name in parameters:
            with entry.path.open("rb", buffering=0) as file:
                fill(parameters[entry.name].detach(), entry, file, lambda done: None)


@torch.no_grad()
def absorbed_is_expanded(config: ModelConfig, folder: Path, machine: Machine) -> str:
    attention = first_attention(config, folder, machine)
    x_TD = _states(config)
    worst = 0.0
    for offset in (0, min(FAR, config.max_position_embeddings - TOKENS)):
        expanded = attention(x_TD, *_packed(config, offset))
        worst = max(worst, _difference(_paged(attention, x_TD, config, (TOKENS,), offset), expanded))
    expect(worst < EXACT, f"layer 0 differs by {worst:.1e} in float64")
    return f"layer 0 in float64, {TOKENS} tokens at positions 0 and {offset:,}: within {worst:.0e}"


@torch.no_grad()
def cached_is_cold(config: ModelConfig, folder: Path, machine: Machine) -> str:
    attention = first_attention(config, folder, machine)
    x_TD = _states(config)
    cold, worst = _paged(attention, x_TD, config, CHUNKS[0]), 0.0
    for chunks in CHUNKS[1:]:
        worst = max(worst, _difference(_paged(attention, x_TD, config, chunks), cold))
    expect(worst < EXACT, f"layer 0 in parts differs by {worst:.1e} in float64")
    return f"layer 0 in float64, split {len(CHUNKS) - 1} ways, token by token too: within {worst:.0e}"


def _states(config: ModelConfig) -> Tensor:
    return torch.randn(TOKENS, config.hidden_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _packed(config: ModelConfig, offset: int) -> tuple[object, ForwardBatch]:
    batch = ForwardBatch.packed([TOKENS], offset=offset)
    return RotaryEmbedding(config)(batch.positions), batch


def _paged(attention: Attention, x_TD: Tensor, config: ModelConfig, chunks: Sequence[int], offset: int = 0) -> Tensor:
    """The same tokens through the cache, in passes of these sizes; positions begin at `offset`."""
    single = dataclasses.replace(config, num_hidden_layers=1)
    cache, rotary = PagedCache(single, 2, dtype=torch.float64), RotaryEmbedding(config)
    outputs, done = [], 0
    for size in chunks:
        batch = ForwardBatch.paged(cache, [done], [size], [[1, 0]])
        batch = dataclasses.replace(batch, positions=batch.positions + offset)
        outputs.append(attention(x_TD[done : done + size], rotary(batch.positions), batch))
        done += size
    return torch.cat(outputs)


def _difference(a: Tensor, b: Tensor) -> float:
    """The largest error relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max())


@torch.no_grad()
def whole_model(config: ModelConfig, folder: Path, machine: Machine) -> str:
    """Every layer: a prompt through the cache, whole and in parts, against the same tokens without one."""
    plan = make_plan(config, dataclasses.replace(machine, gpus=()), context=min(256, config.max_position_embeddings))
    if not plan.fits:
        raise NotApplicable(f"it needs {show_bytes(plan.total_bytes)}, {show_bytes(plan.budget)} are usable")
    with torch.device("meta"):
        model = DeepseekV2(config)
    load_weights(model, folder, dtype=getattr(torch, plan.dtype)).eval()
    count = min(TOKENS, config.max_position_embeddings)
    tokens_T = torch.arange(count) * 7919 % config.vocab_size
    expanded = model(tokens_T, ForwardBatch.packed([count])).logits.double().log_softmax(-1)
    expect(bool(expanded.isfinite().all()), f"logits in {plan.dtype} are not finite")
    whole = _logprobs(model, tokens_T, (count,))
    parts = _logprobs(model, tokens_T, (1, count // 2, count - 1 - count // 2))
    tolerance = LOGPROB_TOLERANCE.get(model.dtype, HALF_TOLERANCE)
    top = expanded.topk(min(20, config.vocab_size)).indices  # log-probabilities that anybody sees
    gaps = [float((other - expanded).gather(1, top).abs().max()) for other in (whole, parts)]
    expect(max(gaps) <= tolerance, f"log-probabilities in {plan.dtype} differ by {max(gaps):.1e} through the cache")
    return f"{count} tokens in {plan.dtype}, whole and in parts: log-probabilities within {max(gaps):.0e}"


def _logprobs(model: DeepseekV2, tokens_T: Tensor, chunks: Sequence[int]) -> Tensor:
    cache = PagedCache(model.config, 2, dtype=model.dtype)
    outputs, done = [], 0
    for size in chunks:
        batch = ForwardBatch.paged(cache, [done], [size], [[1, 0]])
        outputs.append(model(tokens_T[done : done + size], batch).logits.double().log_softmax(-1))
        done += size
    return torch.cat(outputs)
