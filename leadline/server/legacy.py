"""/api/v0: the chat protocol that programs of 2024 speak, for programs that someone has pointed at this server.

A user has one conversation for each model class; it is kept here, as a chat named "API (legacy)" among the user's
chats, and a request brings the next message alone. Such programs take an event's line apart with little care, so a
stream is written for the least careful: no [DONE] and no comments, a content and a payload in every event, ASCII, no
blanks in long runs, and `data:` at a line's beginning only. Refusals are real statuses, in both protocols' words.
"""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from sqlalchemy import Row, and_, select
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from leadline.errors import InvalidRequest, LeadlineError
from leadline.server import accounts, chats, legal
from leadline.server.accounts import CLIENT_DAYS
from leadline.server.answers import Answer, Answers
from leadline.server.body import read_json
from leadline.server.chats import Mode
from leadline.server.completion import CompletionService
from leadline.server.conversation import as_messages, chat_request
from leadline.server.db import chats as chat_rows
from leadline.server.errors import error_body, fault, json_response, retry_headers
from leadline.server.platform import Platform
from leadline.server.routes import MESSAGE_BYTES, Route, address, build
from leadline.server.schemas import Number, Schema
from leadline.server.sse import BLANK, EventStream

TITLE = "API (legacy)"
SPACES = 4  # in an event that has nothing else: runs of five are dropped by a program that is still about

ModelClass = Literal["deepseek_chat", "deepseek_code"]
Handler = Callable[["LegacyRoutes", Request], Awaitable[Response]]
_MODES: dict[ModelClass, Mode] = {"deepseek_chat": "chat", "deepseek_code": "coder"}


class LoginBody(Schema):
    email: str | None = None
    mobile: str | None = None
    password: str
    area_code: str | None = None


class MessageBody(Schema):
    message: str
    model_class: ModelClass = "deepseek_chat"
    temperature: Number | None = Field(None, ge=0, le=2)


class ClearBody(Schema):
    model_class: ModelClass = "deepseek_chat"


_ROUTES: tuple[Route, ...] = (
    ("POST", "/users/login", "login", LoginBody),
    ("GET", "/users/current", "current", None),
    ("POST", "/chat/completions", "message", MessageBody),
    ("POST", "/chat/clear_context", "clear", ClearBody),
)


def _told(handler: Handler) -> Handler:
    """A refusal in the protocol's words, with ours beside them."""

    @functools.wraps(handler)
    async def told(self: LegacyRoutes, request: Request) -> Response:
        try:
            return await handler(self, request)
        except LeadlineError as error:
            body = {"code": error.status, "msg": error.message, "data": None, **error_body(error)}
            return json_response(body, error.status, retry_headers(error))

    return told


