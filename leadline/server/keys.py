"""API keys: made and shown once, kept as digests, each with its own expiry, models, caps and limits."""

from __future__ import annotations

import dataclasses
from typing import Any

from sqlalchemy import Row, and_, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from leadline.errors import Conflict, NotFound
from leadline.server.auth import new_key
from leadline.server.db import api_keys, users
from leadline.server.money import format_money
from leadline.server.secret_file import Secrets

MOST_KEYS = 100  # of one user, revoked ones apart


@dataclasses.dataclass(frozen=True, slots=True)
class KeySpec:
    """What a key may do. None is: no limit of its own."""

    name: str = ""
    expires: int | None = None
    models: tuple[str, ...] | None = None
    spend_cap: int | None = None
    monthly_cap: int | None = None
    requests_per_minute: int | None = None
    concurrency: int | None = None
    control_tokens: bool = False


async def create_key(
    connection: AsyncConnection, made: Secrets, user_id: int, spec: KeySpec, now: int
) -> tuple[Row[Any], str]:
    """The key's row, and the key, which cannot be shown again."""
    if len(await list_keys(connection, user_id)) >= MOST_KEYS:
        raise Conflict(f"an account has at most {MOST_KEYS} keys; revoke one", code="too_many_keys")
    secret = new_key()
    values = {
        **dataclasses.asdict(spec),
        "models": None if spec.models is None else list(spec.models),
        "user_id": user_id,
        "digest": made.digest("key", secret),
        "shown": f"{secret[:6]}...{secret[-4:]}",
        "created": now,
    }
    row = (await connection.execute(insert(api_keys).values(values).returning(api_keys))).one()
    return row, secret


async def find_key(connection: AsyncConnection, made: Secrets, secret: str, now: int) -> Row[Any] | None:
    """The key's row with its user's role, while both are good."""
    live = and_(
        api_keys.c.digest == made.digest("key", secret),
        api_keys.c.revoked.is_(None),
        or_(api_keys.c.expires.is_(None), api_keys.c.expires > now),
        users.c.state == "active",
    )
    query = select(api_keys, users.c.role).join(users, users.c.id == api_keys.c.user_id).where(live)
    return (await connection.execute(query)).one_or_none()


async def list_keys(connection: AsyncConnection, user_id: int) -> list[Row[Any]]:
    mine = and_(api_keys.c.user_id == user_id, api_keys.c.revoked.is_(None))
    return list((await connection.execute(select(api_keys).where(mine).order_by(api_keys.c.id))).all())


async def revoke_key(connection: AsyncConnection, user_id: int, key_id: int, now: int) -> None:
    mine = and_(api_keys.c.user_id == user_id, api_keys.c.id == key_id, api_keys.c.revoked.is_(None))
    if (await connection.execute(update(api_keys).where(mine).values(revoked=now))).rowcount == 0:
        raise NotFound("there is no such key", code="key_not_found")


async def revoke_any_key(connection: AsyncConnection, made: Secrets, key: str, now: int) -> Row[Any]:
    """By its number or by itself, for operators; its row."""
    found = api_keys.c.digest == made.digest("key", key)
    if key.isascii() and key.isdigit() and len(key) <= 18:
        found = api_keys.c.id == int(key)
    change = update(api_keys).where(and_(found, api_keys.c.revoked.is_(None))).values(revoked=now)
    row: Row[Any] | None = (await connection.execute(change.returning(api_keys))).one_or_none()
    if row is None:
        raise NotFound("there is no such key", code="key_not_found")
    return row


async def touch_key(connection: AsyncConnection, key_id: int, now: int) -> None:
    await connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(last_used=now))


def key_card(row: Row[Any]) -> dict[str, Any]:
    """A key as its owner sees it in the list."""
    return {
        "id": row.id,
        "name": row.name,
        "key": row.shown,
        "created": row.created,
        "expires": row.expires,
        "last_used": row.last_used,
        "models": row.models,
        "requests_per_minute": row.requests_per_minute,
        "concurrency": row.concurrency,
        "control_tokens": row.control_tokens,
        "spend_cap": _money(row.spend_cap),
        "monthly_cap": _money(row.monthly_cap),
        "spent": format_money(row.spent),
        "held": format_money(row.held),
    }


def _money(amount: int | None) -> str | None:
    return None if amount is None else format_money(amount)
