"""/api/chats: a user's chats, and the answers in them. The contract with the site is docs/site-api.md."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from pydantic import Field
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from leadline.engine.types import Usage
from leadline.errors import InvalidRequest, LeadlineError
from leadline.server import chats, legal
from leadline.server.access import Principal
from leadline.server.answers import Answer, Answers
from leadline.server.chats import Mode
from leadline.server.completion import CompletionService
from leadline.server.conversation import as_messages, chat_request
from leadline.server.errors import error_body, fault, json_response
from leadline.server.money import format_money
from leadline.server.platform import Platform
from leadline.server.routes import Route, body, build, number_query, out_of_range
from leadline.server.schemas import Count, Number, Schema
from leadline.server.sse import COMMENT, EventStream, event

MESSAGE_BYTES = 2 << 20
ATTACHMENTS, ATTACHMENT_CHARACTERS = 8, 1 << 20
MOST_TOKENS = (1 << 31) - 1

MessageId = Annotated[int, Path(ge=0, lt=1 << 31)]
Title = Annotated[str, Field(max_length=200)]
System = Annotated[str, Field(max_length=50_000)]


class ChatBody(Schema):
    title: Title | None = None
    mode: Mode | None = None
    system: System | None = None
    temperature: Number | None = None
    max_tokens: Count | None = None


class ChatChanges(ChatBody):
    pinned: bool | None = None
    current: Count | None = None


class UpTo(Schema):
    current: Count | None = None


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


class TemporaryMessage(Schema):
    role: str
    content: str
    attachments: list[Attachment] = Field([], max_length=ATTACHMENTS)


class TemporaryBody(ChatBody):
    messages: list[TemporaryMessage]


_ROUTES: tuple[Route, ...] = (
    ("GET", "/chats", "list_chats", None),
    ("POST", "/chats", "make_chat", ChatBody),
    ("DELETE", "/chats", "delete_all", None),
    ("GET", "/chats/{chat}", "show", None),
    ("PATCH", "/chats/{chat}", "change", ChatChanges),
    ("DELETE", "/chats/{chat}", "delete", None),
    ("POST", "/chats/{chat}/restore", "restore", None),
    ("POST", "/chats/{chat}/copy", "copy", UpTo),
    ("POST", "/chats/{chat}/messages", "post", MessageBody),
    ("GET", "/chats/{chat}/messages/{number}", "message", None),
    ("POST", "/chats/{chat}/messages/{number}/regenerate", "regenerate", Choices),
    ("POST", "/chats/{chat}/messages/{number}/continue", "go_on", None),
    ("POST", "/chats/{chat}/messages/{number}/stop", "stop", None),
    ("GET", "/chats/{chat}/messages/{number}/stream", "stream", None),
    ("POST", "/temporary", "temporary", TemporaryBody),
)


class ChatRoutes:
    def __init__(self, platform: Platform, service: CompletionService, answers: Answers) -> None:
        self.platform = platform
        self.service = service
        self.answers = answers

    def router(self) -> APIRouter:
        return build(self, "/api", _ROUTES)

    # ---- chats -------------------------------------------------------------------------------------------------

    async def list_chats(self, request: Request) -> Response:
        user = await self._user(request)
        cursor = request.query_params.get("cursor")
        limit = min(max(number_query(request, "limit") or chats.PAGE, 1), chats.MOST_PAGE)
        async with self.platform.store.database.read() as connection:
            rows, following = await chats.page(connection, user, cursor, limit)
            pinned = await chats.pinned(connection, user) if cursor is None else None
        answer = {"data": [self._card(row) for row in rows], "next": following}
        first = {} if pinned is None else {"pinned": [self._card(row) for row in pinned]}
        return json_response({**answer, **first})

    async def make_chat(self, request: Request) -> Response:
        user = await self._user(request)
        given = await body(request, ChatBody, MESSAGE_BYTES)
        values = {name: value for name, value in given.model_dump().items() if value is not None}
        self._check(given)
        async with self.platform.store.database.write() as connection:
            row = await chats.create(connection, user, self.platform.store.now(), **values)
        return json_response(self._card(row), 201)

    async def show(self, request: Request, chat: str) -> Response:
        user = await self._user(request)
        async with self.platform.store.database.read() as connection:
            row = await chats.find(connection, user, chat)
            rows = await chats.messages_of(connection, row.id)
        return json_response({**self._card(row), "messages": [self._message(each) for each in rows]})

    async def change(self, request: Request, chat: str) -> Response:
        user = await self._user(request)
        given = await body(request, ChatChanges, MESSAGE_BYTES)
        values = given.model_dump(include=given.model_fields_set)
        self._check(given)
        async with self.platform.store.database.write() as connection:
            row = await chats.find(connection, user, chat)
            if values.get("current") is not None:
                await chats.find_message(connection, row.id, values["current"])
            values = await self._titled(connection, row, _without_nulls(values))
            row = await chats.change(connection, row.id, **values) if values else row
        return json_response(self._card(row))

    async def delete(self, request: Request, chat: str) -> Response:
        user = await self._user(request)
        async with self.platform.store.database.read() as connection:
            row = await chats.find(connection, user, chat)
        await self._end_answer(row.id)
        now = self.platform.store.now()
        async with self.platform.store.database.write() as connection:
            await chats.remove(connection, user, now, row.id)
        return json_response({"ok": True, "until": now + chats.RESTORE_SECONDS})

    async def delete_all(self, request: Request) -> Response:
        user = await self._user(request)
        async with self.platform.store.database.read() as connection:
            ids = [row.id for row in await chats.every(connection, user)]
        for chat_id in ids:
            await self._end_answer(chat_id)
        now = self.platform.store.now()
        async with self.platform.store.database.write() as connection:
            count = await chats.remove(connection, user, now)
        return json_response({"ok": True, "count": count, "until": now + chats.RESTORE_SECONDS})

    async def restore(self, request: Request, chat: str) -> Response:
        user = await self._user(request)
        async with self.platform.store.database.write() as connection:
            row = await chats.restore(connection, user, chat, self.platform.store.now())
        return json_response(self._card(row))

    async def copy(self, request: Request, chat: str) -> Response:
        user = await self._user(request)
        given = await body(request, UpTo)
        async with self.platform.store.database.write() as connection:
            row = await chats.find(connection, user, chat)
            rows = await chats.messages_of(connection, row.id)
            way = chats.branch(rows, row.current if given.current is None else given.current)
            made = await chats.copy(connection, row, way, self.platform.store.now())
        return json_response(self._card(made), 201)

    # ---- messages and answers ----------------------------------------------------------------------------------

    async def message(self, request: Request, chat: str, number: MessageId) -> Response:
        return json_response(self._message(await self._find(request, chat, number)))

    async def post(self, request: Request, chat: str) -> Response:
        """A message of the user's, and the answer to it, which runs."""
        visitor, row, rows = await self._open(request, chat)
        given = await body(request, MessageBody, MESSAGE_BYTES)
        parent = given.parent if "parent" in given.model_fields_set else row.current
        attachments = _attachments(given.attachments)
        said = {"role": "user", "content": given.content, "attachments": attachments}
        if not given.content.strip() and not attachments:
            raise InvalidRequest("say something", param="content", code="empty_message")
        messages = [*as_messages(chats.branch(rows, parent)), said]
        with self.answers.reserved(row.id):
            answer = await self._prepare(visitor, row, messages, given)
            made: list[Row[Any]] = []

            async def store(connection: AsyncConnection) -> Row[Any]:
                now, last = self.platform.store.now(), await chats.count_up(connection, row, 2)
                made.append(await chats.add_message(connection, row, last - 1, now, parent=parent, **said))
                title = {} if row.title else {"title": chats.first_words(given.content or attachments[0]["name"])}
                made.append(await chats.change(connection, row.id, current=last, updated=now, **title))
                return await self._add_answer(connection, made[1], answer, last, last - 1)

            await self.answers.start(answer, store)
        shown = {"chat": self._card(made[1]), "message": self._message(made[0]), "answer": self._running(answer)}
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
        return json_response(self._message(row))

    async def stream(self, request: Request, chat: str, number: MessageId) -> Response:
        row = await self._find(request, chat, number)
        given = request.headers.get("last-event-id")
        offset = int(given) if given is not None and _is_offset(given) else number_query(request, "offset") or 0
        answer = self.answers.of_message(row.id)
        events = self._stored(row, offset) if answer is None else self._events(answer, offset)
        return EventStream(events, keep_alive=self.service.settings.keep_alive_seconds, left=_nothing)

    async def temporary(self, request: Request) -> Response:
        """An answer that is streamed and stored nowhere; who goes away ends it."""
        visitor = await self._allowed(request)
        given = await body(request, TemporaryBody, MESSAGE_BYTES)
        messages = [{**each.model_dump(), "attachments": _attachments(each.attachments)} for each in given.messages]
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
        events = self._unstored(Answer(0, job))
        return EventStream(events, keep_alive=self.service.settings.keep_alive_seconds, left=_nothing)

    # ---- events ------------------------------------------------------------------------------------------------

    async def _events(self, answer: Answer, offset: int) -> AsyncGenerator[bytes, None]:
        yield COMMENT  # the page hears at once that it is watching
        async for text, end in self.answers.watch(answer, offset):
            yield _piece(text, end, answer.before_tokens + answer.usage.completion_tokens)
        assert answer.row is not None
        async with self.platform.store.database.read() as connection:
            row = await chats.find_by_id(connection, answer.row.chat_id)
        yield event({"type": "done", "chat": self._card(row), "message": self._message(answer.row)})

    async def _stored(self, row: Row[Any], offset: int) -> AsyncGenerator[bytes, None]:
        """Of an answer that has ended."""
        if offset < len(row.content):
            yield _piece(row.content[offset:], len(row.content), row.completion_tokens)
        async with self.platform.store.database.read() as connection:
            chat = await chats.find_by_id(connection, row.chat_id)
        yield event({"type": "done", "chat": self._card(chat), "message": self._message(row)})

    async def _unstored(self, answer: Answer) -> AsyncGenerator[bytes, None]:
        run = self.service.run(answer.job)
        deltas = run.deltas()
        try:
            async for delta in deltas:
                answer.add(delta, run.usage)
                if delta.text:
                    yield _piece(delta.text, len(answer.text), answer.usage.completion_tokens)
        except LeadlineError as error:
            if not answer.text:
                raise
            answer.error = fault(error)
        finally:
            await deltas.aclose()
        cost = format_money(await self.platform.cost(answer.job.id))
        yield event({"type": "done", "message": _temporary_card(answer, self.service.model, cost)})

    # ---- shared ------------------------------------------------------------------------------------------------

    async def _user(self, request: Request) -> int:
        visitor = await self.platform.visitor(request)
        assert visitor.user_id is not None
        return visitor.user_id

    async def _allowed(self, request: Request) -> Principal:
        """Who may have answers: a visitor that has accepted the terms."""
        visitor = await self.platform.visitor(request)
        assert visitor.user_id is not None
        async with self.platform.store.database.read() as connection:
            await legal.check_accepted(connection, visitor.user_id)
        return visitor

    async def _open(self, request: Request, token: str) -> tuple[Principal, Row[Any], list[Row[Any]]]:
        """For a new answer: who asks, the chat, its messages."""
        visitor = await self._allowed(request)
        assert visitor.user_id is not None
        async with self.platform.store.database.read() as connection:
            row = await chats.find(connection, visitor.user_id, token)
            rows = await chats.messages_of(connection, row.id)
        return visitor, row, rows

    async def _find(self, request: Request, token: str, number: int) -> Row[Any]:
        user = await self._user(request)
        async with self.platform.store.database.read() as connection:
            row = await chats.find(connection, user, token)
            return await chats.find_message(connection, row.id, number)

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
        return json_response({"chat": self._card(chat), "answer": self._running(answer)}, 202)

    async def _end_answer(self, chat_id: int) -> None:
        if (answer := self.answers.of_chat(chat_id)) is not None:
            await self.answers.stop(answer)

    async def _titled(self, connection: AsyncConnection, row: Row[Any], values: dict[str, Any]) -> dict[str, Any]:
        """A title of the user's stays; an empty one asks for an automatic one."""
        if "title" not in values:
            return values
        if values["title"].strip():
            return {**values, "title": values["title"].strip(), "title_by": "user"}
        rows = await chats.messages_of(connection, row.id)
        first = next((each.content for each in rows if each.role == "user"), "")
        return {**values, "title": chats.first_words(first), "title_by": "auto"}

    def _check(self, given: ChatBody) -> None:
        """What the completion service would refuse at every message is refused now."""
        if given.temperature is not None and not 0 <= given.temperature <= 2:
            raise out_of_range("temperature", 0, 2)
        if given.max_tokens is not None and not 1 <= given.max_tokens <= MOST_TOKENS:
            raise out_of_range("max_tokens", 1, MOST_TOKENS)

    def _card(self, row: Row[Any]) -> dict[str, Any]:
        answer = self.answers.of_chat(row.id)
        return chats.chat_card(row, answer.row.number if answer is not None and answer.row is not None else None)

    def _message(self, row: Row[Any]) -> dict[str, Any]:
        answer = self.answers.of_message(row.id)
        return chats.message_card(row) if answer is None else self._running(answer)

    def _running(self, answer: Answer) -> dict[str, Any]:
        """Or just ended."""
        assert answer.row is not None
        return chats.message_card(answer.row, None if answer.over else answer.live())


def _piece(text: str, end: int, completion_tokens: int) -> bytes:
    data = event({"type": "text", "text": text, "offset": end, "completion_tokens": completion_tokens})
    return b"id: %d\n" % end + data


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


def _attachments(given: Sequence[Attachment]) -> list[dict[str, str]]:
    if sum(len(each.text) for each in given) > ATTACHMENT_CHARACTERS:
        text = "the attachments are larger than 1 MiB together"
        raise InvalidRequest(text, param="attachments", code="attachments_too_large")
    return [each.model_dump() for each in given]


def _without_nulls(values: dict[str, Any]) -> dict[str, Any]:
    """Null unsets what can be unset, and says nothing about the rest."""
    return {name: each for name, each in values.items() if each is not None or name in ("temperature", "max_tokens")}


def _is_offset(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 12


def _nothing() -> None:
    pass