class LegacyRoutes:
    def __init__(self, platform: Platform, service: CompletionService, answers: Answers) -> None:
        self.platform = platform
        self.service = service
        self.answers = answers

    def router(self) -> APIRouter:
        return build(self, "/api/v0", _ROUTES)

    @_told
    async def login(self, request: Request) -> Response:
        """A client token that lives as long as one for `.env`."""
        given = await read_json(request, LoginBody, MESSAGE_BYTES)
        if not given.email:
            raise InvalidRequest("accounts have an email address here, not a phone number", param="email")
        user = await self.platform.check_login(given.email, given.password, address(request))
        store, now = self.platform.store, self.platform.store.now()
        async with store.database.write() as connection:
            _, token = await accounts.start_session(
                connection, store.secrets, user.id, now=now, purpose="client", name=TITLE, days=CLIENT_DAYS
            )
        return _done({"user": {"id": str(user.id), "email": user.email, "token": token}})

    @_told
    async def current(self, request: Request) -> Response:
        user_id = await self._user(request)
        async with self.platform.store.database.read() as connection:
            user = await accounts.get_user(connection, user_id)
        return _done({"id": str(user.id), "email": user.email})

    @_told
    async def clear(self, request: Request) -> Response:
        """The conversation becomes a chat like any other; the next message begins a new one."""
        user_id = await self._user(request)
        given = await read_json(request, ClearBody, MESSAGE_BYTES)
        async with self.platform.store.database.read() as connection:
            chat = await _conversation(connection, user_id, _MODES[given.model_class])
        if chat is not None:
            if (answer := self.answers.of_chat(chat.id)) is not None:
                await self.answers.stop(answer)
            async with self.platform.store.database.write() as connection:
                await _name(connection, chat)
        return _done({})

    @_told
    async def message(self, request: Request) -> Response:
        principal = await self.platform.admit(request)
        given = await read_json(request, MessageBody, MESSAGE_BYTES)
        if not given.message.strip():
            raise InvalidRequest("say something", param="message")
        async with self.platform.store.database.write() as connection:
            await legal.check_accepted(connection, principal.owner)
            mode = _MODES[given.model_class]
            chat = await _conversation(connection, principal.owner, mode)
            now = self.platform.store.now()
            chat = chat or await chats.create(connection, principal.owner, now, title=TITLE, mode=mode)
            rows = await chats.messages_of(connection, chat.id)
        said = {"role": "user", "content": given.message, "attachments": []}
        with self.answers.reserved(chat.id):
            asked = chat_request(
                [*as_messages(chats.branch(rows, chat.current)), said],
                mode=mode,
                system=chat.system,
                temperature=chat.temperature if given.temperature is None else given.temperature,
                max_tokens=chat.max_tokens,
            )
            answer = Answer(chat.id, await self.service.chat(asked, principal))
            await self.answers.start(answer, lambda connection: self._store(connection, chat, said, answer))
        events = self._events(answer, given.model_class)
        alive = self.service.settings.keep_alive_seconds
        return EventStream(events, keep_alive=alive, left=self.service.metrics.disconnects.inc, sign_of_life=BLANK)

    async def _store(
        self, connection: AsyncConnection, chat: Row[Any], said: dict[str, Any], answer: Answer
    ) -> Row[Any]:
        """The message and the answer that runs; returns the answer's row."""
        now, last = self.platform.store.now(), await chats.count_up(connection, chat, 2)
        await chats.add_message(connection, chat, last - 1, now, parent=chat.current, **said)
        changed = await chats.change(connection, chat.id, current=last, updated=now)
        values = {"role": "assistant", "status": "running", "request_id": answer.job.id, "model": self.service.model}
        temperature = answer.job.params.temperature
        return await chats.add_message(
            connection, changed, last, now, parent=last - 1, temperature=temperature, **values
        )

    async def _events(self, answer: Answer, model_class: ModelClass) -> AsyncGenerator[bytes, None]:
        """Who leaves ends the answer."""
        chunks = _Chunks(answer, model_class)
        try:
            async for text, _ in self.answers.watch(answer, 0):
                yield b"".join(chunks.text(text))
            yield chunks.last()
        finally:
            await self.answers.stop(answer)

    async def _user(self, request: Request) -> int:
        principal = await self.platform.admit(request)
        return principal.owner


class _Chunks:
    """The events of one answer."""

    def __init__(self, answer: Answer, model_class: ModelClass) -> None:
        assert answer.row is not None
        self.answer = answer
        self._tokens = 0
        self._fields = {
            "model": model_class,
            "created": answer.row.created,
            "message_id": answer.row.number,
            "parent_id": answer.row.parent,
            "payload": "",
        }

    def text(self, text: str) -> Iterator[bytes]:
        parts = [text[at : at + SPACES] for at in range(0, len(text), SPACES)] if text.isspace() else [text]
        yield from (self._chunk(part, None) for part in parts)

    def last(self) -> bytes:
        """The reason to end. A failure has one too, and says why where careful programs look."""
        error = self.answer.error
        if error is None:
            return self._chunk("", self.answer.finish_reason or "stop")
        return self._chunk("", "error", **error_body(fault(error)))

    def _chunk(self, content: str, finish_reason: str | None, **more: Any) -> bytes:
        usage = self.answer.usage
        tokens, self._tokens = usage.completion_tokens - self._tokens, usage.completion_tokens
        delta = {"content": content, "role": "assistant"}
        value = {
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
            "prompt_token_usage": usage.prompt_tokens,
            "chunk_token_usage": tokens,
            **self._fields,
            **more,
        }
        return f"data: {_line(value)}\n\n".encode("ascii")


async def _conversation(connection: AsyncConnection, user_id: int, mode: Mode) -> Row[Any] | None:
    """The chat that is the user's conversation; one that was renamed or deleted on the site is it no longer."""
    mine = and_(
        chat_rows.c.user_id == user_id,
        chat_rows.c.mode == mode,
        chat_rows.c.title == TITLE,
        chat_rows.c.deleted.is_(None),
    )
    query = select(chat_rows).where(mine).order_by(chat_rows.c.id.desc()).limit(1)
    return (await connection.execute(query)).one_or_none()


async def _name(connection: AsyncConnection, chat: Row[Any]) -> None:
    """An automatic title instead of the protocol's; an empty conversation stays what it is."""
    rows = await chats.messages_of(connection, chat.id)
    first = next((row.content for row in rows if row.role == "user"), None)
    if first is not None:
        await chats.change(connection, chat.id, title=chats.first_words(first) or "…", title_by="auto")


def _done(data: Any) -> Response:
    return json_response({"code": 0, "msg": "", "data": data})


def _line(value: Any) -> str:
    """JSON in ASCII that does not hold the mark at which lines are cut."""
    return json.dumps(value, separators=(",", ":")).replace("data:", "data\\u003a")
