"""Users, their sessions and the links that let someone in; every function works inside the caller's transaction.

A user who is deleted keeps a row without email, name or password: the ledger's pseudonym. What was done by whom goes
to the audit log in the same transaction, without addresses of mail and without secrets.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Any, Literal

from sqlalchemy import Row, and_, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from leadline.errors import AuthenticationError, Conflict, InvalidRequest, NotFound
from leadline.server import ledger
from leadline.server.auth import Claims, issue_token
from leadline.server.db import api_keys, audit, idempotency, links, presets, sessions, users
from leadline.server.secret_file import Secrets

Role = Literal["user", "admin"]
Purpose = Literal["web", "client"]
LinkPurpose = Literal["invite", "reset", "signin"]

HOUR, DAY = 3600, 86_400
WEB_DAYS = 14
CLIENT_DAYS = 365
LINK_SECONDS: Mapping[LinkPurpose, int] = {"invite": 7 * DAY, "reset": DAY, "signin": HOUR}
IDEMPOTENCY_DAYS = 7
TOUCH_SECONDS = 60  # how exact `last_used` is

_EMAIL = re.compile(r"[^@\s\x00-\x1f]{1,64}@[^@\s\x00-\x1f]{1,189}")


def normal_email(email: str) -> str:
    normal = email.strip().lower()
    if not _EMAIL.fullmatch(normal):
        raise InvalidRequest("this is no email address", param="email", code="invalid_email")
    return normal


async def note(
    connection: AsyncConnection,
    action: str,
    subject: str,
    *,
    now: int,
    actor: int | None = None,
    address: str = "",
    **detail: Any,
) -> None:
    """One line of the audit log."""
    row = {"actor": actor, "action": action, "subject": subject, "detail": detail, "address": address, "created": now}
    await connection.execute(insert(audit).values(row))


# ---- users ---------------------------------------------------------------------------------------------------------


async def create_user(
    connection: AsyncConnection, email: str, password_hash: str, *, now: int, role: Role = "user", name: str = ""
) -> Row[Any]:
    email = normal_email(email)
    if await find_user(connection, email) is not None:
        raise Conflict("there is an account with this email address", param="email", code="email_taken")
    row = {"email": email, "name": name[:100], "password": password_hash, "role": role, "state": "active"}
    made: Row[Any] = (await connection.execute(insert(users).values(**row, created=now).returning(users))).one()
    return made


async def find_user(connection: AsyncConnection, email: str) -> Row[Any] | None:
    return (await connection.execute(select(users).where(users.c.email == email.strip().lower()))).one_or_none()


async def get_user(connection: AsyncConnection, user_id: int) -> Row[Any]:
    row = (await connection.execute(select(users).where(users.c.id == user_id))).one_or_none()
    if row is None:
        raise NotFound("there is no such user", code="user_not_found")
    return row


async def change_user(connection: AsyncConnection, user_id: int, **values: Any) -> Row[Any]:
    """New values for columns; someone who is no longer active is signed out at once."""
    result = await connection.execute(update(users).where(users.c.id == user_id).values(values).returning(users))
    row: Row[Any] | None = result.one_or_none()
    if row is None:
        raise NotFound("there is no such user", code="user_not_found")
    if row.state != "active":
        await end_sessions(connection, user_id)
    return row


async def set_password(connection: AsyncConnection, user_id: int, password_hash: str, keep: str | None = None) -> None:
    """A new password ends every session and client token but the one to `keep`, and every link to this account."""
    await connection.execute(update(users).where(users.c.id == user_id).values(password=password_hash))
    await connection.execute(update(links).where(links.c.user_id == user_id).values(uses_left=0))
    await end_sessions(connection, user_id, keep)


async def delete_user(connection: AsyncConnection, user_id: int, now: int) -> None:
    """Forget who it was. The money is forfeited, keys, sessions and links end; the ledger's rows stay."""
    await ledger.forfeit(connection, user_id, now)
    await end_sessions(connection, user_id)
    await connection.execute(update(links).where(links.c.user_id == user_id).values(uses_left=0))
    for table in (presets, idempotency):  # both hold words of the user's own
        await connection.execute(delete(table).where(table.c.user_id == user_id))
    keys = update(api_keys).where(api_keys.c.user_id == user_id)
    await connection.execute(keys.values(name=""))
    await connection.execute(keys.where(api_keys.c.revoked.is_(None)).values(revoked=now))
    forgotten = {"email": None, "name": "", "password": "", "role": "user", "state": "deleted"}
    await connection.execute(update(users).where(users.c.id == user_id).values(forgotten))


# ---- sessions ------------------------------------------------------------------------------------------------------


