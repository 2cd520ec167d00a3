"""Models to compare: ours with random weights, and the numeric oracle, transformers, on the very same tensors."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leadline.model.batch import ForwardBatch
from leadline.model.cache import PagedCache
from leadline.model.config import V2, V2_LITE, ModelConfig
from leadline.model.transformer import DeepseekV2
from tests.fixtures import TINY_LITE, TINY_V2

LONG: dict[str, Any] = {"qk_rope_head_dim": 64, "yarn": V2.yarn, "max_position_embeddings": 163840}
NARROW_V2 = dataclasses.replace(TINY_V2, **LONG)
"""Tiny V2 (groups, query compression, scaling 16) with the published rope: 64 wide, YaRN 40 over 4,096."""

NARROW_LITE = dataclasses.replace(TINY_LITE, **LONG)
"""Tiny V2-Lite (plain queries, greedy routing) with the published rope."""

WIDE_LITE = dataclasses.replace(V2_LITE, num_hidden_layers=2, vocab_size=512, bos_token_id=0, eos_token_id=1)
"""V2-Lite's own widths: one dense layer and one of 64 experts."""


def cache_argument(oracle: Any) -> str:
    """What transformers calls its cache: 5.24 gave it another name."""
    return "cache" if "cache" in inspect.signature(oracle.forward).parameters else "past_key_values"


BLOCK = (1 << 22) - 3
"""Larger tensors repeat a random block of this odd length, so that no two rows agree: seconds less at full width."""

OFFSETS = (0, 1, 4097, 30000)


def build(config: ModelConfig, dtype: torch.dtype = torch.float32, *, seed: int = 0, std: float = 0.15) -> DeepseekV2:
    """Random weights; a wider spread than in training, so that attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        model = DeepseekV2(config).to(dtype)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            low, high = (-std * 3**0.5, std * 3**0.5) if parameter.dim() > 1 else (0.7, 1.3)
            block = torch.empty(min(parameter.numel(), BLOCK)).uniform_(low, high, generator=generator).to(dtype)
            for part in parameter.view(-1).split(BLOCK):
                part.copy_(block[: len(part)])
    return model.eval()


def transformers_of(model: DeepseekV2, *, attention: str = "eager", experts: str = "eager") -> Any:
    """transformers' model holding our tensors themselves, not copies."""
    from transformers import AutoConfig, AutoModelForCausalLM

    raw = model.config.to_dict()
    config = AutoConfig.for_model(**raw)
    config._attn_implementation, config._experts_implementation = attention, experts
    with torch.device("meta"):
        oracle = AutoModelForCausalLM.from_config(config)
    oracle.load_state_dict(model.state_dict(keep_vars=True), assign=True)
    with torch.device("cpu"):
        oracle.model.rotary_emb = type(oracle.model.rotary_emb)(config)
    return oracle.eval()


def sample_tokens(config: ModelConfig, count: int, seed: int = 0) -> Tensor:
    return torch.randint(0, config.vocab_size, (count,), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def expanded(model: DeepseekV2, tokens_T: Tensor, offset: int = 0) -> Tensor:
    """Logits of one document in one pass without a cache."""
    return model(tokens_T, ForwardBatch.packed([len(tokens_T)], offset=offset)).logits


@torch.no_grad()
def paged(
    model: DeepseekV2, tokens_T: Tensor, chunks: Sequence[int], *, offset: int = 0, pages: Sequence[int] = (2, 0, 1)
) -> Tensor:
    """Logits of one document computed in chunks over pages (absorbed), its first token at position `offset`."""
    cache = PagedCache(model.config, max(pages) + 1, dtype=model.dtype)
    logits, done = [], 0
    for chunk in chunks:
        batch = ForwardBatch.paged(cache, [done], [chunk], [pages])
        batch = dataclasses.replace(batch, positions=batch.positions + offset)
        logits.append(model(tokens_T[done : done + chunk], batch).logits)
        done += chunk
    assert done == len(tokens_T)
    return torch.cat(logits)


@torch.no_grad()
def transformers_logits(oracle: Any, tokens_T: Tensor, offset: int = 0) -> Tensor:
    positions = torch.arange(offset, offset + len(tokens_T))
    return oracle(input_ids=tokens_T[None], position_ids=positions[None], use_cache=False).logits[0]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected value; NaN anywhere gives NaN, which no bound accepts."""
    return ((actual.double() - expected.double()).abs().max() / expected.double().abs().max()).item()
