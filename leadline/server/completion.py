"""The one completion service: every way to ask for tokens over HTTP comes through here.

A request is admitted (`chat`, `complete`: model, parameters, prompt ids, length; all that can be refused is refused
here), and becomes a `Job`; a `Run` drives the engine for it. However a run ends, finished, failed or left, the engine
has let go of every sequence when `deltas` is closed, and the usage it then reports is what was delivered.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, Literal

from leadline.engine.types import (
    EngineOutput,
    EngineProtocol,
    EngineRequest,
    SamplingParams,
    TokenLogprob,
    Usage,
)
from leadline.errors import EngineError, EngineOverloaded, InvalidRequest, ModelNotFound
from leadline.server.logprobs import Aligner
from leadline.server.metrics import Metrics, Timing
from leadline.server.prompts import chat_prompt, completion_prompts, not_available, split_prompts
from leadline.server.schemas import ChatRequest, CompletionRequest, Sampling
from leadline.server.settings import ServerSettings
from leadline.tokenizer import Tokenizer

COMPLETION_TOKENS = 16  # OpenAI's default for raw completions; a chat answer ends by itself

_SAME_NAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "n",
    "min_tokens",
    "ignore_eos",
    "skip_special_tokens",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """A request that was admitted. Choice number i is answer i % n to prompt i // n."""

    id: str
    requests: tuple[EngineRequest, ...]
    params: SamplingParams
    include_usage: bool = False
    warnings: tuple[str, ...] = ()
    echoes: tuple[str, ...] = ()  # one a prompt: the text that is given back before the answer
    echo_only: bool = False  # nothing but the prompt was asked for; the one token the engine must make is dropped
    strip_space: bool = False
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))


@dataclasses.dataclass(frozen=True, slots=True)
class Delta:
    """What one step added to one choice; `finish_reason` on its last."""

    choice: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: Literal["stop", "length"] | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()


