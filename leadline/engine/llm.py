"""LLM: offline use. Prompts in, finished answers out.

    from leadline import LLM, SamplingParams
    llm = LLM()                                       # the embedded model; or LLM("DIR or hub id")
    for output in llm.generate(["The depth of the"], SamplingParams(max_tokens=20)):
        print(output.text)
    for piece in llm.stream([{"role": "user", "content": "What is the sea?"}]):
        print(piece, end="")

Prompts may be text or ids; either way they begin with exactly one BOS. Whatever the number of prompts, the engine gets
as many at a time as it can run, and answers come back in the order of the prompts.
"""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Self, cast

from leadline.engine.engine import Engine
from leadline.engine.types import CompletionOutput, EngineOutput, EngineRequest, RequestOutput, SamplingParams, Usage
from leadline.errors import Conflict, EngineError, InvalidRequest
from leadline.tokenizer import Message, Tokenizer

Prompts = str | Sequence[str] | Sequence[Sequence[int]] | Sequence[int]
Conversation = Sequence[Mapping[str, str] | Message]


class LLM:
    """One model in this process. `model` is a folder or a hub id; None is the embedded model.

    `max_memory` ("8GiB" or bytes) bounds weights, cache and activations; `max_model_len` None is what fits. The other
    options are `leadline.engine.load.load_engine`'s.
    """

    def __init__(self, model: str | Path | None = None, **options: Any) -> None:
        from leadline.engine.load import load_engine

        loaded = load_engine(model, **options)
        self._setup(loaded.engine, loaded.tokenizer, loaded.generation.sampling_defaults())

    @classmethod
    def of(cls, engine: Engine, tokenizer: Tokenizer, defaults: Mapping[str, Any] | None = None) -> Self:
        """Over an engine that is there already: a trainer's, say."""
        llm = cls.__new__(cls)
        llm._setup(engine, tokenizer, defaults or {})
        return llm

    def _setup(self, engine: Engine, tokenizer: Tokenizer, defaults: Mapping[str, Any]) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.default_params = SamplingParams(**defaults)
        self._numbers = itertools.count()

    # ---- what a user calls -------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompts,
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
        cache_salt: bytes = b"",
    ) -> list[RequestOutput]:
        """Complete each prompt: always a list, of one for one prompt. `params` None is the model's own defaults."""
        return self._run([self._prompt_ids(prompt) for prompt in _as_list(prompts)], params, progress, cache_salt)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        continue_final: bool = False,
        progress: bool = False,
        cache_salt: bytes = b"",
    ) -> list[RequestOutput]:
        """Answer each conversation. The space that opens V2's answers is the template's, not the text's."""
        prompts = [
            self.tokenizer.render(conversation, add_generation_prompt=not continue_final, continue_final=continue_final)
            for conversation in _conversations(messages)
        ]
        outputs = self._run(prompts, params, progress, cache_salt)
        if continue_final or not self.tokenizer.answer_opens_with_space:
            return outputs
        return [_without_leading_space(output) for output in outputs]

    def stream(
        self,
        prompt: str | Sequence[int] | Conversation,
        params: SamplingParams | None = None,
        *,
        cache_salt: bytes = b"",
    ) -> Iterator[str]:
        """The text of one answer as it comes: what completes a prompt, or answers a conversation. Who stops reading
        stops the engine; until then this LLM does nothing else."""
        conversation = bool(prompt) and isinstance(prompt[0], Mapping | Message)
        if conversation:
            ids = self.tokenizer.render(cast("Conversation", prompt), add_generation_prompt=True)
        else:
            ids = self._prompt_ids(_as_list(cast("Prompts", prompt))[0])
        chosen = self._params(params, 1)[0]
        if chosen.n != 1:
            raise InvalidRequest("a stream is one answer: n must be 1", param="n")
        [request] = self._requests([ids], [chosen], cache_salt)
        self.engine.check(request)
        return self._pieces(request, opens_with_space=conversation and self.tokenizer.answer_opens_with_space)

    def _pieces(self, request: EngineRequest, *, opens_with_space: bool) -> Iterator[str]:
        self._check_idle()
        try:
            for output in self._outputs([request]):
                if output.finish_reason == "error":
                    raise EngineError(output.error or "the engine failed")
                text = output.text.removeprefix(" ") if opens_with_space else output.text
                opens_with_space = opens_with_space and not output.text
                if text:
                    yield text
        finally:
            self.engine.cancel_all()

    def _check_idle(self) -> None:
        if self.engine.has_work:
            raise Conflict("this LLM is in the middle of a stream: read it to its end or close it first")

    # ---- the loop ----------------------------------------------------------------------------------------------

    def _prompt_ids(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        if not isinstance(prompt, str):
            return self.tokenizer.prompt_ids(prompt)
        encoded = self.tokenizer.encode_prompt(prompt)
        for line in encoded.warnings:
            warnings.warn(line, stacklevel=4)
        return encoded.ids

    def _run(
        self,
        prompts: Sequence[tuple[int, ...]],
        params: SamplingParams | Sequence[SamplingParams] | None,
        progress: bool,
        cache_salt: bytes,
    ) -> list[RequestOutput]:
        requests = self._requests(prompts, self._params(params, len(prompts)), cache_salt)
        for request in requests:
            self.engine.check(request)  # all of them before any work
        self._check_idle()
        answers = {request.request_id: _Answers(request) for request in requests}
        with _bar(len(requests), progress) as bar:
            try:
                for output in self._outputs(requests):
                    answers[output.request_id].add(output)
                    bar.token(done=answers[output.request_id].complete and output.finish_reason is not None)
            finally:
                self.engine.cancel_all()
        return [each.result() for each in answers.values()]

    def _params(self, params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> Sequence[SamplingParams]:
        if params is None or isinstance(params, SamplingParams):
            return [params or self.default_params] * count
        if not isinstance(params, Sequence) or not all(isinstance(each, SamplingParams) for each in params):
            raise InvalidRequest("params must be SamplingParams, or a list of one for each prompt", param="params")
        if len(params) != count:
            raise InvalidRequest(f"{count} prompts, but {len(params)} sampling parameters", param="params")
        return params

    def _requests(
        self, prompts: Sequence[tuple[int, ...]], params: Sequence[SamplingParams], cache_salt: bytes
    ) -> list[EngineRequest]:
        return [
            EngineRequest(f"llm-{next(self._numbers)}", ids, each, cache_salt=cache_salt)
            for ids, each in zip(prompts, params, strict=True)
        ]

    def _outputs(self, requests: Sequence[EngineRequest]) -> Iterator[EngineOutput]:
        """Feed the engine as its queue empties, so that a million prompts take no more memory than they must."""
        pending = iter(requests)
        left = len(requests)
        while left or self.engine.has_work:
            room = self.engine.config.scheduler.max_num_seqs - len(self.engine.scheduler.waiting)
            for request in itertools.islice(pending, max(room, 0)):
                self.engine.add(request)
                left -= 1
            yield from self.engine.step()


class _Answers:
    """What has come back for one request."""

    def __init__(self, request: EngineRequest) -> None:
        self.request = request
        self.outputs: list[list[EngineOutput]] = [[] for _ in range(request.params.n)]

    def add(self, output: EngineOutput) -> None:
        self.outputs[output.index].append(output)

    @property
    def complete(self) -> bool:
        return all(outputs and outputs[-1].finish_reason is not None for outputs in self.outputs)

    def result(self) -> RequestOutput:
        usages = [outputs[-1].usage for outputs in self.outputs]
        return RequestOutput(
            self.request.request_id,
            self.request.prompt_ids,
            tuple(map(_completion, self.outputs)),
            Usage(usages[0].prompt_tokens, sum(usage.completion_tokens for usage in usages), usages[0].cached_tokens),
            next((output.prompt_logprobs for output in self.outputs[0] if output.prompt_logprobs), ()),
        )


def _completion(outputs: Sequence[EngineOutput]) -> CompletionOutput:
    last = outputs[-1]
    return CompletionOutput(
        index=last.index,
        text="".join(output.text for output in outputs),
        token_ids=tuple(token for output in outputs for token in output.token_ids),
        finish_reason=last.finish_reason or "error",
        stop_reason=last.stop_reason,
        logprobs=tuple(entry for output in outputs for entry in output.logprobs),
        routed_experts=last.routed_experts,
        error=last.error,
    )


class _Bar:
    """Progress that nobody looks at."""

    def token(self, *, done: bool) -> None:
        """One more token; `done` with the last of a prompt."""


class _RichBar(_Bar):
    """Prompts done, tokens a second, time left; on standard error, so that output can be piped."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeElapsedColumn())
        self.progress = Progress(*columns, console=Console(stderr=True))
        self.task = self.progress.add_task("prompts", total=total, rate="")
        self.tokens = 0

    def token(self, *, done: bool) -> None:
        self.tokens += 1
        if done:
            elapsed = self.progress.tasks[0].elapsed or 1e-9
            self.progress.update(self.task, advance=1, rate=f"{self.tokens / elapsed:.0f} tokens/s")

    def __enter__(self) -> _RichBar:
        self.progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.progress.stop()


def _bar(total: int, progress: bool) -> AbstractContextManager[_Bar]:
    return _RichBar(total) if progress else nullcontext(_Bar())


def _as_list(prompts: Prompts) -> Sequence[str | Sequence[int]]:
    """One prompt, as text or as ids, is a list of one."""
    if not isinstance(prompts, Sequence):
        raise InvalidRequest(f"prompts must be a text, ids, or a list of them, not {prompts!r}", param="prompts")
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        return [cast("str | Sequence[int]", prompts)]
    return cast("Sequence[str | Sequence[int]]", prompts)


def _conversations(messages: Conversation | Sequence[Conversation]) -> Sequence[Conversation]:
    if isinstance(messages, str | Mapping):
        raise InvalidRequest('messages must be a list of {"role": ..., "content": ...}', param="messages")
    if messages and isinstance(messages[0], Mapping | Message):
        return [cast("Conversation", messages)]
    return cast("Sequence[Conversation]", messages)


def _without_leading_space(output: RequestOutput) -> RequestOutput:
    outputs = (dataclasses.replace(each, text=each.text.removeprefix(" ")) for each in output.outputs)
    return dataclasses.replace(output, outputs=tuple(outputs))
