"""Chats and their messages: a tree of numbered messages in each chat, of which one branch is shown.

Every function works inside the caller's transaction and sees one user's chats: another's is not there. What is deleted
stays a while, so that it can be restored. `message_card` and `chat_card` are what the site shows.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import Row, and_, delete, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from leadline.errors import InvalidRequest, NotFound
from leadline.server import search
from leadline.server.db import chats, messages, shares
from leadline.server.money import format_money

Mode = Literal["chat", "coder"]

RESTORE_SECONDS = 600
PAGE = 50
MOST_PAGE = 200
TITLE = 60  # characters of an automatic title; half as many where there are no spaces to cut at
NEW_TITLE = ""

_CURSOR = re.compile(r"(\d{1,12})-(\d{1,18})", re.ASCII)
_MARKS = re.compile(r"^[\s#>*`\-]+|[\s*`]+$")
SHOWN = (
    "title",
    "title_by",
    "pinned",
    "mode",
    "system",
    "temperature",
    "max_tokens",
    "created",
    "updated",
    "current",
)
COPIED = (
    "role",
    "content",
    "attachments",
    "status",
    "finish_reason",
    "stop_reason",
    "error",
    "model",
    "temperature",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "context_tokens",
    "first_token_ms",
    "ms",
)
_EMPTY: Mapping[str, Any] = {"attachments": [], "status": "done", "model": "", "content": ""}


# ---- chats ---------------------------------------------------------------------------------------------------------


async def create(connection: AsyncConnection, user_id: int, now: int, **values: Any) -> Row[Any]:
    title = values.pop("title", None) or NEW_TITLE
    row = {"title": title, "title_by": "user" if title else "auto", "pinned": False, "mode": "chat", "system": ""}
    row |= {"token": secrets.token_urlsafe(16), "user_id": user_id, "created": now, "updated": now, **values}
    made: Row[Any] = (await connection.execute(insert(chats).values(row).returning(chats))).one()
    return made


async def find(connection: AsyncConnection, user_id: int, token: str, *, deleted: bool = False) -> Row[Any]:
    """A chat of this user's."""
    mine = and_(chats.c.token == token, chats.c.user_id == user_id)
    row = (await connection.execute(select(chats).where(mine))).one_or_none()
    if row is None or (row.deleted is not None and not deleted):
        raise NotFound("there is no such chat", code="chat_not_found")
    return row


async def find_by_id(connection: AsyncConnection, chat_id: int) -> Row[Any]:
    """A chat that the caller has found before."""
    return (await connection.execute(select(chats).where(chats.c.id == chat_id))).one()


async def page(
    connection: AsyncConnection, user_id: int, cursor: str | None = None, limit: int = PAGE
) -> tuple[list[Row[Any]], str | None]:
    """Chats that are not pinned, last changed first; and where the next page begins."""
    mine = and_(chats.c.user_id == user_id, chats.c.deleted.is_(None), ~chats.c.pinned)
    if cursor is not None:
        updated, chat_id = read_cursor(cursor)
        mine = and_(mine, or_(chats.c.updated < updated, and_(chats.c.updated == updated, chats.c.id < chat_id)))
    query = select(chats).where(mine).order_by(chats.c.updated.desc(), chats.c.id.desc()).limit(limit + 1)
    rows = list((await connection.execute(query)).all())
    more = len(rows) > limit
    return rows[:limit], f"{rows[limit - 1].updated}-{rows[limit - 1].id}" if more else None


async def pinned(connection: AsyncConnection, user_id: int) -> list[Row[Any]]:
    mine = and_(chats.c.user_id == user_id, chats.c.deleted.is_(None), chats.c.pinned)
    return list((await connection.execute(select(chats).where(mine).order_by(chats.c.updated.desc()))).all())


async def every(connection: AsyncConnection, user_id: int) -> list[Row[Any]]:
    mine = and_(chats.c.user_id == user_id, chats.c.deleted.is_(None))
    return list((await connection.execute(select(chats).where(mine).order_by(chats.c.id))).all())