class CompletionService:
    def __init__(
        self, engine: EngineProtocol, tokenizer: Tokenizer, settings: ServerSettings, metrics: Metrics
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.settings = settings
        self.metrics = metrics
        self.started = int(time.time())
        info = engine.info
        self.limit = info.context_length - 1  # of a prompt: one token is left for the answer
        self.fingerprint = "fp_" + hashlib.sha256(repr(info).encode()).hexdigest()[:12]

    @property
    def model(self) -> str:
        return self.engine.info.model

    def check_model(self, name: str | None) -> None:
        """The served model's name, an alias, or none at all."""
        if name not in (None, self.model, *self.settings.aliases):
            raise ModelNotFound(
                f"the model {str(name)[:100]!r} does not exist; this server has {self.model!r}", param="model"
            )

    async def chat(self, body: ChatRequest) -> Job:
        self.check_model(body.model)
        not_available(body)
        if body.top_logprobs is not None and not body.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
        most = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        params = self._params(body, max_tokens=most, logprobs=(body.top_logprobs or 0) if body.logprobs else None)
        self._check_choices(1, params)
        prompt = await chat_prompt(self.tokenizer, body, self.limit)
        job_id = f"chatcmpl-{uuid.uuid4()}"
        requests = self._requests(job_id, [prompt.ids], params, body)
        strip = self.tokenizer.answer_opens_with_space and not prompt.continues
        return Job(job_id, requests, params, body.include_usage, strip_space=strip)

    async def complete(self, body: CompletionRequest) -> Job:
        self.check_model(body.model)
        not_available(body)
        echo_only = bool(body.echo) and body.max_tokens == 0
        most = 1 if echo_only else COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        echoed = body.logprobs if body.echo else None
        params = self._params(body, max_tokens=most, logprobs=body.logprobs, prompt_logprobs=echoed)
        given = split_prompts(body.prompt)
        self._check_choices(len(given), params)
        prompts = await completion_prompts(self.tokenizer, body, given, self.limit)
        job_id = f"cmpl-{uuid.uuid4()}"
        return Job(
            job_id,
            self._requests(job_id, [prompt.ids for prompt in prompts], params, body),
            params,
            body.include_usage,
            warnings=tuple(dict.fromkeys(warning for prompt in prompts for warning in prompt.warnings)),
            echoes=self._echoes(given) if body.echo else (),
            echo_only=echo_only,
        )

    def run(self, job: Job) -> Run:
        return Run(self, job)

    def _params(self, body: Sampling, *, max_tokens: int | None, **more: int | None) -> SamplingParams:
        """The model's defaults, changed by what the request says."""
        values: dict[str, Any] = {name: getattr(body, name) for name in _SAME_NAME}
        values["include_stop"] = body.include_stop_str_in_output
        values["stop"] = _stops(body.stop)
        values["stop_token_ids"] = body.stop_token_ids and tuple(body.stop_token_ids)
        values["logit_bias"] = body.logit_bias and _logit_bias(body.logit_bias)
        if max_tokens is not None:
            values["max_tokens"] = min(max_tokens, self.engine.info.context_length)
        given = {name: value for name, value in {**values, **more}.items() if value is not None}
        return dataclasses.replace(self.settings.defaults, **given)

    def _check_choices(self, prompts: int, params: SamplingParams) -> None:
        most = self.settings.max_choices
        if prompts * params.n > most:
            raise InvalidRequest(
                f"at most {most} answers a request, prompts times n; got {prompts * params.n}", param="n"
            )

    def _requests(
        self, job_id: str, prompts: Sequence[tuple[int, ...]], params: SamplingParams, body: Sampling
    ) -> tuple[EngineRequest, ...]:
        salt = cache_salt(body.user_id)
        return tuple(
            EngineRequest(f"{job_id}-{number}", ids, params, cache_salt=salt) for number, ids in enumerate(prompts)
        )

    def _echoes(self, prompts: Sequence[str | list[int]]) -> tuple[str, ...]:
        return tuple(item if isinstance(item, str) else self.tokenizer.decode(item) for item in prompts)


class Run:
    """One job being answered."""

    def __init__(self, service: CompletionService, job: Job) -> None:
        self.service = service
        self.job = job
        self._usages: dict[int, Usage] = {}
        hidden = service.tokenizer.special_ids if job.params.skip_special_tokens else frozenset[int]()
        choices = len(job.requests) * job.params.n
        self._aligners = [Aligner(hidden, strip_space=job.strip_space) for _ in range(choices)]

    @property
    def usage(self) -> Usage:
        """Prompts count once whatever `n`; of a prompt's answers the one that found least in the cache counts."""
        n = self.job.params.n
        cached = 0
        for number in range(len(self.job.requests)):
            seen = [self._usages[i].cached_tokens for i in range(number * n, number * n + n) if i in self._usages]
            cached += min(seen, default=0)
        return Usage(
            prompt_tokens=sum(len(request.prompt_ids) for request in self.job.requests),
            completion_tokens=sum(usage.completion_tokens for usage in self._usages.values()),
            cached_tokens=cached,
        )

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        timing = Timing(self.service.metrics, time.monotonic())
        async with contextlib.aclosing(self._outputs()) as outputs:
            async for choice, output in outputs:
                if output.token_ids:
                    timing.token(time.monotonic())
                yield self._delta(choice, output)
        timing.end(time.monotonic())

    async def _outputs(self) -> AsyncGenerator[tuple[int, EngineOutput], None]:
        n = self.job.params.n
        streams = [self._stream(request) for request in self.job.requests]
        source = _numbered(streams[0]) if len(streams) == 1 else merge(streams)
        async with contextlib.aclosing(source) as outputs:
            async for number, output in outputs:
                yield number * n + output.index, output

    async def _stream(self, request: EngineRequest) -> AsyncGenerator[EngineOutput, None]:
        """The engine's outputs; whoever leaves early takes the sequence out of the engine."""
        left = request.params.n
        outputs = self.service.engine.submit(request)
        try:
            async for output in outputs:
                left -= output.finish_reason is not None
                yield output
        finally:
            if left > 0:
                self.service.engine.cancel(request.request_id)
            await close(outputs)

    def _delta(self, choice: int, output: EngineOutput) -> Delta:
        if output.finish_reason == "error":
            raise EngineError(output.error or "the engine failed")
        if output.finish_reason == "cancelled":
            raise EngineOverloaded("the server is shutting down")
        if self.job.echo_only:
            self._usages[choice] = dataclasses.replace(output.usage, completion_tokens=0)
            return Delta(choice, "", (), output.finish_reason, output.prompt_logprobs)
        self._usages[choice] = output.usage
        text, logprobs = self._aligners[choice].push(output.text, output.logprobs, output.finish_reason)
        return Delta(choice, text, logprobs, output.finish_reason, output.prompt_logprobs)


def cache_salt(user_id: str | None) -> bytes:
    """Requests of unlike `user_id` share no cached prefix."""
    return b"" if user_id is None else hashlib.sha256(user_id.encode()).digest()


async def close(iterator: AsyncIterator[Any]) -> None:
    """Close an async generator; other iterators have nothing to close."""
    if isinstance(iterator, AsyncGenerator):
        await iterator.aclose()


async def merge(
    streams: Sequence[AsyncGenerator[EngineOutput, None]],
) -> AsyncGenerator[tuple[int, EngineOutput], None]:
    """All streams at once, each output with its stream's number; one stream's error ends them all."""
    queue: asyncio.Queue[tuple[int, EngineOutput | BaseException | None]] = asyncio.Queue()
    tasks = [asyncio.create_task(_pump(number, stream, queue)) for number, stream in enumerate(streams)]
    left = len(tasks)
    try:
        while left:
            number, output = await queue.get()
            if isinstance(output, BaseException):
                raise output
            if output is None:
                left -= 1
            else:
                yield number, output
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    number: int,
    stream: AsyncGenerator[EngineOutput, None],
    queue: asyncio.Queue[tuple[int, EngineOutput | BaseException | None]],
) -> None:
    try:
        async with contextlib.aclosing(stream):
            async for output in stream:
                queue.put_nowait((number, output))
        queue.put_nowait((number, None))
    except Exception as error:
        queue.put_nowait((number, error))


async def _numbered(stream: AsyncGenerator[EngineOutput, None]) -> AsyncGenerator[tuple[int, EngineOutput], None]:
    async with contextlib.aclosing(stream):
        async for output in stream:
            yield 0, output


def _stops(stop: str | list[str] | None) -> tuple[str, ...] | None:
    if stop is None:
        return None
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _logit_bias(given: dict[str, float]) -> tuple[tuple[int, float], ...]:
    if any(not key.isascii() or not key.isdigit() or len(key) > 10 for key in given):
        raise InvalidRequest("logit_bias maps token ids to numbers", param="logit_bias")
    return tuple((int(key), bias) for key, bias in given.items())
