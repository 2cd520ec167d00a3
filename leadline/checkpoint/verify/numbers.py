"""Checks of what follows from the configuration: sizes, cache, YaRN (section 3.1.4), routing (section 2.2.2).

The formulas here are written a second time, in plain Python: what they check is not what computes them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from leadline.checkpoint.folder import weight_entries
from leadline.checkpoint.names import tensor_shapes
from leadline.checkpoint.verify.report import NotApplicable, expect
from leadline.model.cache import PagedCache
from leadline.model.config import V2, V2_LITE, ModelConfig, YarnConfig
from leadline.model.rope import correction_range, inverse_frequencies, magnitude
from leadline.ops.experts import route

GOLDEN_RANGE = (10, 23)
GOLDEN_FREQUENCIES = {
    0: 1.0,
    9: 7.498942e-2,
    10: 5.623413e-2,
    11: 3.900693e-2,
    16: 5.5e-3,
    22: 1.778279e-4,
    23: 3.333804e-5,
    31: 3.333804e-6,
}
GOLDEN_SCALE = 0.1147213868  # of V2 and V2-Lite; V2.5's mscale is 1
GOLDEN_SCALE_V25 = 0.1352337789
GOLDEN_PARAMETERS = {V2: 235_741_434_880, V2_LITE: 15_706_484_224}
GOLDEN_CACHE = {V2: 69_120, V2_LITE: 31_104}


def number_checks(config: ModelConfig, folder: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    yield "tensor inventory", partial(inventory, config, folder)
    yield "parameter count", partial(parameter_count, config)
    yield "cache bytes a token", partial(cache_bytes, config)
    yield "YaRN frequencies", partial(yarn_frequencies, config)
    yield "softmax scale", partial(softmax_scale, config)
    yield "routing", partial(routing, config)


def inventory(config: ModelConfig, folder: Path) -> str:
    entries = weight_entries(folder, config)
    size, files = sum(entry.size for entry in entries), len({entry.path for entry in entries})
    return f"{len(entries):,} tensors, {size:,} bytes in {files} files, none missing, extra or misshapen"


def parameter_count(config: ModelConfig) -> str:
    counted = sum(map(math.prod, tensor_shapes(config).values()))
    expect(counted == config.parameters(), f"the tensors hold {counted:,}, the formula gives {config.parameters():,}")
    _expect_published(GOLDEN_PARAMETERS, config, counted)
    return f"{counted:,}, {config.parameters(active=True):,} active"


def cache_bytes(config: ModelConfig) -> str:
    """What the allocator really takes."""
    taken = PagedCache(config, 1, dtype=torch.bfloat16).bytes_per_token
    formula = config.cache_bytes_per_token()
    expect(taken == formula, f"the allocator takes {taken:,}, the formula gives {formula:,}")
    _expect_published(GOLDEN_CACHE, config, taken)
    return f"{taken:,} in bfloat16 ({config.cache_row} elements in each of {config.num_hidden_layers} layers)"


def _expect_published(golden: dict[ModelConfig, int], config: ModelConfig, found: int) -> None:
    """A configuration with the sizes of a published model must have its numbers."""
    shapes = tensor_shapes(config)
    for published, value in golden.items():
        if tensor_shapes(published) == shapes:
            expect(found == value, f"{found:,}, the published model has {value:,}")


def yarn_frequencies(config: ModelConfig) -> str:
    found = inverse_frequencies(config).double().tolist()
    expected = _frequencies(config)
    worst = max(abs(a / b - 1) for a, b in zip(found, expected, strict=True))
    expect(worst < 1e-5, f"frequencies are off by {worst:.1e}")
    expect(magnitude(config) == 1.0 or not _is_published_yarn(config), f"cos and sin are scaled by {magnitude(config)}")
    if config.yarn is None:
        return f"{len(found)} frequencies, no YaRN"
    if not _is_published_yarn(config):
        return f"{len(found)} frequencies, stretched {config.yarn.factor:g} times"
    bounds = correction_range(config.yarn, config.rotary_dim, config.rope_theta)
    expect(bounds == GOLDEN_RANGE, f"correction range {bounds} instead of {GOLDEN_RANGE}")
    for index, value in GOLDEN_FREQUENCIES.items():
        expect(abs(found[index] / value - 1) < 1e-5, f"inv_freq[{index}] is {found[index]:.6e}, not {value:.6e}")
    return (
        f"correction range {bounds[0]}..{bounds[1]}, {len(GOLDEN_FREQUENCIES)} golden frequencies, cos and sin unscaled"
    )


def _is_published_yarn(config: ModelConfig) -> bool:
    """The published stretching, 40 times 4,096 positions; V2 and V2.5 differ in mscale only."""
    if config.yarn is None or config.rotary_dim != 64 or config.rope_theta != 10000.0:
        return False
    yarn = config.yarn
    same = (yarn.factor, yarn.original_max_position_embeddings, yarn.beta_fast, yarn.beta_slow) == (
        40.0,
        4096,
        32.0,
        1.0,
    )
    return same and yarn.mscale == yarn.mscale_all_dim


def _frequencies(config: ModelConfig) -> list[float]:
    dim, theta = config.rotary_dim, config.rope_theta
    plain = [theta ** (-2 * i / dim) for i in range(dim // 2)]
    return plain if config.yarn is None else [_stretched(config.yarn, dim, theta, i, f) for i, f in enumerate(plain)]


def _stretched(yarn: YarnConfig, dim: int, theta: float, index: int, frequency: float) -> float:
    """A wave that turns more than beta_fast times within the original length stays, one below beta_slow slows by s."""
    length = yarn.original_max_position_embeddings
    low, high = (
        dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))
        for turns in (yarn.beta_fast, yarn.beta_slow)
    )
    first, last = max(math.floor(low), 0), min(math.ceil(high), dim - 1)
    ramp = min(max((index - first) / max(last - first, 0.001), 0.0), 1.0)
    return frequency / yarn.factor * ramp + frequency * (1 - ramp)


def softmax_scale(config: ModelConfig) -> str:
    """The query's width, never the latent's, and mscale squared from mscale_all_dim: silently missing for a year."""
    scale, width = config.softmax_scale, config.qk_head_dim
    mscale = 1.0
    if config.yarn is not None and config.yarn.mscale_all_dim and config.yarn.factor > 1:
        mscale = 0.1 * config.yarn.mscale_all_dim * math.log(config.yarn.factor) + 1
    expected = mscale * mscale / math.sqrt(width)
    expect(abs(scale / expected - 1) < 1e-12, f"{scale:.10f} instead of {expected:.10f}")
    if width == 192 and _is_published_yarn(config) and config.yarn is not None:
        golden = {0.707: GOLDEN_SCALE, 1.0: GOLDEN_SCALE_V25}.get(config.yarn.mscale, expected)
        expect(abs(scale / golden - 1) < 1e-9, f"{scale:.10f} instead of the golden {golden:.10f}")
    return f"{scale:.10f} = {width}^-0.5 x {mscale:.6f}^2"


def routing(config: ModelConfig) -> str:
    """Hand-made scores on which greedy and group-limited routing differ, then the model's own sizes."""
    if config.n_routed_experts is None:
        raise NotApplicable("a dense model")
    affinities = torch.tensor([[0.30, 0.01, 0.02, 0.25, 0.20, 0.19, 0.02, 0.01]])
    greedy, limited = (route(affinities.log(), 3, *groups, False, 1.0)[0] for groups in ((1, 1), (4, 2)))
    expect(sorted(greedy[0].tolist()) == [0, 3, 4], f"greedy top 3 chose {greedy[0].tolist()}, not 0, 3, 4")
    expect(sorted(limited[0].tolist()) == [0, 2, 3], f"2 of 4 groups chose {limited[0].tolist()}, not 0, 2, 3")
    dice = random.Random(0)
    limited_here = config.topk_method == "group_limited_greedy"
    groups, keep = (config.n_group, config.topk_group) if limited_here else (1, 1)
    for _ in range(50):
        logits = [dice.gauss(0, 2) for _ in range(config.n_routed_experts)]
        options = (config.num_experts_per_tok, groups, keep, config.norm_topk_prob, config.routed_scaling_factor)
        ids, gates, _ = route(torch.tensor([logits], dtype=torch.float64), *options)
        _compare_routing(logits, ids[0].tolist(), gates[0].tolist(), config, groups, keep)
    method = f"{keep} of {groups} groups, then " if groups > 1 else ""
    chosen = f"top {config.num_experts_per_tok} of {config.n_routed_experts}"
    return f"{method}{chosen}, gates scaled by {config.routed_scaling_factor:g}"


def _compare_routing(
    logits: Sequence[float], ids: list[int], gates: list[float], config: ModelConfig, groups: int, keep: int
) -> None:
    total = math.fsum(map(math.exp, logits))
    scores = [math.exp(value) / total for value in logits]
    width = len(scores) // groups
    kept = sorted(range(groups), key=lambda group: -max(scores[group * width : (group + 1) * width]))[:keep]
    eligible = [expert for expert in range(len(scores)) if expert // width in kept]
    chosen = sorted(eligible, key=lambda expert: -scores[expert])[: config.num_experts_per_tok]
    expect(set(ids) == set(chosen), f"chose {sorted(ids)} instead of {sorted(chosen)}")
    normalised = config.norm_topk_prob and config.num_experts_per_tok > 1
    factor = 1 / math.fsum(scores[e] for e in chosen) if normalised else config.routed_scaling_factor
    for expert, gate in zip(ids, gates, strict=True):
        expect(abs(gate / (scores[expert] * factor) - 1) < 1e-9, f"gate {gate} instead of {scores[expert] * factor}")
