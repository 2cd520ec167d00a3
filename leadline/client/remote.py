"""RemoteEngine: an engine on another machine, behind any OpenAI-compatible `completions` endpoint.

It takes `EngineProtocol`'s requests, whose prompts are ids, and gives its outputs, so that a platform can stand before
vLLM, SGLang, llama.cpp or another leadline. What is billed is what that server counts: it is asked for its counts with
every chunk and for each token's log-probability; one that tells neither is counted by its chunks, and the whole
answer's count at its end is taken. Leaving a stream closes its connection, which tells the server to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Mapping
from typing import Any

from leadline.client.forms import Forms
from leadline.client.http import AsyncClient, body_error, broken_off, parsed
from leadline.client.sse import EventDecoder
from leadline.engine.types import (
    EngineInfo,
    EngineOutput,
    EngineRequest,
    EngineStats,
    FinishReason,
    SamplingParams,
    TokenLogprob,
    Usage,
)
from leadline.errors import (
    AuthenticationError,
    ConfigError,
    ConnectionFailed,
    ContextLengthExceeded,
    EngineError,
    EngineOverloaded,
    InsufficientBalance,
    InvalidRequest,
    LeadlineError,
    ModelNotFound,
    NotFound,
    PermissionDenied,
    RateLimited,
    UserError,
)

UNKNOWN_TOKEN = -1  # a token of which the server has told the text only

# Sent when they differ from the default: other servers' extensions of OpenAI's API, under vLLM's names.
_EXTENSIONS = {
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "min_tokens": "min_tokens",
    "ignore_eos": "ignore_eos",
    "skip_special_tokens": "skip_special_tokens",
    "include_stop": "include_stop_str_in_output",
}
_DEFAULTS = SamplingParams()
_STANDARD = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "n", "max_tokens")


class RemoteEngine:
    """Implements `EngineProtocol`. `info.model` is what this server calls the model, `model` what the other does."""

    def __init__(self, client: AsyncClient, info: EngineInfo, model: str) -> None:
        self.client = client
        self.model = model
        self._info = info
        self._running: set[str] = set()
        self._cancelled: set[str] = set()
        self._counts = dict.fromkeys(("finished", "cancelled", "prompt", "cached", "generated"), 0)
        self._forms = Forms(client, model)
        self._closing = False
        self._idle = asyncio.Event()

    @property
    def info(self) -> EngineInfo:
        return self._info

    def submit(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        if self._closing:
            raise EngineOverloaded("the server is shutting down")
        if len(request.prompt_ids) >= self._info.context_length:
            raise ContextLengthExceeded(
                f"the prompt has {len(request.prompt_ids)} tokens; the context has {self._info.context_length}",
                param="messages",
            )
        return self._stream(request, completion_body(request, self.model, self._info.context_length))

    def cancel(self, request_id: str) -> None:
        """It ends with the next token; who closes its stream ends it at once."""
        if request_id in self._running:
            self._cancelled.add(request_id)

    def stats(self) -> EngineStats:
        counts = self._counts
        return EngineStats(
            running=len(self._running),
            requests_finished=counts["finished"],
            requests_cancelled=counts["cancelled"],
            prompt_tokens=counts["prompt"],
            cached_tokens=counts["cached"],
            generated_tokens=counts["generated"],
        )

    async def close(self) -> None:
        """Let the running requests end."""
        self._closing = True
        self._idle.clear()
        if self._running:
            await self._idle.wait()
        await self.client.close()

    async def _stream(self, request: EngineRequest, body: Mapping[str, Any]) -> AsyncGenerator[EngineOutput, None]:
        name, reader, ended = request.request_id, AnswerReader(request), False
        self._running.add(name)
        try:
            with _as_ours():
                form = await self._forms.fields(request.params.grammar)
            async with contextlib.aclosing(self._events({**body, **form})) as events:
                async for event in events:
                    if name in self._cancelled:
                        break
                    for output in reader.outputs(event):
                        yield output
            for output in reader.rest(cancelled=name in self._cancelled):
                yield output
            ended = name not in self._cancelled
        finally:
            self._count(reader.usage, "finished" if ended else "cancelled")
            self._running.discard(name)
            self._cancelled.discard(name)
            if not self._running:
                self._idle.set()

    async def _events(self, body: Mapping[str, Any]) -> AsyncGenerator[Mapping[str, Any], None]:
        decoder = EventDecoder()
        with _as_ours():
            async with self.client.answer("POST", "completions", body) as response:
                with broken_off(self.client.base_url):
                    async for received in response.aiter_bytes():
                        for data in decoder.feed(received):
                            if data == "[DONE]":
                                return
                            yield _event(data)
        raise EngineError("the remote engine broke the answer off")

    def _count(self, usage: Usage, how: str) -> None:
        self._counts[how] += 1
        self._counts["prompt"] += usage.prompt_tokens
        self._counts["cached"] += usage.cached_tokens
        self._counts["generated"] += usage.completion_tokens


class AnswerReader:
    """From the events of one request to its outputs. The last of each answer is held back until the counts are in."""

    def __init__(self, request: EngineRequest) -> None:
        self.request = request
        n = request.params.n
        self._tokens = [0] * n
        self._cached = 0
        self._last: dict[int, tuple[str, tuple[TokenLogprob, ...], FinishReason]] = {}

    @property
    def usage(self) -> Usage:
        return Usage(len(self.request.prompt_ids), sum(self._tokens), self._cached)

    def outputs(self, event: Mapping[str, Any]) -> list[EngineOutput]:
        with _as_expected():
            made = [output for choice in event.get("choices") or () for output in self._choice(choice, event)]
            if event.get("usage"):
                self._take_counts(event["usage"])
        return made

    def rest(self, *, cancelled: bool) -> list[EngineOutput]:
        """The last outputs of all answers; of one that has none, that it was cancelled or cut."""
        if not cancelled and len(self._last) < self.request.params.n:
            raise EngineError("the remote engine ended without a reason")
        made = []
        for index in range(self.request.params.n):
            text, logprobs, reason = self._last.get(index, ("", (), "cancelled"))
            made.append(self._output(index, text, logprobs, 0, reason))
        return made

    def _choice(self, choice: Mapping[str, Any], event: Mapping[str, Any]) -> list[EngineOutput]:
        index, text = int(choice.get("index", 0)), str(choice.get("text") or "")
        logprobs = _logprobs(choice.get("logprobs"), self.request.params.logprobs or 0)
        count = len(logprobs) or int(bool(text))
        self._tokens[index] += count
        if self.request.params.n == 1 and event.get("usage"):
            count = max(count, 1)
            self._take_counts(event["usage"])
        shown = logprobs if self.request.params.logprobs is not None else ()
        reason = choice.get("finish_reason")
        if reason is not None:
            self._last[index] = text, shown, "length" if reason == "length" else "stop"
            return []
        return [self._output(index, text, shown, count)] if text or count else []

    def _output(
        self,
        index: int,
        text: str,
        logprobs: tuple[TokenLogprob, ...],
        count: int,
        reason: FinishReason | None = None,
    ) -> EngineOutput:
        usage = Usage(len(self.request.prompt_ids), self._tokens[index], self._cached)
        tokens = (UNKNOWN_TOKEN,) * count
        return EngineOutput(self.request.request_id, index, text, tokens, logprobs, reason, usage=usage)

    def _take_counts(self, usage: Mapping[str, Any]) -> None:
        """The server's own counts: of several answers it tells the sum, and ours stand."""
        details = usage.get("prompt_tokens_details") or {}
        cached = details.get("cached_tokens") or usage.get("prompt_cache_hit_tokens") or 0
        self._cached = min(int(cached), len(self.request.prompt_ids))
        if self.request.params.n == 1 and usage.get("completion_tokens") is not None:
            self._tokens[0] = int(usage["completion_tokens"])


