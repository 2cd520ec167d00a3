"""The OpenAI API: models, chat completions and completions, streamed or not.

The same handlers answer at /, /v1, /beta and /beta/v1, which is where clients of DeepSeek's API look for them.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from leadline.errors import ModelNotFound
from leadline.server.body import read_json
from leadline.server.completion import CompletionService, Delta, Job, Run
from leadline.server.errors import error_body, json_response
from leadline.server.formats import ChatFormat, Envelope, Format, TextFormat
from leadline.server.schemas import ChatRequest, CompletionRequest, documented
from leadline.server.sse import DONE, STOPPING, EventStream, JsonWhenDone, event

PREFIXES = ("", "/v1", "/beta", "/beta/v1")
WARNING_HEADER = "x-leadline-warning"


def build_router(service: CompletionService) -> APIRouter:
    router = APIRouter()
    limit = service.settings.max_body_bytes

    @router.head("/models", include_in_schema=False)
    @router.get("/models")
    async def models(request: Request) -> Response:
        await service.access.admit(request)
        return json_response({"object": "list", "data": [_model_card(service)]})

    @router.head("/models/{model:path}", include_in_schema=False)
    @router.get("/models/{model:path}")
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
        request.scope["answer"] = job.id  # for the line in the log
        return _answer(service, job, ChatFormat(job), streamed=bool(body.stream))

    @router.post("/completions", openapi_extra=documented(CompletionRequest))
    async def completions(request: Request) -> Response:
        principal = await service.access.admit(request)
        body = await read_json(request, CompletionRequest, limit)
        job = await service.complete(body, principal)
        request.scope["answer"] = job.id
        return _answer(service, job, TextFormat(service, job), streamed=bool(body.stream))

    return router


def _answer(service: CompletionService, job: Job, format: Format, *, streamed: bool) -> Response:
    run = service.run(job)
    headers = {WARNING_HEADER: _header_text("; ".join(job.warnings))} if job.warnings else {}
    envelope = Envelope(service, job, format.chunk_kind if streamed else format.kind)
    keep_alive, left = service.settings.keep_alive_seconds, service.metrics.disconnects.inc
    if streamed:
        events, farewell = _events(run, format, envelope), event(error_body(STOPPING))
        return EventStream(events, keep_alive=keep_alive, left=left, headers=headers, farewell=farewell)
    return JsonWhenDone(_whole(run, format, envelope), keep_alive=keep_alive, left=left, headers=headers)


async def _events(run: Run, format: Format, envelope: Envelope) -> AsyncGenerator[bytes, None]:
    async with contextlib.aclosing(run.deltas()) as deltas:
        async for delta in deltas:
            if choices := format.chunks(delta):
                yield b"".join(map(envelope.chunk, choices))
    yield (envelope.usage_chunk(run.usage) if run.job.include_usage else b"") + DONE


async def _whole(run: Run, format: Format, envelope: Envelope) -> bytes:
    choices: dict[int, list[Delta]] = {}
    async with contextlib.aclosing(run.deltas()) as deltas:
        async for delta in deltas:
            choices.setdefault(delta.choice, []).append(delta)
    return envelope.whole([format.choice(index, choices[index]) for index in sorted(choices)], run.usage)


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
