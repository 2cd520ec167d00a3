"""Tiny random models in float32, and an engine over them that a test can drive step by step."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch

from leadline.engine.engine import Engine, EngineConfig
from leadline.engine.scheduler import SchedulerConfig
from leadline.engine.types import EngineOutput, EngineRequest, SamplingParams
from leadline.model.config import ModelConfig
from leadline.model.transformer import DeepseekV2
from tests.engine.vocabulary import ByteTokenizer
from tests.fixtures import TINY_LITE, TINY_V2

TINY = {"v2": TINY_V2, "lite": TINY_LITE}


@functools.cache
def tiny_model(name: str) -> DeepseekV2:
    """Spread out weights, so that the likeliest token is clearly ahead and every layer matters."""
    return random_model(TINY[name])


def random_model(config: ModelConfig) -> DeepseekV2:
    model = DeepseekV2(config).float().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(7)
    model.initialise(generator)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embed" not in name:
            parameter.mul_(25)
    model.model.embed_tokens.weight.mul_(150)
    return model


def make_engine(name: str = "lite", **options: Any) -> Engine:
    """An engine of few pages; options of `SchedulerConfig` and `EngineConfig` alike."""
    fields = SchedulerConfig.__dataclass_fields__
    scheduler = SchedulerConfig(**{key: options.pop(key) for key in list(options) if key in fields})
    extra = {key: options.pop(key) for key in ("constraints", "adapters") if key in options}
    config = EngineConfig(**{"name": name, "cache_tokens": 64 * 16, **options}, scheduler=scheduler)
    return Engine(tiny_model(name), ByteTokenizer(), config, **extra)


def request(name: str, ids: Iterable[int], *, salt: bytes = b"", priority: int = 0, **params: Any) -> EngineRequest:
    defaults: dict[str, Any] = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True}
    return EngineRequest(name, tuple(ids), SamplingParams(**(defaults | params)), cache_salt=salt, priority=priority)


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def drain(engine: Engine, *, check: bool = True) -> list[EngineOutput]:
    """Step until nothing is left; the invariants hold after every step."""
    outputs: list[EngineOutput] = []
    while engine.has_work:
        outputs += engine.step()
        if check:
            engine.scheduler.check_integrity()
    assert engine.blocks.free == engine.blocks.pages
    return outputs


Answers = dict[tuple[str, int], list[EngineOutput]]


def answers(outputs: Iterable[EngineOutput]) -> Answers:
    """The outputs of each answer in order."""
    grouped: Answers = defaultdict(list)
    for output in outputs:
        grouped[output.request_id, output.index].append(output)
    return grouped


def generate(engine: Engine, *requests: EngineRequest) -> Answers:
    for each in requests:
        engine.add(each)
    return answers(drain(engine))


def tokens(outputs: list[EngineOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def logprobs(outputs: list[EngineOutput]) -> list[float]:
    return [entry.logprob for output in outputs for entry in output.logprobs]