def completion_body(request: EngineRequest, model: str, context_length: int) -> dict[str, Any]:
    """The request in OpenAI's words; what they cannot say is refused."""
    params = request.params
    if params.prompt_logprobs is not None or params.adapter is not None or params.return_routed_experts:
        raise InvalidRequest("a remote engine tells no log-probabilities of the prompt and takes no adapter")
    body: dict[str, Any] = {"model": model, "prompt": list(request.prompt_ids), "stream": True}
    body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    body["logprobs"] = params.logprobs or 0
    body |= {name: getattr(params, name) for name in _STANDARD if getattr(params, name) is not None}
    if params.max_tokens is None:
        body["max_tokens"] = context_length - len(request.prompt_ids)
    body |= {"stop": list(params.stop)} if params.stop else {}
    body |= {"stop_token_ids": list(params.stop_token_ids)} if params.stop_token_ids else {}
    body |= {"logit_bias": {str(token): bias for token, bias in params.logit_bias}} if params.logit_bias else {}
    for name, theirs in _EXTENSIONS.items():
        if getattr(params, name) != getattr(_DEFAULTS, name):
            body[theirs] = getattr(params, name)
    if request.cache_salt:
        body["cache_salt"] = body["user_id"] = request.cache_salt.hex()
    return body


async def connect(
    url: str, *, key: str | None, model: str | None, name: str | None, context_length: int | None, vocab_size: int
) -> RemoteEngine:
    """The engine at `url`. `model` is its name there, the only one by default; `context_length` what it says of it."""
    async with AsyncClient(url, api_key=key) as client:
        cards = (await client.call("GET", "models")).get("data") or []
    with _as_expected():
        names = [str(card["id"]) for card in cards]
        theirs = model or (names[0] if len(names) == 1 else "")
        if theirs not in names:
            raise ConfigError(
                f"{url} serves {', '.join(names) or 'no model'}; choose with --engine-model", param="engine_model"
            )
        card = cards[names.index(theirs)]
        length = context_length or card.get("max_model_len") or card.get("context_length")
    if not length:
        raise ConfigError(f"{url} does not tell its context length; give --max-model-len", param="max_model_len")
    info = EngineInfo(
        model=name or theirs,
        context_length=int(length),
        vocab_size=vocab_size,
        cache_bytes_per_token=0,
        cache_tokens=0,
        dtype="remote",
        device=url,
    )
    # Its own client: one is bound to the loop in which it first sends.
    return RemoteEngine(AsyncClient(url, api_key=key, max_retries=0), info, theirs)