async def start_session(
    connection: AsyncConnection,
    made: Secrets,
    user_id: int,
    *,
    now: int,
    purpose: Purpose = "web",
    name: str = "",
    days: int = WEB_DAYS,
) -> tuple[str, str]:
    """The session's id, and its token."""
    session_id, expires = secrets.token_hex(16), now + days * DAY
    row = {"id": session_id, "user_id": user_id, "purpose": purpose, "name": name[:100], "last_used": now}
    await connection.execute(insert(sessions).values(**row, created=now, expires=expires))
    return session_id, issue_token(made.jwt, Claims(user_id, session_id, purpose), now=now, expires=expires)


async def find_session(connection: AsyncConnection, claims: Claims, now: int) -> Row[Any]:
    """The session's row with its user's role."""
    live = and_(
        sessions.c.id == claims.session_id,
        sessions.c.user_id == claims.user_id,
        sessions.c.purpose == claims.purpose,
        sessions.c.expires > now,
        users.c.state == "active",
    )
    query = select(sessions, users.c.role).join(users, users.c.id == sessions.c.user_id).where(live)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise AuthenticationError("this session has ended; sign in again")
    return row


async def list_sessions(connection: AsyncConnection, user_id: int, purpose: Purpose, now: int) -> list[Row[Any]]:
    mine = and_(sessions.c.user_id == user_id, sessions.c.purpose == purpose, sessions.c.expires > now)
    query = select(sessions).where(mine).order_by(sessions.c.created.desc(), sessions.c.id)
    return list((await connection.execute(query)).all())


async def end_session(connection: AsyncConnection, user_id: int, session_id: str) -> None:
    mine = and_(sessions.c.user_id == user_id, sessions.c.id == session_id)
    if (await connection.execute(delete(sessions).where(mine))).rowcount == 0:
        raise NotFound("there is no such session", code="session_not_found")


async def end_sessions(connection: AsyncConnection, user_id: int, keep: str | None = None) -> None:
    await connection.execute(delete(sessions).where(and_(sessions.c.user_id == user_id, sessions.c.id != (keep or ""))))


async def forget_ended(connection: AsyncConnection, now: int) -> None:
    """Sessions that are over, and answers that no client will ask for again."""
    await connection.execute(delete(sessions).where(sessions.c.expires <= now))
    await connection.execute(delete(idempotency).where(idempotency.c.created <= now - IDEMPOTENCY_DAYS * DAY))


async def touch_session(connection: AsyncConnection, session_id: str, now: int) -> None:
    await connection.execute(update(sessions).where(sessions.c.id == session_id).values(last_used=now))


# ---- links ---------------------------------------------------------------------------------------------------------


async def make_link(
    connection: AsyncConnection,
    made: Secrets,
    purpose: LinkPurpose,
    *,
    now: int,
    user_id: int | None = None,
    role: Role = "user",
    grant: int = 0,
    grant_days: int | None = None,
    uses: int = 1,
    seconds: int | None = None,
) -> str:
    """The secret of a new link; it cannot be shown again."""
    secret = secrets.token_urlsafe(24)
    row = {"purpose": purpose, "digest": made.digest(purpose, secret), "user_id": user_id, "role": role}
    limits = {"grant_amount": grant, "grant_days": grant_days, "uses_left": uses}
    expires = now + (seconds or LINK_SECONDS[purpose])
    await connection.execute(insert(links).values(**row, **limits, created=now, expires=expires))
    return secret


async def use_link(connection: AsyncConnection, made: Secrets, purpose: LinkPurpose, secret: str, now: int) -> Row[Any]:
    """One use of a link less."""
    usable = and_(
        links.c.digest == made.digest(purpose, secret),
        links.c.purpose == purpose,
        links.c.uses_left > 0,
        links.c.expires > now,
    )
    change = update(links).where(usable).values(uses_left=links.c.uses_left - 1)
    row: Row[Any] | None = (await connection.execute(change.returning(links))).one_or_none()
    if row is None:
        raise AuthenticationError("this link is wrong, was used, or is too old; ask for another", code="link_invalid")
    return row


async def list_invites(connection: AsyncConnection, now: int) -> list[Row[Any]]:
    live = and_(links.c.purpose == "invite", links.c.uses_left > 0, links.c.expires > now)
    return list((await connection.execute(select(links).where(live).order_by(links.c.id.desc()))).all())


async def cancel_invite(connection: AsyncConnection, link_id: int) -> None:
    mine = and_(links.c.id == link_id, links.c.purpose == "invite", links.c.uses_left > 0)
    if (await connection.execute(update(links).where(mine).values(uses_left=0))).rowcount == 0:
        raise NotFound("there is no such invitation", code="invitation_not_found")


async def accept_invite(connection: AsyncConnection, invite: Row[Any], user_id: int, now: int) -> None:
    """The starting grant of an invitation that was just used."""
    if invite.grant_amount:
        await ledger.credit(
            connection,
            user_id,
            invite.grant_amount,
            kind="granted",
            source=ledger.GRANTS,
            what="grant",
            ref=f"invite:{invite.id}",
            now=now,
            expires=None if invite.grant_days is None else now + invite.grant_days * DAY,
        )
