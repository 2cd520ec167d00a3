"""The first steps of an installation on one's own machine: an operator, a way in, a key that works."""

from __future__ import annotations

import dataclasses

from sqlalchemy import Row, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from leadline.server import accounts, keys, legal, wallet
from leadline.server.db import api_keys, users
from leadline.server.money import NANO
from leadline.server.store import Store

OWNER = "owner@localhost"
STARTING_GRANT = 100 * NANO
KEY_NAME = "made at start"


@dataclasses.dataclass(frozen=True, slots=True)
class FirstSteps:
    """Shown to whoever started the server. `link` signs the owner in, once and within the hour."""

    email: str
    link: str
    key: str


async def first_steps(store: Store) -> FirstSteps:
    """For the oldest operator, who is made with a starting grant if there is none; the last start's key ends."""
    now = store.now()
    async with store.database.write() as connection:
        owner = await _owner(connection, now)
        link = await accounts.make_link(connection, store.secrets, "signin", now=now, user_id=owner.id)
        last = (api_keys.c.user_id == owner.id) & (api_keys.c.name == KEY_NAME) & api_keys.c.revoked.is_(None)
        await connection.execute(update(api_keys).where(last).values(revoked=now))
        _, key = await keys.create_key(connection, store.secrets, owner.id, keys.KeySpec(name=KEY_NAME), now)
        await accounts.note(connection, "start", f"user:{owner.id}", now=now)
    return FirstSteps(owner.email, link, key)


async def _owner(connection: AsyncConnection, now: int) -> Row[tuple[object, ...]]:
    operators = (users.c.role == "admin") & (users.c.state == "active")
    owner = (await connection.execute(select(users).where(operators).order_by(users.c.id).limit(1))).one_or_none()
    if owner is None:
        owner = await accounts.create_user(connection, OWNER, "", now=now, role="admin", name="owner")
        # The operator's own terms: others are asked for them, who starts the server on their own machine is not.
        await legal.ensure_terms(connection, now)
        await legal.accept(connection, owner.id, await legal.current_version(connection))
        await wallet.grant(connection, owner.id, STARTING_GRANT, ref="first start", now=now)
    return owner