async def change(connection: AsyncConnection, chat_id: int, **values: Any) -> Row[Any]:
    made: Row[Any] = (
        await connection.execute(update(chats).where(chats.c.id == chat_id).values(values).returning(chats))
    ).one()
    return made


async def count_up(connection: AsyncConnection, chat: Row[Any], count: int) -> int:
    """Room for `count` new messages; the last one's number."""
    row = await change(connection, chat.id, last=chats.c.last + count)
    return int(row.last)


async def copy(connection: AsyncConnection, chat: Row[Any], way: Sequence[Row[Any]], now: int) -> Row[Any]:
    """A new chat with one branch of another; what its answers cost stays with those."""
    kept = ("title", "mode", "system", "temperature", "max_tokens")
    made = await create(connection, chat.user_id, now, **{name: getattr(chat, name) for name in kept})
    for number, row in enumerate(way, 1):
        ended = {name: getattr(row, name) for name in COPIED}
        parent = number - 1 or None
        await add_message(connection, made, number, row.created, parent=parent, **{**ended, **_settled(row)})
    last = len(way)
    return await change(connection, made.id, last=last, current=last or None, title_by=chat.title_by)


def _settled(row: Row[Any]) -> dict[str, Any]:
    """A copy of a running answer is one that was stopped there."""
    return {"status": "stopped", "stop_reason": "stopped"} if row.status == "running" else {}


async def remove(connection: AsyncConnection, user_id: int, now: int, chat_id: int | None = None) -> int:
    """Delete one chat or all; the number. They can be restored for `RESTORE_SECONDS`."""
    mine = and_(chats.c.user_id == user_id, chats.c.deleted.is_(None))
    mine = mine if chat_id is None else and_(mine, chats.c.id == chat_id)
    return (await connection.execute(update(chats).where(mine).values(deleted=now))).rowcount


async def restore(connection: AsyncConnection, user_id: int, token: str, now: int) -> Row[Any]:
    row = await find(connection, user_id, token, deleted=True)
    if row.deleted is not None and row.deleted + RESTORE_SECONDS < now:
        raise NotFound("there is no such chat", code="chat_not_found")
    return await change(connection, row.id, deleted=None)


async def purge(connection: AsyncConnection, now: int, retention: int | None = None) -> int:
    """Forget what was deleted and can no longer be restored, and what nobody has touched for `retention` seconds; the
    number of chats."""
    gone = and_(chats.c.deleted.is_not(None), chats.c.deleted <= now - RESTORE_SECONDS)
    if retention is not None:
        gone = or_(gone, and_(chats.c.updated <= now - retention, ~chats.c.pinned))
    ids = [row.id for row in await connection.execute(select(chats.c.id).where(gone))]
    await _forget(connection, ids)
    return len(ids)


async def purge_user(connection: AsyncConnection, user_id: int) -> None:
    """Forget all of a user's chats and shares."""
    await connection.execute(delete(shares).where(shares.c.user_id == user_id))
    ids = [row.id for row in await connection.execute(select(chats.c.id).where(chats.c.user_id == user_id))]
    await _forget(connection, ids)


async def _forget(connection: AsyncConnection, ids: Sequence[int]) -> None:
    """Shares stay: they are snapshots, which their owner takes back one by one or with the account."""
    for start in range(0, len(ids), 500):
        some = ids[start : start + 500]
        await search.forget(connection, some)
        await connection.execute(update(shares).where(shares.c.chat_id.in_(some)).values(chat_id=None))
        await connection.execute(delete(messages).where(messages.c.chat_id.in_(some)))
        await connection.execute(delete(chats).where(chats.c.id.in_(some)))


def read_cursor(cursor: str) -> tuple[int, int]:
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise InvalidRequest("this cursor is none of ours", param="cursor")
    return int(match[1]), int(match[2])


