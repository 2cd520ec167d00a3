"""Full-text search over a user's messages and titles.

SQLite's FTS5 holds the words; a Chinese, Japanese or Korean character is a word of its own there, so that a run of any
length is found as a phrase and needs no dictionary. Each row has its owner as a word, and a search meets nobody
else's. Another database is searched text by text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, and_, literal_column, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from leadline.server.db import chats, messages

PAGE = 30
SNIPPET = 60  # characters before and after a hit
MOST_WORDS = 16
MOST_QUERY = 400

_ALONE = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]")
_TERMS = re.compile(r'"([^"]*)"?|(\S+)')


def words(content: str) -> str:
    """As it goes into the index."""
    return _ALONE.sub(lambda match: f" {match[0]} ", content)


def terms(query: str) -> list[str]:
    """What a query asks for, in order; what no word is in is left out."""
    found = (quoted or plain for quoted, plain in _TERMS.findall(query[:MOST_QUERY]))
    return [term for term in found if any(letter.isalnum() for letter in term)][:MOST_WORDS]


async def index(connection: AsyncConnection, message: Row[Any], user_id: int) -> None:
    """Put a message's words where its row's are, or in the place of what they were."""
    await index_all(connection, [message], user_id)


async def index_all(connection: AsyncConnection, rows: Sequence[Row[Any]], user_id: int) -> None:
    if connection.dialect.name != "sqlite":
        return
    values = [{"id": row.id, "owner": _owner(user_id), "words": words(row.content)} for row in rows]
    await connection.execute(text("REPLACE INTO search (rowid, owner, words) VALUES (:id, :owner, :words)"), values)


async def forget(connection: AsyncConnection, chat_ids: Sequence[int]) -> None:
    if connection.dialect.name == "sqlite":
        ids = ",".join(str(int(chat_id)) for chat_id in chat_ids)
        await connection.execute(
            text(f"DELETE FROM search WHERE rowid IN (SELECT id FROM messages WHERE chat_id IN ({ids or 'NULL'}))")
        )


async def find(
    connection: AsyncConnection, user_id: int, query: str, before: int | None = None
) -> tuple[list[Row[Any]], int | None]:
    """Messages that have every term, newest first, each with its chat; and where the next page begins."""
    wanted = terms(query)
    if not wanted:
        return [], None
    columns = [messages.c.id.label("message_id"), messages.c.number, messages.c.content]
    columns += [messages.c.created.label("written")]
    mine = and_(chats.c.user_id == user_id, chats.c.deleted.is_(None))
    if before is not None:
        mine = and_(mine, messages.c.id < before)
    found = select(*columns, chats).join(chats, chats.c.id == messages.c.chat_id).where(mine)
    found = found.where(_matches(connection, user_id, wanted)).order_by(messages.c.id.desc()).limit(PAGE + 1)
    rows: Sequence[Any] = (await connection.execute(found)).all()
    return list(rows[:PAGE]), rows[PAGE - 1].message_id if len(rows) > PAGE else None


async def find_titles(connection: AsyncConnection, user_id: int, query: str) -> list[Row[Any]]:
    wanted = terms(query)
    if not wanted:
        return []
    mine = and_(chats.c.user_id == user_id, chats.c.deleted.is_(None), *_contain(chats.c.title, wanted))
    return list((await connection.execute(select(chats).where(mine).order_by(chats.c.id.desc()).limit(PAGE))).all())


def snippet(content: str, query: str) -> list[tuple[str, bool]]:
    """The surroundings of the first hit, in pieces: text, and whether it was asked for."""
    wanted = sorted((re.escape(term) for term in terms(query)), key=len, reverse=True)
    hits = re.compile("|".join(wanted) or "(?!)", re.IGNORECASE)
    first = hits.search(content)
    start = max(0, first.start() - SNIPPET) if first else 0
    end = (first.end() if first else 0) + SNIPPET
    shown = content[start:end]
    pieces: list[tuple[str, bool]] = [("…", False)] if start else []
    place = 0
    for hit in hits.finditer(shown):
        pieces += [(shown[place : hit.start()], False), (hit[0], True)]
        place = hit.end()
    pieces += [(shown[place:], False), ("…" if end < len(content) else "", False)]
    return [piece for piece in pieces if piece[0]]


def _matches(connection: AsyncConnection, user_id: int, wanted: Sequence[str]) -> Any:
    if connection.dialect.name != "sqlite":
        return and_(*_contain(messages.c.content, wanted))
    hits = text("SELECT rowid FROM search WHERE search MATCH :expression").bindparams(
        expression=_expression(user_id, wanted)
    )
    return messages.c.id.in_(hits.columns(literal_column("rowid")).scalar_subquery())


def _expression(user_id: int, wanted: Sequence[str]) -> str:
    """In FTS5's language: the owner, and every term as a phrase, the last one perhaps unfinished."""
    phrases = [f'"{words(term)}"'.replace("\0", " ") for term in (each.replace('"', " ") for each in wanted)]
    open_end = "" if _ALONE.fullmatch(wanted[-1][-1]) else "*"
    asked = " AND ".join(f"words : {phrase}" for phrase in [*phrases[:-1], phrases[-1] + open_end])
    return f'owner : "{_owner(user_id)}" AND {asked}'


def _contain(column: Any, wanted: Sequence[str]) -> list[Any]:
    return [column.icontains(term, autoescape=True) for term in wanted]


def _owner(user_id: int) -> str:
    return f"user{user_id}"
