"""/api: finding, sharing, exporting and importing chats."""

from __future__ import annotations

import secrets
from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy import Row, and_, delete, insert, select
from starlette.responses import Response

from leadline.errors import InvalidRequest, NotFound
from leadline.server import chats, markdown, search, transfer
from leadline.server.body import validate
from leadline.server.chat_routes import UpTo
from leadline.server.db import shares
from leadline.server.errors import json_response
from leadline.server.platform import Platform
from leadline.server.routes import Route, body, build, number_query

IMPORT_BYTES = 32 << 20
MOST_SHARES = 1000

_ROUTES: tuple[Route, ...] = (
    ("GET", "/search", "search", None),
    ("POST", "/chats/{chat}/shares", "share", UpTo),
    ("GET", "/shares", "shares", None),
    ("DELETE", "/shares/{share}", "unshare", None),
    ("GET", "/shared/{token}", "shared", None),
    ("GET", "/chats/{chat}/export", "export", None),
    ("GET", "/export", "export_all", None),
    ("POST", "/import", "bring_in", transfer.Export),
    ("POST", "/import/markdown", "bring_in_markdown", transfer.MarkdownBody),
)


class LibraryRoutes:
    def __init__(self, platform: Platform) -> None:
        self.platform = platform

    def router(self) -> APIRouter:
        return build(self, "/api", _ROUTES)

    async def search(self, request: Request) -> Response:
        user = await self.platform.user(request)
        query = request.query_params.get("query", "")[: search.MOST_QUERY]
        before = number_query(request, "cursor")
        async with self.platform.store.database.read() as connection:
            titles = await search.find_titles(connection, user, query) if before is None else []
            rows, following = await search.find(connection, user, query, before)
        found = [self._hit(row, None, search.snippet(row.title, query), row.updated) for row in titles]
        found += [self._hit(row, row.number, search.snippet(row.content, query), row.written) for row in rows]
        return json_response({"data": found, "next": None if following is None else str(following)})

    # ---- shares ------------------------------------------------------------------------------------------------

    async def share(self, request: Request, chat: str) -> Response:
        """A snapshot: what is said afterwards, or changed, is not in it."""
        user = await self.platform.user(request)
        given = await body(request, UpTo)
        async with self.platform.store.database.write() as connection:
            row, way = await chats.branch_of(connection, user, chat, given.current)
            if not way:
                raise InvalidRequest("there is nothing in this chat to share", code="nothing_to_share")
            if len(await self._rows(connection, user)) >= MOST_SHARES:
                text = f"an account has at most {MOST_SHARES} shared chats; delete one"
                raise InvalidRequest(text, code="too_many_shares")
            values = {"token": secrets.token_urlsafe(16), "user_id": user, "chat_id": row.id, "title": row.title}
            values |= {"messages": [_snapshot(each) for each in way], "created": self.platform.store.now()}
            made = (await connection.execute(insert(shares).values(values).returning(shares))).one()
        return json_response(_share_card(made, row.token), 201)

    async def shares(self, request: Request) -> Response:
        user = await self.platform.user(request)
        of = request.query_params.get("chat")
        async with self.platform.store.database.read() as connection:
            rows = await self._rows(connection, user)
            names = {row.id: row.token for row in await chats.every(connection, user)}
        cards = [_share_card(row, names.get(row.chat_id)) for row in rows]
        return json_response({"data": [card for card in cards if of is None or card["chat"] == of]})

    async def unshare(self, request: Request, share: str) -> Response:
        user = await self.platform.user(request)
        mine = and_(shares.c.token == share, shares.c.user_id == user)
        async with self.platform.store.database.write() as connection:
            if (await connection.execute(delete(shares).where(mine))).rowcount == 0:
                raise NotFound("there is no such shared chat", code="share_not_found")
        return json_response({"ok": True})

    async def shared(self, request: Request, token: str) -> Response:
        """For anyone with the link, and no search engine."""
        async with self.platform.store.database.read() as connection:
            row = (await connection.execute(select(shares).where(shares.c.token == token))).one_or_none()
        if row is None:
            raise NotFound("this chat is not shared, or no longer", code="share_not_found")
        shown = {"title": row.title, "created": row.created, "messages": row.messages}
        return json_response(shown, headers={"x-robots-tag": "noindex", "cache-control": "no-store"})

    # ---- export and import -------------------------------------------------------------------------------------

    async def export(self, request: Request, chat: str) -> Response:
        user = await self.platform.user(request)
        form = request.query_params.get("format", "json")
        if form not in ("json", "markdown"):
            raise InvalidRequest("format is json or markdown", param="format")
        async with self.platform.store.database.read() as connection:
            row = await chats.find(connection, user, chat)
            whole = await transfer.exported(connection, row)
            way = chats.branch(await chats.messages_of(connection, row.id), row.current)
        if form == "json":
            return _download(transfer.document([whole]), transfer.file_name(row.title, "json"), "application/json")
        text = markdown.write(markdown.branch(whole, way))
        return _download(text, transfer.file_name(row.title, "md"), "text/markdown; charset=utf-8")

    async def export_all(self, request: Request) -> Response:
        user = await self.platform.user(request)
        async with self.platform.store.database.read() as connection:
            rows = await chats.every(connection, user)
            text = transfer.document([await transfer.exported(connection, row) for row in rows])
        return _download(text, "leadline-chats.json", "application/json")

    async def bring_in(self, request: Request) -> Response:
        user = await self.platform.user(request)
        return await self._bring_in(user, await body(request, transfer.Export, IMPORT_BYTES))

    async def bring_in_markdown(self, request: Request) -> Response:
        user = await self.platform.user(request)
        given = await body(request, transfer.MarkdownBody, IMPORT_BYTES)
        return await self._bring_in(user, validate(transfer.Export, markdown.read(given.markdown)))

    async def _bring_in(self, user: int, given: transfer.Export) -> Response:
        async with self.platform.store.database.write() as connection:
            rows = await transfer.imported(connection, user, given, self.platform.store.now())
        return json_response({"data": [chats.chat_card(row) for row in rows]}, 201)

    # ---- shared ------------------------------------------------------------------------------------------------

    async def _rows(self, connection: Any, user_id: int) -> list[Row[Any]]:
        query = select(shares).where(shares.c.user_id == user_id).order_by(shares.c.id.desc())
        return list((await connection.execute(query)).all())

    def _hit(self, chat: Row[Any], number: int | None, pieces: list[tuple[str, bool]], created: int) -> dict[str, Any]:
        return {"chat": chats.chat_card(chat), "message": number, "snippet": pieces, "created": created}


def _snapshot(row: Row[Any]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in ("role", "content", "attachments", "created", "model")}


def _share_card(row: Row[Any], chat: str | None) -> dict[str, Any]:
    return {"id": row.token, "path": f"/s/{row.token}", "chat": chat, "title": row.title, "created": row.created}


def _download(content: bytes, name: str, media_type: str) -> Response:
    return Response(content, headers={"content-disposition": f'attachment; filename="{name}"'}, media_type=media_type)