def _logprobs(given: Any, count: int) -> tuple[TokenLogprob, ...]:
    """OpenAI's lists of a completion's tokens, each with the `count` likeliest: servers add the token that was chosen.
    Nothing where the server tells none."""
    if not isinstance(given, dict) or not given.get("tokens"):
        return ()
    tokens, values = given["tokens"], given.get("token_logprobs") or [None] * len(given["tokens"])
    tops = given.get("top_logprobs") or [None] * len(tokens)
    return tuple(
        dataclasses.replace(_logprob(token, value), top=_likeliest(top or {}, count))
        for token, value, top in zip(tokens, values, tops, strict=True)
    )


def _likeliest(top: Mapping[str, Any], count: int) -> tuple[TokenLogprob, ...]:
    found = [_logprob(*item) for item in top.items()]
    return tuple(sorted(found, key=lambda each: each.logprob, reverse=True)[:count])


def _logprob(token: Any, value: Any) -> TokenLogprob:
    return TokenLogprob(UNKNOWN_TOKEN, str(token).encode("utf-8", errors="replace"), float(value or 0.0))


def _event(data: str) -> Mapping[str, Any]:
    event = parsed(data)
    if not isinstance(event, dict):
        raise EngineError("the remote engine's answer has an unexpected form")
    if event.get("error"):
        raise EngineError(f"the remote engine: {body_error(500, event).message}")
    return event


@contextlib.contextmanager
def _as_expected() -> Generator[None, None, None]:
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError):
        raise EngineError("the remote engine's answer has an unexpected form") from None


@contextlib.contextmanager
def _as_ours() -> Generator[None, None, None]:
    """What the other server says to us is not what we say to our client: our key there is not theirs here."""
    try:
        yield
    except (ConnectionFailed, RateLimited) as error:
        raise EngineOverloaded(f"the remote engine is not available: {error.message}") from None
    except (AuthenticationError, PermissionDenied, InsufficientBalance, NotFound, ModelNotFound) as error:
        raise EngineError(f"the remote engine refused this server: {error.message}") from None
    except UserError as error:
        raise error if isinstance(error, InvalidRequest) else InvalidRequest(error.message) from None
    except LeadlineError as error:
        raise error if isinstance(error, EngineError) else EngineError(error.message) from None
