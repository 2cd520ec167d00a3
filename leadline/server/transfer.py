"""Chats in and out as JSON with every branch: what is imported and exported again is the same to the byte."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from leadline.errors import InvalidRequest
from leadline.server import chats
from leadline.server.chats import COPIED, Mode
from leadline.server.money import format_money, parse_money
from leadline.server.schemas import Count, Number, Schema

FORMAT = 1
MOST_CHATS, MOST_MESSAGES = 10_000, 20_000  # of one import, during which nobody else can write

_CHAT = (*chats.SHOWN, "last")
_TREE = ("number", "parent", "created")

Word = Annotated[str, Field(max_length=32)]
Seconds = Annotated[int, Field(ge=0, lt=1 << 40)]
Small = Annotated[int, Field(ge=0, lt=1 << 31)]


class ExportedAttachment(Schema):
    name: Annotated[str, Field(max_length=200)]
    text: str


class ExportedError(Schema):
    message: Annotated[str, Field(max_length=2000)]
    code: Annotated[str, Field(max_length=100)]


class ExportedMessage(Schema):
    number: Annotated[int, Field(ge=1, lt=1 << 31)]
    parent: Small | None = None
    role: Literal["user", "assistant"]
    content: str
    created: Seconds
    attachments: list[ExportedAttachment] = Field([], max_length=100)
    status: Literal["done", "stopped", "failed"] = "done"
    finish_reason: Literal["stop", "length"] | None = None
    stop_reason: Word | None = None
    error: ExportedError | None = None
    model: Annotated[str, Field(max_length=200)] = ""
    temperature: Number | None = None
    prompt_tokens: Count = 0
    cached_tokens: Count = 0
    completion_tokens: Count = 0
    context_tokens: Count = 0
    first_token_ms: Count | None = None
    ms: Count = 0
    cost: Annotated[str, Field(max_length=30)] = "0.00"


class ExportedChat(Schema):
    title: Annotated[str, Field(max_length=200)] = ""
    title_by: Literal["auto", "user"] = "auto"
    pinned: bool = False
    mode: Mode = "chat"
    system: str = ""
    temperature: Number | None = None
    max_tokens: Small | None = None
    created: Seconds
    updated: Seconds
    current: Small | None = None
    last: Small = 0
    messages: Annotated[list[ExportedMessage], Field(max_length=MOST_MESSAGES)]


class MarkdownBody(Schema):
    markdown: str


class Export(Schema):
    leadline_chats: Literal[1]
    chats: Annotated[list[ExportedChat], Field(max_length=MOST_CHATS)]


# ---- out -----------------------------------------------------------------------------------------------------------


async def exported(connection: AsyncConnection, chat: Row[Any]) -> dict[str, Any]:
    rows = await chats.messages_of(connection, chat.id)
    return {**{name: getattr(chat, name) for name in _CHAT}, "messages": [_message(row) for row in rows]}


def document(parts: Sequence[dict[str, Any]]) -> bytes:
    text = json.dumps({"leadline_chats": FORMAT, "chats": list(parts)}, ensure_ascii=False, indent=1)
    return text.encode("utf-8", errors="replace") + b"\n"


def _message(row: Row[Any]) -> dict[str, Any]:
    """Nothing runs in an export: of a running answer it has what is written down."""
    fields = {name: getattr(row, name) for name in (*_TREE, *COPIED)}
    if row.status == "running":
        fields |= {"status": "stopped", "stop_reason": "stopped"}
    return {**fields, "cost": format_money(row.cost)}


def file_name(title: str, suffix: str) -> str:
    """ASCII for the header's plain form; what a title has beside is left out."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-")[:60]
    return f"{words or 'chat'}.{suffix}"


# ---- in ------------------------------------------------------------------------------------------------------------


async def imported(connection: AsyncConnection, user_id: int, given: Export, now: int) -> list[Row[Any]]:
    """New chats of this user's; all of them or none."""
    if sum(len(chat.messages) for chat in given.chats) > MOST_MESSAGES:
        text = f"at most {MOST_MESSAGES} messages at a time; import the chats in parts"
        raise InvalidRequest(text, param="chats", code="import_too_large")
    for number, chat in enumerate(given.chats):
        _check_tree(chat, f"chats.{number}")
    return [await _import(connection, user_id, chat, now) for chat in given.chats]


async def _import(connection: AsyncConnection, user_id: int, given: ExportedChat, now: int) -> Row[Any]:
    values = given.model_dump(exclude={"messages", "title", "title_by", "created", "updated"})
    last = max((each.number for each in given.messages), default=0)
    chat = await chats.create(connection, user_id, now, **{**values, "last": max(given.last, last)})
    rows = [{**each.model_dump(), "cost": parse_money(each.cost, "cost")} for each in given.messages]
    await chats.add_messages(connection, chat, rows)
    kept = {"title": given.title, "title_by": given.title_by, "created": given.created, "updated": given.updated}
    return await chats.change(connection, chat.id, **kept)


def _check_tree(chat: ExportedChat, where: str) -> None:
    """A parent comes before its children, so that every branch has a root."""
    seen: set[int] = set()
    for each in sorted(chat.messages, key=lambda message: message.number):
        if each.number in seen:
            raise _no_tree(where, f"two messages have the number {each.number}")
        if each.parent is not None and each.parent not in seen:
            raise _no_tree(where, f"message {each.number} has no parent {each.parent} before it")
        seen.add(each.number)
    if chat.current is not None and chat.current not in seen:
        raise _no_tree(where, f"there is no message {chat.current}, its current one")


def _no_tree(where: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"{where}: {why}", param=where, code="import_invalid")
