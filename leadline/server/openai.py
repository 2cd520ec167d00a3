"""The OpenAI API: models, chat completions and completions, streamed or not.

The same handlers answer at /, /v1, /beta and /beta/v1, which is where clients of DeepSeek's API look for them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Protocol

from fastapi import APIRouter, Request
from starlette.responses import Response

from leadline.engine.types import TokenLogprob, Usage
from leadline.errors import ModelNotFound
from leadline.server.body import read_json
from leadline.server.completion import CompletionService, Delta, Job, Run
from leadline.server.errors import json_response
from leadline.server.logprobs import ShownToken, chat_logprobs, completion_logprobs
from leadline.server.schemas import ChatRequest, CompletionRequest, documented
from leadline.server.sse import DONE, EventStream, JsonWhenDone, event

PREFIXES = ("", "/v1", "/beta", "/beta/v1")
WARNING_HEADER = "x-leadline-warning"


class Format(Protocol):
    """How one endpoint shows choices."""

    def chunks(self, delta: Delta) -> list[dict[str, Any]]:
        """The chunks of a stream that one delta becomes."""
        ...

    def choice(self, index: int, deltas: Sequence[Delta]) -> dict[str, Any]:
        """One choice of a whole answer, from all of its deltas."""
        ...

    def envelope(self, choices: list[dict[str, Any]], *, streamed: bool) -> dict[str, Any]: ...


class ChatFormat:
    def __init__(self, service: CompletionService, job: Job) -> None:
        self.service = service
        self.job = job
        self.opened: set[int] = set()

    def chunks(self, delta: Delta) -> list[dict[str, Any]]:
        """The role first, then text, the reason to end alone and last."""
        choices = []
        if delta.choice not in self.opened:
            self.opened.add(delta.choice)
            choices.append(self._chunk(delta, {"role": "assistant", "content": ""}))
        if delta.text or delta.logprobs:
            choices.append(self._chunk(delta, {"content": delta.text}, delta.logprobs))
        if delta.finish_reason is not None:
            last = self._chunk(delta, {"content": ""}, finish_reason=delta.finish_reason)
            choices.append(last | _why(delta))
        return [self.envelope([choice], streamed=True) for choice in choices]

    def choice(self, index: int, deltas: Sequence[Delta]) -> dict[str, Any]:
        text = "".join(delta.text for delta in deltas)
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self._logprobs([entry for delta in deltas for entry in delta.logprobs]),
            "finish_reason": deltas[-1].finish_reason,
            **_why(deltas[-1]),
        }

    def envelope(self, choices: list[dict[str, Any]], *, streamed: bool) -> dict[str, Any]:
        return _envelope(self.service, self.job, "chat.completion.chunk" if streamed else "chat.completion", choices)

    def _chunk(
        self,
        delta: Delta,
        content: dict[str, str],
        logprobs: Sequence[TokenLogprob] = (),
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        shown = self._logprobs(logprobs) if logprobs else None
        return {"index": delta.choice, "delta": content, "logprobs": shown, "finish_reason": finish_reason}

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        return None if self.job.params.logprobs is None else chat_logprobs(entries)


class TextFormat:
    def __init__(self, service: CompletionService, job: Job) -> None:
        self.service = service
        self.job = job
        self.offsets: dict[int, int] = {}  # by choice: how much of the text has been given out

    def chunks(self, delta: Delta) -> list[dict[str, Any]]:
        choices = []
        opens = delta.choice not in self.offsets
        if delta.text or delta.logprobs or (opens and self.job.echoes):
            choices.append(self._choice(delta.choice, [delta], opens=opens, finish_reason=None))
        if delta.finish_reason is not None:
            choices.append(_text_choice(delta.choice, "", None, delta.finish_reason) | _why(delta))
        return [self.envelope([choice], streamed=True) for choice in choices]

    def choice(self, index: int, deltas: Sequence[Delta]) -> dict[str, Any]:
        return self._choice(index, deltas, opens=True, finish_reason=deltas[-1].finish_reason) | _why(deltas[-1])

    def envelope(self, choices: list[dict[str, Any]], *, streamed: bool) -> dict[str, Any]:
        return _envelope(self.service, self.job, "text_completion", choices)

    def _choice(self, index: int, deltas: Sequence[Delta], *, opens: bool, finish_reason: str | None) -> dict[str, Any]:
        offset = self.offsets.get(index, 0)
        echo = self.job.echoes[index // self.job.params.n] if opens and self.job.echoes else ""
        text = echo + "".join(delta.text for delta in deltas)
        self.offsets[index] = offset + len(text)
        logprobs = None
        if self.job.params.logprobs is not None:
            tokens = self._prompt_tokens(index, deltas[0]) if opens and self.job.echoes else []
            tokens += [self._shown(entry.token_id, entry) for delta in deltas for entry in delta.logprobs]
            logprobs = completion_logprobs(tokens, offset)
        return _text_choice(index, text, logprobs, finish_reason)

    def _prompt_tokens(self, index: int, delta: Delta) -> list[ShownToken]:
        ids = self.job.requests[index // self.job.params.n].prompt_ids
        entries = delta.prompt_logprobs or (None,) * len(ids)
        return [self._shown(token_id, entry) for token_id, entry in zip(ids, entries, strict=True)]

    def _shown(self, token_id: int, entry: TokenLogprob | None) -> ShownToken:
        """Control tokens have a name, but take up no text."""
        text = self.service.tokenizer.token_text(token_id)
        return ShownToken(text, 0 if token_id in self.service.tokenizer.special_ids else len(text), entry)


def build_router(service: CompletionService) -> APIRouter:
    router = APIRouter()
    limit = service.settings.max_body_bytes

    @router.api_route("/models", methods=["GET", "HEAD"])
    async def models(request: Request) -> Response:
        await service.access.admit(request)
        return json_response({"object": "list", "data": [_model_card(service)]})

    @router.api_route("/models/{model:path}", methods=["GET", "HEAD"])
    async def model(request: Request, model: str) -> Response:
        await service.access.admit(request)
        if not model:
            raise ModelNotFound("no model is named", param="model")
        service.check_model(model)
        return json_response(_model_card(service))

    @router.post("/chat/completions", openapi_extra=documented(ChatRequest))
    async def chat_completions(request: Request) -> Response:
        principal = await service.access.admit(request)
        body = await read_json(request, ChatRequest, limit)
        job = await service.chat(body, principal)
        return _answer(service, job, ChatFormat(service, job), streamed=bool(body.stream))

    @router.post("/completions", openapi_extra=documented(CompletionRequest))
    async def completions(request: Request) -> Response:
        principal = await service.access.admit(request)
        body = await read_json(request, CompletionRequest, limit)
        job = await service.complete(body, principal)
        return _answer(service, job, TextFormat(service, job), streamed=bool(body.stream))

    return router


def _answer(service: CompletionService, job: Job, format: Format, *, streamed: bool) -> Response:
    run = service.run(job)
    headers = {WARNING_HEADER: _header_text("; ".join(job.warnings))} if job.warnings else {}
    keep_alive, left = service.settings.keep_alive_seconds, service.metrics.disconnects.inc
    if streamed:
        return EventStream(_events(run, format), keep_alive=keep_alive, left=left, headers=headers)
    return JsonWhenDone(_whole(run, format), keep_alive=keep_alive, left=left, headers=headers)


async def _events(run: Run, format: Format) -> AsyncGenerator[bytes, None]:
    extra: dict[str, None] = {"usage": None} if run.job.include_usage else {}
    async with contextlib.aclosing(run.deltas()) as deltas:
        async for delta in deltas:
            if chunks := format.chunks(delta):
                yield b"".join(event({**chunk, **extra}) for chunk in chunks)
    usage = event({**format.envelope([], streamed=True), "usage": usage_body(run.usage)})
    yield (usage if run.job.include_usage else b"") + DONE


async def _whole(run: Run, format: Format) -> bytes:
    choices: dict[int, list[Delta]] = {}
    async with contextlib.aclosing(run.deltas()) as deltas:
        async for delta in deltas:
            choices.setdefault(delta.choice, []).append(delta)
    shown = [format.choice(index, choices[index]) for index in sorted(choices)]
    body = {**format.envelope(shown, streamed=False), "usage": usage_body(run.usage)}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def usage_body(usage: Usage) -> dict[str, Any]:
    """Hits and misses add up to the prompt; OpenAI's clients read the same hits as cached_tokens."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": 0},
        "prompt_cache_hit_tokens": usage.cached_tokens,
        "prompt_cache_miss_tokens": usage.prompt_tokens - usage.cached_tokens,
    }


def _why(delta: Delta) -> dict[str, str]:
    """vLLM's stop_reason, where an answer was ended for another reason than its own."""
    return {} if delta.stop_reason is None else {"stop_reason": delta.stop_reason}


def _envelope(service: CompletionService, job: Job, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": job.id,
        "object": kind,
        "created": job.created,
        "model": service.model,
        "system_fingerprint": service.fingerprint,
        "choices": choices,
    }


def _text_choice(index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def _model_card(service: CompletionService) -> dict[str, Any]:
    info = service.engine.info
    return {
        "id": info.model,
        "object": "model",
        "created": service.started,
        "owned_by": service.settings.owned_by,
        "context_length": info.context_length,
        "max_output_tokens": service.limit,
    }


def _header_text(text: str) -> str:
    """A header holds ASCII; what is not is written as an escape."""
    return text.encode("ascii", errors="backslashreplace").decode("ascii")
