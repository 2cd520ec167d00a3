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
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Sequence
from typing import Any, Literal

from leadline.engine.types import (
    EngineOutput,
    EngineProtocol,
    EngineRequest,
    Grammar,
    SamplingParams,
    TokenLogprob,
    Usage,
)
from leadline.errors import EngineError, EngineOverloaded, InvalidRequest, ModelNotFound
from leadline.server.access import NOBODY, Access, OpenAccess, Outcome, Principal
from leadline.server.logprobs import Aligner
from leadline.server.logs import ANSWERS
from leadline.server.metrics import Metrics, Timing
from leadline.server.prompts import chat_prompt, completion_prompts, split_prompts
from leadline.server.schemas import ChatRequest, CompletionRequest, Sampling
from leadline.server.settings import ServerSettings
from leadline.server.structure import answer_grammar, raw_grammar
from leadline.server.tools import Toolbox, read_functions, read_toolbox
from leadline.tokenizer import Tokenizer

log = logging.getLogger(ANSWERS)

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
    tools: Toolbox | None = None  # how to read the answer
    strip_space: bool = False
    streamed: bool = False  # each delta is delivered when it comes, not all of them at the end
    principal: Principal = NOBODY
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))


@dataclasses.dataclass(frozen=True, slots=True)
class Delta:
    """What one step added to one choice; `finish_reason` on its last."""

    choice: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: Literal["stop", "length"] | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    stop_reason: str | None = None


class CompletionService:
    def __init__(
        self,
        engine: EngineProtocol,
        tokenizer: Tokenizer,
        settings: ServerSettings,
        metrics: Metrics,
        access: Access | None = None,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.settings = settings
        self.metrics = metrics
        self.access = access or OpenAccess()
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

    async def chat(self, body: ChatRequest, principal: Principal = NOBODY) -> Job:
        self.check_model(body.model)
        principal.check_model(self.model, alias=body.model)
        if body.top_logprobs is not None and not body.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
        most = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        tools = read_toolbox(body.tools, body.tool_choice, body.parallel_tool_calls)
        tools = tools or read_functions(body.functions, body.function_call)
        opens_with_space = self.tokenizer.answer_opens_with_space
        grammar = answer_grammar(body.response_format, tools, space=opens_with_space)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        params = self._params(body, max_tokens=most, logprobs=logprobs, grammar=grammar)
        self._check_choices(1, params)
        prompt = await chat_prompt(self.tokenizer, body, self.limit, tools.prompt if tools else None)
        if prompt.continues and grammar is not None:
            raise InvalidRequest("prefix cannot be used with tools or a response_format", param="messages")
        job_id = f"chatcmpl-{uuid.uuid4()}"
        requests = self._requests(job_id, [prompt.ids], params, principal.cache_salt(body.user_id))
        strip = opens_with_space and not prompt.continues
        return Job(
            job_id,
            requests,
            params,
            body.include_usage,
            tools=tools,
            strip_space=strip,
            streamed=bool(body.stream),
            principal=principal,
        )

    async def complete(self, body: CompletionRequest, principal: Principal = NOBODY) -> Job:
        self.check_model(body.model)
        principal.check_model(self.model, alias=body.model)
        echo_only = bool(body.echo) and body.max_tokens == 0
        most = 1 if echo_only else COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        echoed = body.logprobs if body.echo else None
        grammar = _completion_grammar(body, principal)
        params = self._params(body, max_tokens=most, logprobs=body.logprobs, prompt_logprobs=echoed, grammar=grammar)
        given = split_prompts(body.prompt)
        self._check_choices(len(given), params)
        if body.parse_special or self._has_control_ids(given):
            principal.check_control_tokens()
        prompts = await completion_prompts(self.tokenizer, body, given, self.limit)
        job_id = f"cmpl-{uuid.uuid4()}"
        return Job(
            job_id,
            self._requests(job_id, [prompt.ids for prompt in prompts], params, principal.cache_salt(body.user_id)),
            params,
            body.include_usage,
            warnings=tuple(dict.fromkeys(warning for prompt in prompts for warning in prompt.warnings)),
            echoes=self._echoes(given) if body.echo else (),
            echo_only=echo_only,
            streamed=bool(body.stream),
            principal=principal,
        )

    def run(self, job: Job) -> Run:
        return Run(self, job)

    def _params(self, body: Sampling, *, max_tokens: int | None, **more: int | Grammar | None) -> SamplingParams:
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
        self, job_id: str, prompts: Sequence[tuple[int, ...]], params: SamplingParams, salt: bytes
    ) -> tuple[EngineRequest, ...]:
        return tuple(
            EngineRequest(f"{job_id}-{number}", ids, params, cache_salt=salt) for number, ids in enumerate(prompts)
        )

    def _has_control_ids(self, prompts: Sequence[Any]) -> bool:
        special = self.tokenizer.special_ids
        return any(not isinstance(prompt, str) and not special.isdisjoint(prompt) for prompt in prompts)

    def most_tokens(self, job: Job) -> int:
        """What all answers of a job can have together."""
        if job.echo_only:
            return 0
        room = (self.engine.info.context_length - len(request.prompt_ids) for request in job.requests)
        most = job.params.max_tokens
        return job.params.n * sum(left if most is None else min(most, left) for left in room)

    def _echoes(self, prompts: Sequence[str | list[int]]) -> tuple[str, ...]:
        return tuple(item if isinstance(item, str) else self.tokenizer.decode(item) for item in prompts)


