"""/api/temporary: a chat that the page keeps and the server does not. All that stays of it is the bill."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from leadline.engine.types import Usage
from leadline.errors import LeadlineError
from leadline.server.answer_routes import ATTACHMENTS, Attachment, checked_attachments, piece
from leadline.server.answers import Answer
from leadline.server.chat_routes import ChatBody
from leadline.server.completion import CompletionService
from leadline.server.conversation import chat_request
from leadline.server.errors import error_body, fault
from leadline.server.money import format_money
from leadline.server.platform import Platform
from leadline.server.routes import MESSAGE_BYTES, Route, body, build
from leadline.server.schemas import Schema
from leadline.server.sse import EventStream, event


class TemporaryMessage(Schema):
    role: str
    content: str
    attachments: list[Attachment] = Field([], max_length=ATTACHMENTS)


class TemporaryBody(ChatBody):
    messages: list[TemporaryMessage]


_ROUTES: tuple[Route, ...] = (("POST", "/temporary", "temporary", TemporaryBody),)


class TemporaryRoutes:
    def __init__(self, platform: Platform, service: CompletionService) -> None:
        self.platform = platform
        self.service = service

    def router(self) -> APIRouter:
        return build(self, "/api", _ROUTES)

    async def temporary(self, request: Request) -> Response:
        """An answer that is streamed and stored nowhere; who goes away ends it."""
        visitor = await self.platform.customer(request)
        given = await body(request, TemporaryBody, MESSAGE_BYTES)
        messages = [
            {**each.model_dump(), "attachments": checked_attachments(each.attachments)} for each in given.messages
        ]
        continues = bool(messages) and messages[-1]["role"] == "assistant"
        asked = chat_request(
            messages,
            mode=given.mode or "chat",
            system=given.system or "",
            temperature=given.temperature,
            max_tokens=given.max_tokens,
            continues=continues,
        )
        job = await self.service.chat(asked, visitor)
        events = self._events(Answer(0, job))
        return EventStream(events, keep_alive=self.service.settings.keep_alive_seconds)

    async def _events(self, answer: Answer) -> AsyncGenerator[bytes, None]:
        run = self.service.run(answer.job)
        deltas = run.deltas()
        try:
            async for delta in deltas:
                answer.add(delta, run.usage)
                if delta.text:
                    yield piece(delta.text, len(answer.text), answer.usage.completion_tokens)
        except LeadlineError as error:
            if not answer.text:
                raise
            answer.error = fault(error)
        finally:
            await deltas.aclose()
        cost = format_money(await self.platform.cost(answer.job.id))
        yield event({"type": "done", "message": _temporary_card(answer, self.service.model, cost)})


def _temporary_card(answer: Answer, model: str, cost: str) -> dict[str, Any]:
    usage: Usage = answer.usage
    names = ("prompt_tokens", "cached_tokens", "completion_tokens")
    failed = answer.error is not None
    return {
        "role": "assistant",
        "content": answer.text,
        "status": "failed" if failed else "done",
        "finish_reason": answer.finish_reason,
        "stop_reason": answer.stop_reason,
        "error": error_body(answer.error)["error"] if answer.error is not None else None,
        "model": model,
        "temperature": answer.job.params.temperature,
        "usage": {name: getattr(usage, name) for name in names},
        "context_tokens": usage.prompt_tokens + usage.completion_tokens,
        "cost": cost,
        "first_token_ms": answer.first_token_ms,
        "ms": answer.ms,
        "offset": len(answer.text),
    }
