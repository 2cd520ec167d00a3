"""The engine's nouns: what a request is, what comes back, what an engine can be asked.

Everything here is a frozen dataclass of numbers, strings, bytes and tuples, so that a request pickles and the engine
can live in another thread, another process or on another machine. Nothing here imports torch: the server, the client
and the command line see this module and the tokenizer, never the engine itself.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import AsyncIterator
from typing import Any, Literal, Protocol

from leadline.errors import InvalidRequest

FinishReason = Literal["stop", "length", "cancelled", "error"]

MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_N = 128


@dataclasses.dataclass(frozen=True, slots=True)
class Grammar:
    """What the answer must match: `kind` names the language of `text` (a JSON schema, a regular expression, ...).
    `response_format` says the same in OpenAI's words, as JSON, where they say all of it: for engines that know no
    other."""

    kind: Literal["json_object", "json_schema", "regex", "lark"]
    text: str = ""
    response_format: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen and when to stop. Names and meanings are OpenAI's and vLLM's.

    `temperature` 0 is greedy. `max_tokens` None means: until the context is full. `logprobs` None means none, 0 the
    chosen token's only, k its and the k likeliest's. The `prompt_logprobs` before `prompt_logprobs_from` are None and
    not computed, so that this much of the prompt may come from the prefix cache. `seed` fixes a request's random
    numbers whatever else is being served.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    prompt_logprobs_from: int = 0
    grammar: Grammar | None = None
    adapter: str | None = None  # the LoRA adapter to answer with
    return_routed_experts: bool = False

    def __post_init__(self) -> None:
        # one text is one stop string, not as many as it has letters
        stop: Any = self.stop
        object.__setattr__(self, "stop", (stop,) if isinstance(stop, str) else tuple(stop))
        self._check("temperature", 0.0, 2.0)
        self._check("top_p", 0.0, 1.0, open_below=True)
        self._check("top_k", 0, math.inf)
        self._check("min_p", 0.0, 1.0)
        self._check("repetition_penalty", 0.0, 10.0, open_below=True)
        self._check("presence_penalty", -2.0, 2.0)
        self._check("frequency_penalty", -2.0, 2.0)
        self._check("n", 1, MAX_N)
        self._check("min_tokens", 0, math.inf)
        self._check("max_tokens", 1, math.inf)
        self._check("logprobs", 0, MAX_LOGPROBS)
        self._check("prompt_logprobs", 0, MAX_LOGPROBS)
        self._check("prompt_logprobs_from", 0, math.inf)
        if len(self.stop) > MAX_STOPS:
            raise InvalidRequest(f"at most {MAX_STOPS} stop strings, got {len(self.stop)}", param="stop")
        if any(not text for text in self.stop):
            raise InvalidRequest("a stop string must not be empty", param="stop")
        if any(not -100.0 <= bias <= 100.0 for _, bias in self.logit_bias):
            raise InvalidRequest("logit_bias values must lie in [-100, 100]", param="logit_bias")
        if self.grammar is not None and (self.ignore_eos or self.min_tokens):
            name = "ignore_eos" if self.ignore_eos else "min_tokens"
            raise InvalidRequest(
                f"{name} cannot be used with a grammar: it says itself where the answer ends", param=name
            )
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest("min_tokens is greater than max_tokens", param="min_tokens")

    def _check(self, name: str, low: float, high: float, *, open_below: bool = False) -> None:
        """Whole numbers where `low` is one."""
        value: Any = getattr(self, name)
        if value is None:
            return
        kind = "a whole number" if isinstance(low, int) else "a number"
        if not _is_number(value, whole=isinstance(low, int)):
            raise InvalidRequest(f"{name} must be {kind}, got {value!r}", param=name)
        inside = (low < value if open_below else low <= value) and value <= high
        if not inside:  # NaN compares false and lands here too
            bracket = "(" if open_below else "["
            raise InvalidRequest(f"{name} must lie in {bracket}{low}, {high}], got {value}", param=name)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


def _is_number(value: object, *, whole: bool) -> bool:
    return isinstance(value, numbers.Integral if whole else numbers.Real)


@dataclasses.dataclass(frozen=True, slots=True)
class EngineRequest:
    """One prompt, already ids. `cache_salt` keys the prefix cache: requests of unlike salts never share pages."""

    request_id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams = SamplingParams()
    cache_salt: bytes = b""
    priority: int = 0  # greater goes first
    deadline: float | None = None  # time.monotonic() after which an unfinished request ends with "length"


@dataclasses.dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One position's log-probability; `top` holds the likeliest tokens, best first; `text_bytes` is the token's."""

    token_id: int
    text_bytes: bytes
    logprob: float
    rank: int = 0
    top: tuple[TokenLogprob, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    """Counts that billing rests on: `cached_tokens` of the prompt came from the prefix cache."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class EngineOutput:
    """What one step added to one answer (`index` of `n`). `text` never ends in half a character nor in what may
    become a stop string; `finish_reason` is set on the last output of this index, and `stop_reason` then names the
    stop string or token id that ended it. `usage` is the running total of this index."""

    request_id: str
    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    usage: Usage = Usage()
    error: str | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()  # on the first output only
    routed_experts: tuple[tuple[tuple[int, ...], ...], ...] = ()  # [token][MoE layer][k]; on the last output only


@dataclasses.dataclass(frozen=True, slots=True)
class EngineInfo:
    """What does not change while an engine runs."""

    model: str
    context_length: int
    vocab_size: int  # rows a token may be sampled from
    cache_bytes_per_token: int
    cache_tokens: int
    dtype: str
    device: str
    parameters: int = 0
    active_parameters: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot for /metrics: gauges first, then counters since the start."""

    running: int = 0
    waiting: int = 0
    pages_total: int = 0
    pages_free: int = 0  # free or only held by the prefix cache
    pages_cached: int = 0
    requests_finished: int = 0
    requests_cancelled: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    alive: bool = True


class EngineProtocol(Protocol):
    """In process, over HTTP, or a fake for tests. `submit` checks the request before it returns its first output and
    raises `InvalidRequest` or a subclass; leaving the iterator early, or `cancel`, frees the sequence in two steps."""

    @property
    def info(self) -> EngineInfo: ...

    def submit(self, request: EngineRequest) -> AsyncIterator[EngineOutput]: ...

    def cancel(self, request_id: str) -> None: ...

    def stats(self) -> EngineStats: ...

    async def close(self) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One finished answer of `LLM.generate` or `LLM.chat`."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: str | int | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    routed_experts: tuple[tuple[tuple[int, ...], ...], ...] = ()
    error: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class RequestOutput:
    """All `n` answers to one prompt; `.text`, `.token_ids`, `.finish_reason`, `.logprobs` are the first one's."""

    request_id: str
    prompt_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    usage: Usage = Usage()
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()

    @property
    def text(self) -> str:
        return self.outputs[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        return self.outputs[0].finish_reason

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        return self.outputs[0].logprobs
