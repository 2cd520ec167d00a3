"""/api/chats: a user's chats. The contract with the site is docs/site-api.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field
from sqlalchemy import Row
from starlette.responses import Response

from leadline.server import chats
from leadline.server.answers import Answers
from leadline.server.cards import Cards
from leadline.server.chats import Mode
from leadline.server.conversation import as_messages
from leadline.server.errors import json_response
from leadline.server.platform import Platform
from leadline.server.routes import MESSAGE_BYTES, Route, body, build, number_query, out_of_range
from leadline.server.schemas import Count, Number, Schema

MOST_TOKENS = (1 << 31) - 1

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


_ROUTES: tuple[Route, ...] = (
    ("GET", "/chats", "list_chats", None),
    ("POST", "/chats", "make_chat", ChatBody),
    ("DELETE", "/chats", "delete_all", None),
    ("GET", "/chats/{chat}", "show", None),
    ("PATCH", "/chats/{chat}", "change", ChatChanges),
    ("DELETE", "/chats/{chat}", "delete", None),
    ("POST", "/chats/{chat}/restore", "restore", None),
    ("POST", "/chats/{chat}/copy", "copy", UpTo),
)


class ChatRoutes:
    def __init__(self, platform: Platform, answers: Answers) -> None:
        self.platform = platform
        self.answers = answers
        self.cards = Cards(answers)

    def router(self) -> APIRouter:
        return build(self, "/api", _ROUTES)

    async def list_chats(self, request: Request) -> Response:
        user = await self.platform.user(request)
        cursor = request.query_params.get("cursor")
        limit = min(max(number_query(request, "limit") or chats.PAGE, 1), chats.MOST_PAGE)
        async with self.platform.store.database.read() as connection:
            rows, following = await chats.page(connection, user, cursor, limit)
            pinned = await chats.pinned(connection, user) if cursor is None else None
        answer = {"data": [self.cards.chat(row) for row in rows], "next": following}
        first = {} if pinned is None else {"pinned": [self.cards.chat(row) for row in pinned]}
        return json_response({**answer, **first})

    async def make_chat(self, request: Request) -> Response:
        user = await self.platform.user(request)
        given = await body(request, ChatBody, MESSAGE_BYTES)
        values = {name: value for name, value in given.model_dump().items() if value is not None}
        _check(given)
        async with self.platform.store.database.write() as connection:
            row = await chats.create(connection, user, self.platform.store.now(), **values)
        return json_response(self.cards.chat(row), 201)

    async def show(self, request: Request, chat: str) -> Response:
        user = await self.platform.user(request)
        async with self.platform.store.database.read() as connection:
            row = await chats.find(connection, user, chat)
            rows = await chats.messages_of(connection, row.id)
        return json_response({**self.cards.chat(row), "messages": [self.cards.message(each) for each in rows]})

    async def change(self, request: Request, chat: str) -> Response:
        visitor = await self.platform.visitor(request)
        given = await body(request, ChatChanges, MESSAGE_BYTES)
        values = given.model_dump(include=given.model_fields_set)
        _check(given)
        async with self.platform.store.database.write() as connection:
            row = await chats.find(connection, visitor.owner, chat)
            if values.get("current") is not None:
                await chats.find_message(connection, row.id, values["current"])
            said = await chats.messages_of(connection, row.id)
            values = _titled(_without_nulls(values), said)
            row = await chats.change(connection, row.id, **values) if values else row
        if values.get("title_by") == "auto":
            question, answer = _first_exchange(said)
            self.answers.titler.begin(row.id, row.title, [question, answer], row.system, visitor)
        return json_response(self.cards.chat(row))

    async def delete(self, request: Request, chat: str) -> Response:
        user = await self.platform.user(request)
        async with self.platform.store.database.read() as connection:
            row = await chats.find(connection, user, chat)
        await self._end_answer(row.id)
        now = self.platform.store.now()
        async with self.platform.store.database.write() as connection:
            await chats.remove(connection, user, now, row.id)
        return json_response({"ok": True, "until": now + chats.RESTORE_SECONDS})

    async def delete_all(self, request: Request) -> Response:
        user = await self.platform.user(request)
        async with self.platform.store.database.read() as connection:
            ids = [row.id for row in await chats.every(connection, user)]
        for chat_id in ids:
            await self._end_answer(chat_id)
        now = self.platform.store.now()
        async with self.platform.store.database.write() as connection:
            count = await chats.remove(connection, user, now)
        return json_response({"ok": True, "count": count, "until": now + chats.RESTORE_SECONDS})

    async def restore(self, request: Request, chat: str) -> Response:
        user = await self.platform.user(request)
        async with self.platform.store.database.write() as connection:
            row = await chats.restore(connection, user, chat, self.platform.store.now())
        return json_response(self.cards.chat(row))

    async def copy(self, request: Request, chat: str) -> Response:
        user = await self.platform.user(request)
        given = await body(request, UpTo)
        async with self.platform.store.database.write() as connection:
            row, way = await chats.branch_of(connection, user, chat, given.current)
            made = await chats.copy(connection, row, way, self.platform.store.now())
        return json_response(self.cards.chat(made), 201)

    async def _end_answer(self, chat_id: int) -> None:
        if (answer := self.answers.of_chat(chat_id)) is not None:
            await self.answers.stop(answer)


def _check(given: ChatBody) -> None:
    """What the completion service would refuse at every message is refused now."""
    if given.temperature is not None and not 0 <= given.temperature <= 2:
        raise out_of_range("temperature", 0, 2)
    if given.max_tokens is not None and not 1 <= given.max_tokens <= MOST_TOKENS:
        raise out_of_range("max_tokens", 1, MOST_TOKENS)


def _titled(values: dict[str, Any], rows: Sequence[Row[Any]]) -> dict[str, Any]:
    """A title of the user's stays; an empty one asks for an automatic one."""
    if "title" not in values:
        return values
    if values["title"].strip():
        return {**values, "title": values["title"].strip(), "title_by": "user"}
    question, _ = _first_exchange(rows)
    return {**values, "title": chats.first_words(question["content"]), "title_by": "auto"}


def _first_exchange(rows: Sequence[Row[Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first question and the first answer; empty ones where there is none."""
    said = as_messages(rows)
    question, answer = (
        next((each for each in said if each["role"] == role), {"role": role, "content": ""})
        for role in ("user", "assistant")
    )
    return question, answer


def _without_nulls(values: dict[str, Any]) -> dict[str, Any]:
    """Null unsets what can be unset, and says nothing about the rest."""
    return {name: each for name, each in values.items() if each is not None or name in ("temperature", "max_tokens")}