def first_words(content: str) -> str:
    """An automatic title: the beginning of the first line that says something."""
    line = next((text for each in content.splitlines() if (text := _MARKS.sub("", each))), "")
    if len(line) <= TITLE:
        return line
    words = line[:TITLE].rpartition(" ")[0]
    return (words if len(words) > TITLE // 3 else line[: TITLE // 2]) + "…"


# ---- messages ------------------------------------------------------------------------------------------------------


async def messages_of(connection: AsyncConnection, chat_id: int) -> list[Row[Any]]:
    query = select(messages).where(messages.c.chat_id == chat_id).order_by(messages.c.number)
    return list((await connection.execute(query)).all())


async def find_message(connection: AsyncConnection, chat_id: int, number: int) -> Row[Any]:
    here = and_(messages.c.chat_id == chat_id, messages.c.number == number)
    row = (await connection.execute(select(messages).where(here))).one_or_none()
    if row is None:
        raise NotFound("there is no such message", code="message_not_found")
    return row


async def add_message(connection: AsyncConnection, chat: Row[Any], number: int, now: int, **values: Any) -> Row[Any]:
    """A message under `number`, which the caller has counted up from the chat's `last`."""
    row = {**_EMPTY, "chat_id": chat.id, "number": number, "created": now, **values}
    made: Row[Any] = (await connection.execute(insert(messages).values(row).returning(messages))).one()
    if made.status != "running":
        await search.index(connection, made, chat.user_id)
    return made


async def add_messages(connection: AsyncConnection, chat: Row[Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Many that have ended, each under its own number, at once."""
    if rows:
        await connection.execute(insert(messages), [{**_EMPTY, **row, "chat_id": chat.id} for row in rows])
        await search.index_all(connection, await messages_of(connection, chat.id), chat.user_id)


async def update_message(connection: AsyncConnection, message_id: int, **values: Any) -> Row[Any]:
    changed = update(messages).where(messages.c.id == message_id).values(values)
    row: Row[Any] = (await connection.execute(changed.returning(messages))).one()
    return row


async def branch_of(
    connection: AsyncConnection, user_id: int, token: str, number: int | None
) -> tuple[Row[Any], list[Row[Any]]]:
    """A chat of this user's, and its messages up to `number`, or to the one that is shown."""
    row = await find(connection, user_id, token)
    return row, branch(await messages_of(connection, row.id), row.current if number is None else number)


def branch(rows: Iterable[Row[Any]], number: int | None) -> list[Row[Any]]:
    """The messages from the root to `number`."""
    known = {row.number: row for row in rows}
    way: list[Row[Any]] = []
    while number is not None:
        if number not in known:
            raise NotFound("there is no such message", code="message_not_found")
        way.append(known[number])
        number = known[number].parent
    return way[::-1]


# ---- what the site shows -------------------------------------------------------------------------------------------


def chat_card(row: Row[Any], running: int | None = None, *, titling: bool = False) -> dict[str, Any]:
    shown = {name: getattr(row, name) for name in SHOWN}
    return {"id": row.token, **shown, "running": running, "titling": titling}


def message_card(row: Row[Any], live: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`live` is what a running answer knows better than its row. A row that says it runs, and nobody runs it, is what
    a process that died has left."""
    names = ("parent", "role", "content", "created", "attachments", "status", "finish_reason", "stop_reason", "error")
    usage = {name: getattr(row, name) for name in ("prompt_tokens", "cached_tokens", "completion_tokens")}
    card = {"id": row.number, **{name: getattr(row, name) for name in names}, "model": row.model, "usage": usage}
    more = ("temperature", "first_token_ms", "ms", "context_tokens")
    card |= {"cost": format_money(row.cost), **{name: getattr(row, name) for name in more}}
    if live is not None:
        card |= live
    elif row.status == "running":
        card |= {"status": "stopped", "stop_reason": "restart"}
    return {**card, "offset": len(card["content"])}
