"""The engine's words: limits with the parameter's name, and every one of them can travel to another process."""

from __future__ import annotations

import dataclasses
import inspect
import math
import pickle
from typing import Any

import pytest

from leadline.engine import types
from leadline.engine.types import (
    CompletionOutput,
    EngineInfo,
    EngineOutput,
    EngineRequest,
    EngineStats,
    Grammar,
    RequestOutput,
    SamplingParams,
    TokenLogprob,
    Usage,
)
from leadline.errors import InvalidRequest

LOGPROB = TokenLogprob(5, b"\xe6", -0.5, 2, (TokenLogprob(7, b"a", -0.1, 1),))
GRAMMAR = Grammar("json_schema", '{"type": "object"}')
PARAMS = SamplingParams(temperature=0.5, seed=2**70, stop=("\n",), logit_bias=((3, -1.5),), grammar=GRAMMAR, n=2)
ROUTED = (((1, 2), (3, 4)), ((5, 6), (7, 0)))
COMPLETION = CompletionOutput(0, " deep", (4, 5), "stop", "\n", (LOGPROB,), ROUTED)
SAMPLES: list[Any] = [
    GRAMMAR,
    PARAMS,
    EngineRequest("r", (0, 1), PARAMS, b"salt", 3, 12.5),
    LOGPROB,
    Usage(3, 2, 1),
    EngineOutput("r", 1, "é", (4,), (LOGPROB,), "error", 7, Usage(1, 2), "why", (None, LOGPROB), ROUTED),
    EngineInfo("m", 4096, 100, 31104, 8192, "bfloat16", "cpu"),
    EngineStats(running=1, alive=False),
    COMPLETION,
    RequestOutput("r", (1,), (COMPLETION,), Usage(1, 2), (None,)),
]


def test_every_type_has_a_sample() -> None:
    defined = {
        cls for _, cls in inspect.getmembers(types, dataclasses.is_dataclass) if cls.__module__ == types.__name__
    }
    assert {type(sample) for sample in SAMPLES} == defined


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: type(sample).__name__)
def test_pickle_round_trip(sample: Any) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(sample, protocol)) == sample
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(sample, dataclasses.fields(sample)[0].name, None)


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", math.nan),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("min_p", math.nan),
        ("repetition_penalty", 0.0),
        ("presence_penalty", -3.0),
        ("frequency_penalty", math.inf),
        ("n", 0),
        ("n", 129),
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("logprobs", 21),
        ("prompt_logprobs", -1),
        ("prompt_logprobs_from", -1),
        ("stop", ("",)),
        ("stop", ("a",) * 17),
        ("logit_bias", ((1, 101.0),)),
        ("logit_bias", ((1, math.nan),)),
    ],
)
def test_a_bad_value_names_its_parameter(field: str, bad: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**{field: bad})
    assert caught.value.param == field


def test_min_tokens_past_max_tokens_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="min_tokens"):
        SamplingParams(min_tokens=5, max_tokens=4)
