"""/api/chats/{chat}/messages: what is said in a chat, and the answers that run there. See docs/site-api.md."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from pydantic import Field
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from leadline.errors import InvalidRequest
from leadline.server import chats
from leadline.server.access import Principal
from leadline.server.answers import Answer, Answers
from leadline.server.cards import Cards
from leadline.server.completion import CompletionService
from leadline.server.conversation import as_messages, chat_request
from leadline.server.errors import json_response
from leadline.server.platform import Platform
from leadline.server.routes import MESSAGE_BYTES, Route, body, build, number_query
from leadline.server.schemas import Count, Number, Schema
from leadline.server.sse import COMMENT, EventStream, event

ATTACHMENTS, ATTACHMENT_CHARACTERS = 8, 1 << 20

MessageId = Annotated[int, Path(ge=0, lt=1 << 31)]


class Attachment(Schema):
    name: Annotated[str, Field(min_length=1, max_length=200)]
    text: str


class Choices(Schema):
    """How this answer is to be made, where not as the chat says."""

    temperature: Number | None = None
    max_tokens: Count | None = None


class MessageBody(Choices):
    content: str
    parent: Count | None = None
    attachments: list[Attachment] = Field([], max_length=ATTACHMENTS)


_ROUTES: tuple[Route, ...] = (
    ("POST", "/chats/{chat}/messages", "post", MessageBody),
    ("GET", "/chats/{chat}/messages/{number}", "message", None),
    ("POST", "/chats/{chat}/messages/{number}/regenerate", "regenerate", Choices),
    ("POST", "/chats/{chat}/messages/{number}/continue", "go_on", None),
    ("POST", "/chats/{chat}/messages/{number}/stop", "stop", None),
    ("GET", "/chats/{chat}/messages/{number}/stream", "stream", None),
)


class AnswerRoutes:
    def __init__(self, platform: Platform, service: CompletionService, answers: Answers) -> None:
        self.platform = platform
        self.service = service
        self.answers = answers
        self.cards = Cards(answers)

    def router(self) -> APIRouter:
        return build(self, "/api", _ROUTES)

    async def message(self, request: Request, chat: str, number: MessageId) -> Response:
        return json_response(self.cards.message(await self._find(request, chat, number)))

    async def post(self, request: Request, chat: str) -> Response:
        """A message of the user's, and the answer to it, which runs."""
        visitor, row, rows = await self._open(request, chat)
        given = await body(request, MessageBody, MESSAGE_BYTES)
        parent = given.parent if "parent" in given.model_fields_set else row.current
        attachments = checked_attachments(given.attachments)
        said = {"role": "user", "content": given.content, "attachments": attachments}
        if not given.content.strip() and not attachments:
            raise InvalidRequest("say something", param="content", code="empty_message")
        messages = [*as_messages(chats.branch(rows, parent)), said]
        with self.answers.reserved(row.id):
            answer = await self._prepare(visitor, row, messages, given)
            made: list[Row[Any]] = []
            words = "" if row.title else chats.first_words(given.content or attachments[0]["name"])
            if words:
                answer.then = lambda: self._find_title(visitor, row, words, said, answer.text)

            async def store(connection: AsyncConnection) -> Row[Any]:
                now, last = self.platform.store.now(), await chats.count_up(connection, row, 2)
                made.append(await chats.add_message(connection, row, last - 1, now, parent=parent, **said))
                title = {"title": words} if words else {}
                made.append(await chats.change(connection, row.id, current=last, updated=now, **title))
                return await self._add_answer(connection, made[1], answer, last, last - 1)

            await self.answers.start(answer, store)
        shown = {
            "chat": self.cards.chat(made[1]),
            "message": self.cards.message(made[0]),
            "answer": self.cards.answer(answer),
        }
        return json_response(shown, 202)

    async def regenerate(self, request: Request, chat: str, number: MessageId) -> Response:
        """One more answer to a user's message; of an answer, one beside it."""
        visitor, row, rows = await self._open(request, chat)
        given = await body(request, Choices)
        way = chats.branch(rows, number)
        question = way if way[-1].role == "user" else way[:-1]
        if not question:
            raise InvalidRequest("there is no question before this answer", code="nothing_to_answer")
        with self.answers.reserved(row.id):
            answer = await self._prepare(visitor, row, as_messages(question), given)

            async def store(connection: AsyncConnection) -> Row[Any]:
                now, last = self.platform.store.now(), await chats.count_up(connection, row, 1)
                changed = await chats.change(connection, row.id, current=last, updated=now)
                return await self._add_answer(connection, changed, answer, last, question[-1].number)

            await self.answers.start(answer, store)
        return await self._started(row, answer)

    async def go_on(self, request: Request, chat: str, number: MessageId) -> Response:
        """The same message goes on where it was cut, stopped or broken off."""
        visitor, row, rows = await self._open(request, chat)
        way = chats.branch(rows, number)
        if way[-1].role != "assistant" or way[-1].finish_reason == "stop":
            text = "this answer has come to its end; there is nothing to continue"
            raise InvalidRequest(text, code="nothing_to_continue")
        before = way[-1]
        given = Choices(temperature=before.temperature)
        with self.answers.reserved(row.id):
            answer = await self._prepare(visitor, row, as_messages(way), given, before)

            async def store(connection: AsyncConnection) -> Row[Any]:
                again = {"status": "running", "finish_reason": None, "stop_reason": None, "error": None}
                now = self.platform.store.now()
                await chats.change(connection, row.id, current=number, updated=now)
                return await chats.update_message(connection, before.id, request_id=answer.job.id, **again)

            await self.answers.start(answer, store)
        return await self._started(row, answer)

    async def stop(self, request: Request, chat: str, number: MessageId) -> Response:
        row = await self._find(request, chat, number)
        answer = self.answers.of_message(row.id)
        if answer is not None:
            await self.answers.stop(answer)
            row = answer.row or row
        return json_response(self.cards.message(row))

    async def stream(self, request: Request, chat: str, number: MessageId) -> Response:
        row = await self._find(request, chat, number)
        given = request.headers.get("last-event-id")
        offset = int(given) if given is not None and _is_offset(given) else number_query(request, "offset") or 0
        answer = self.answers.of_message(row.id)
        events = self._stored(row, offset) if answer is None else self._events(answer, offset)
        return EventStream(events, keep_alive=self.service.settings.keep_alive_seconds)

    # ---- events ---------------------------------------------------------------------------------------------------

    async def _events(self, answer: Answer, offset: int) -> AsyncGenerator[bytes, None]:
        yield COMMENT  # the page hears at once that it is watching
        async for text, end in self.answers.watch(answer, offset):
            yield piece(text, end, answer.before_tokens + answer.usage.completion_tokens)
        assert answer.row is not None
        async with self.platform.store.database.read() as connection:
            row = await chats.find_by_id(connection, answer.row.chat_id)
        yield event({"type": "done", "chat": self.cards.chat(row), "message": self.cards.message(answer.row)})

    async def _stored(self, row: Row[Any], offset: int) -> AsyncGenerator[bytes, None]:
        """Of an answer that has ended."""
        if offset < len(row.content):
            yield piece(row.content[offset:], len(row.content), row.completion_tokens)
        async with self.platform.store.database.read() as connection:
            chat = await chats.find_by_id(connection, row.chat_id)
        yield event({"type": "done", "chat": self.cards.chat(chat), "message": self.cards.message(row)})

    # ---- shared ---------------------------------------------------------------------------------------------------

    async def _open(self, request: Request, token: str) -> tuple[Principal, Row[Any], list[Row[Any]]]:
        """For a new answer: who asks, the chat, its messages."""
        visitor = await self.platform.customer(request)
        async with self.platform.store.database.read() as connection:
            row = await chats.find(connection, visitor.owner, token)
            rows = await chats.messages_of(connection, row.id)
        return visitor, row, rows

    async def _find(self, request: Request, token: str, number: int) -> Row[Any]:
        user = await self.platform.user(request)
        async with self.platform.store.database.read() as connection:
            row = await chats.find(connection, user, token)
            return await chats.find_message(connection, row.id, number)

    def _find_title(
        self, visitor: Principal, chat: Row[Any], words: str, question: Mapping[str, Any], answer: str
    ) -> None:
        said = [question, {"role": "assistant", "content": answer}]
        self.answers.titler.begin(chat.id, words, said, chat.system, visitor)

    async def _prepare(
        self,
        visitor: Principal,
        chat: Row[Any],
        messages: Sequence[dict[str, Any]],
        given: Choices,
        before: Row[Any] | None = None,
    ) -> Answer:
        """The answer that could be given; what is wrong with the request is said here. `before` is to be continued."""
        asked = chat_request(
            messages,
            mode=chat.mode,
            system=chat.system,
            temperature=chat.temperature if given.temperature is None else given.temperature,
            max_tokens=chat.max_tokens if given.max_tokens is None else given.max_tokens,
            continues=before is not None,
        )
        job = await self.service.chat(asked, visitor)
        if before is None:
            return Answer(chat.id, job)
        return Answer(chat.id, job, before.content, before.completion_tokens)

    async def _add_answer(
        self, connection: AsyncConnection, chat: Row[Any], answer: Answer, number: int, parent: int
    ) -> Row[Any]:
        values = {"role": "assistant", "status": "running", "request_id": answer.job.id, "model": self.service.model}
        now, temperature = self.platform.store.now(), answer.job.params.temperature
        return await chats.add_message(connection, chat, number, now, parent=parent, temperature=temperature, **values)

    async def _started(self, row: Row[Any], answer: Answer) -> Response:
        async with self.platform.store.database.read() as connection:
            chat = await chats.find_by_id(connection, row.id)
        return json_response({"chat": self.cards.chat(chat), "answer": self.cards.answer(answer)}, 202)


def piece(text: str, end: int, completion_tokens: int) -> bytes:
    data = event({"type": "text", "text": text, "offset": end, "completion_tokens": completion_tokens})
    return b"id: %d\n" % end + data


def checked_attachments(given: Sequence[Attachment]) -> list[dict[str, str]]:
    if sum(len(each.text) for each in given) > ATTACHMENT_CHARACTERS:
        text = "the attachments are larger than 1 MiB together"
        raise InvalidRequest(text, param="attachments", code="attachments_too_large")
    return [each.model_dump() for each in given]


def _is_offset(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 12