class Run:
    """One job being answered."""

    def __init__(self, service: CompletionService, job: Job) -> None:
        self.service = service
        self.job = job
        self._prompt_tokens = sum(len(request.prompt_ids) for request in job.requests)
        self._completion_tokens = self._cached_tokens = 0
        self._usages: dict[int, Usage] = {}
        self._ended: set[int] = set()
        self.meter = service.access.meter(job.principal, job.id, self._prompt_tokens, service.most_tokens(job))
        hidden = service.tokenizer.special_ids if job.params.skip_special_tokens else frozenset[int]()
        self._opened = False
        choices = len(job.requests) * job.params.n
        self._aligners = [Aligner(hidden, strip_space=job.strip_space) for _ in range(choices)]

    @property
    def usage(self) -> Usage:
        return Usage(self._prompt_tokens, self._completion_tokens, self._cached_tokens)

    def _count(self, choice: int, usage: Usage) -> None:
        """Prompts count once whatever `n`; of a prompt's answers the one that found least in the cache counts."""
        before = self._usages.get(choice)
        self._usages[choice] = usage
        self._completion_tokens += usage.completion_tokens - (before.completion_tokens if before else 0)
        if before is None:
            self._cached_tokens = sum(self._cached_of(number) for number in range(len(self.job.requests)))

    def _cached_of(self, number: int) -> int:
        n = self.job.params.n
        seen = [self._usages[i].cached_tokens for i in range(number * n, number * n + n) if i in self._usages]
        return min(seen, default=0)

    async def open(self) -> None:
        """Hold what the answer may cost, or raise. `deltas` does it too, unless it was done; who calls it and then does
        not iterate `deltas` closes the meter."""
        if not self._opened:
            self._opened = True
            await self.meter.open()

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """What each step adds. However it ends, what was delivered is paid for when this is closed."""
        outcome: Outcome = "aborted"
        began, failure = None, None
        try:
            await self.open()
            began = time.monotonic()
            async with contextlib.aclosing(self._covered()) as deltas:
                async for delta in deltas:
                    yield delta
                    self.meter.delivered(self._delivered())
                    outcome = "balance" if delta.stop_reason else outcome
            outcome = "finished" if outcome == "aborted" else outcome
            self.meter.delivered(self.usage)
        except Exception as error:
            outcome, failure = "failed", error
            if not self.job.streamed:
                self.meter.delivered(Usage())
            raise
        finally:
            await self.meter.close(outcome)
            if began is not None:
                self._note(outcome, failure, time.monotonic() - began)

    def _note(self, outcome: Outcome, failure: Exception | None, seconds: float) -> None:
        """Count the answer, and write a line about it: by its id, which is its bill's, and with no word of it."""
        self.service.metrics.answers.labels(outcome).inc()
        if log.isEnabledFor(logging.INFO):
            facts = {"answer": self.job.id, "account": self.job.principal.user_id, "key": self.job.principal.key_id}
            facts |= {**dataclasses.asdict(self.usage), "ms": round(1000 * seconds)}
            facts |= {} if failure is None else {"code": getattr(failure, "code", type(failure).__name__)}
            log.info(outcome, extra=facts)

    def _delivered(self) -> Usage:
        """Of an answer that is sent whole, nothing but the work on the prompt, until it is whole."""
        return self.usage if self.job.streamed else dataclasses.replace(self.usage, completion_tokens=0)

    async def _covered(self) -> AsyncGenerator[Delta, None]:
        """The engine's deltas, as far as they are paid for."""
        timing = Timing(self.service.metrics, time.monotonic())
        async with contextlib.aclosing(self._outputs()) as outputs:
            async for choice, output in outputs:
                if not await self.meter.cover(self._tokens_with(choice, output)):
                    for delta in self._cut():
                        yield delta
                    break
                if output.token_ids:
                    timing.token(time.monotonic())
                yield self._delta(choice, output)
        timing.end(time.monotonic())

    def _tokens_with(self, choice: int, output: EngineOutput) -> int:
        """The answers' tokens, this output's included."""
        if self.job.echo_only:
            return 0
        before = self._usages.get(choice, Usage())
        return self._completion_tokens - before.completion_tokens + output.usage.completion_tokens

    def _cut(self) -> list[Delta]:
        """The end of every answer that has not ended, because the balance has."""
        left = [choice for choice in range(len(self._aligners)) if choice not in self._ended]
        cut = []
        for choice in left:
            text, logprobs = self._aligners[choice].push("", (), "length")
            cut.append(Delta(choice, text, logprobs, "length", stop_reason="insufficient_balance"))
        return cut

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
        with self._named():
            outputs = self.service.engine.submit(request)
            try:
                async for output in outputs:
                    left -= output.finish_reason is not None
                    yield output
            finally:
                if left > 0:
                    self.service.engine.cancel(request.request_id)
                await close(outputs)

    @contextlib.contextmanager
    def _named(self) -> Generator[None, None, None]:
        """A grammar is the engine's word; the request has another for what it asks for."""
        try:
            yield
        except InvalidRequest as error:
            if error.param == "grammar":
                grammar = self.job.params.grammar
                asked = "response_format" if grammar and grammar.response_format else "structured_outputs"
                error.param = "tools" if self.job.tools else asked
            raise

    def _delta(self, choice: int, output: EngineOutput) -> Delta:
        if output.finish_reason == "error":
            raise EngineError(output.error or "the engine failed")
        if output.finish_reason == "cancelled":
            raise EngineOverloaded("the server is shutting down")
        if output.finish_reason is not None:
            self._ended.add(choice)
        if self.job.echo_only:
            self._count(choice, dataclasses.replace(output.usage, completion_tokens=0))
            return Delta(choice, "", (), output.finish_reason, output.prompt_logprobs)
        self._count(choice, output.usage)
        text, logprobs = self._aligners[choice].push(output.text, output.logprobs, output.finish_reason)
        return Delta(choice, text, logprobs, output.finish_reason, output.prompt_logprobs)


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


def _completion_grammar(body: CompletionRequest, principal: Principal) -> Grammar | None:
    raw, shape = raw_grammar(body.structured_outputs), answer_grammar(body.response_format, None, space=False)
    if raw is None:
        return shape
    principal.check_grammars()
    if shape is not None:
        raise InvalidRequest("structured_outputs cannot be used with response_format", param="structured_outputs")
    return raw


def _stops(stop: str | list[str] | None) -> tuple[str, ...] | None:
    if stop is None:
        return None
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _logit_bias(given: dict[str, float]) -> tuple[tuple[int, float], ...]:
    if any(not key.isascii() or not key.isdigit() or len(key) > 10 for key in given):
        raise InvalidRequest("logit_bias maps token ids to numbers", param="logit_bias")
    return tuple((int(key), bias) for key, bias in given.items())
