"""/api: what every page begins with (who is here, what is served, what was agreed to), and a user's presets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field
from sqlalchemy import Row, and_, delete, func, insert, select, update
from starlette.responses import Response

from leadline import __version__
from leadline.errors import AuthenticationError, Conflict, ModelNotFound, NotFound
from leadline.server import accounts, legal
from leadline.server.access import Principal
from leadline.server.account import user_card
from leadline.server.billing import current_price
from leadline.server.completion import CompletionService
from leadline.server.conversation import ALIASES
from leadline.server.db import presets
from leadline.server.errors import json_response
from leadline.server.money import format_price
from leadline.server.platform import Platform
from leadline.server.routes import Route, RowId, body, build
from leadline.server.schemas import Count, Number, Schema
from leadline.server.settings import DISCLAIMER

MOST_PRESETS = 100

# What DeepSeek advises for its models.
TEMPERATURES: Mapping[str, float] = {"code": 0.0, "data": 1.0, "chat": 1.3, "creative": 1.5}


class TermsBody(Schema):
    version: Count


class PresetBody(Schema):
    name: Annotated[str, Field(min_length=1, max_length=100)]
    system: Annotated[str, Field(max_length=50_000)] = ""
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None


class NameBody(Schema):
    name: Annotated[str, Field(max_length=100)]


_ROUTES: tuple[Route, ...] = (
    ("GET", "/session", "session", None),
    ("GET", "/models", "models", None),
    ("GET", "/terms", "terms", None),
    ("POST", "/terms", "accept_terms", TermsBody),
    ("PATCH", "/account", "rename", NameBody),
    ("GET", "/presets", "presets", None),
    ("POST", "/presets", "make_preset", PresetBody),
    ("PATCH", "/presets/{preset}", "change_preset", PresetBody),
    ("DELETE", "/presets/{preset}", "delete_preset", None),
)


class SiteRoutes:
    def __init__(self, platform: Platform, service: CompletionService) -> None:
        self.platform = platform
        self.service = service

    def router(self) -> APIRouter:
        return build(self, "/api", _ROUTES)

    async def session(self, request: Request) -> Response:
        """For everyone: whoever is not signed in learns how to."""
        try:
            visitor: Principal | None = await self.platform.visitor(request)
        except AuthenticationError:
            visitor = None
        async with self.platform.store.database.read() as connection:
            user = await accounts.get_user(connection, visitor.user_id) if visitor and visitor.user_id else None
            version = await legal.current_version(connection)
            models = [await model_card(connection, self.service)]
        settings = self.platform.settings
        return json_response(
            {
                "user": None if user is None else user_card(user),
                "signup": settings.signup,
                "currency": settings.currency,
                "terms": {"version": version, "accepted": 0 if user is None else user.terms},
                "models": models,
                "name": "leadline",
                "version": __version__,
                "about": DISCLAIMER,
            }
        )

    async def models(self, request: Request) -> Response:
        await self.platform.visitor(request)
        async with self.platform.store.database.read() as connection:
            return json_response({"data": [await model_card(connection, self.service)]})

    async def terms(self, request: Request) -> Response:
        async with self.platform.store.database.read() as connection:
            row = await legal.current_terms(connection)
        return json_response({"version": row.version, "text": row.text, "created": row.created})

    async def accept_terms(self, request: Request) -> Response:
        user = await self.platform.user(request)
        given = await body(request, TermsBody)
        store = self.platform.store
        async with store.database.write() as connection:
            await legal.accept(connection, user, given.version)
            await accounts.note(connection, "terms", f"user:{user}", now=store.now(), actor=user, version=given.version)
        return json_response({"ok": True})

    async def rename(self, request: Request) -> Response:
        user = await self.platform.user(request)
        given = await body(request, NameBody)
        async with self.platform.store.database.write() as connection:
            row = await accounts.change_user(connection, user, name=given.name.strip())
        return json_response(user_card(row))

    # ---- presets -----------------------------------------------------------------------------------------------

    async def presets(self, request: Request) -> Response:
        user = await self.platform.user(request)
        query = select(presets).where(presets.c.user_id == user).order_by(presets.c.name, presets.c.id)
        async with self.platform.store.database.read() as connection:
            rows = (await connection.execute(query)).all()
        temperatures = [{"id": name, "temperature": value} for name, value in TEMPERATURES.items()]
        return json_response({"temperatures": temperatures, "data": [_preset_card(row) for row in rows]})

    async def make_preset(self, request: Request) -> Response:
        user = await self.platform.user(request)
        given = await body(request, PresetBody)
        async with self.platform.store.database.write() as connection:
            count = await connection.scalar(select(func.count()).where(presets.c.user_id == user))
            if (count or 0) >= MOST_PRESETS:
                raise Conflict(f"an account has at most {MOST_PRESETS} presets; delete one", code="too_many_presets")
            made = insert(presets).values(user_id=user, **given.model_dump()).returning(presets)
            row = (await connection.execute(made)).one()
        return json_response(_preset_card(row), 201)

    async def change_preset(self, request: Request, preset: RowId) -> Response:
        user = await self.platform.user(request)
        given = await body(request, PresetBody)
        mine = and_(presets.c.id == preset, presets.c.user_id == user)
        async with self.platform.store.database.write() as connection:
            changed = update(presets).where(mine).values(given.model_dump()).returning(presets)
            row = (await connection.execute(changed)).one_or_none()
            if row is None:
                raise NotFound("there is no such preset", code="preset_not_found")
        return json_response(_preset_card(row))

    async def delete_preset(self, request: Request, preset: RowId) -> Response:
        user = await self.platform.user(request)
        mine = and_(presets.c.id == preset, presets.c.user_id == user)
        async with self.platform.store.database.write() as connection:
            if (await connection.execute(delete(presets).where(mine))).rowcount == 0:
                raise NotFound("there is no such preset", code="preset_not_found")
        return json_response({"ok": True})


async def model_card(connection: Any, service: CompletionService) -> dict[str, Any]:
    """The served model, under its real name."""
    info = service.engine.info
    try:
        price = await current_price(connection, info.model)
    except ModelNotFound:
        price = None
    return {
        "id": info.model,
        "context_length": info.context_length,
        "max_output_tokens": service.limit,
        "temperature": service.settings.defaults.temperature,
        "owned_by": service.settings.owned_by,
        "embedded": service.settings.embedded,
        "price": price and {name: format_price(getattr(price, name)) for name in ("hit", "miss", "output")},
        "licence": await legal.licence(connection, info.model),
        "modes": [{"id": mode, "alias": alias} for mode, alias in ALIASES.items()],
    }


def _preset_card(row: Row[Any]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in ("id", "name", "system", "temperature")}
