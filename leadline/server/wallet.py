"""Money as users and operators handle it: grants, vouchers, what was used and by what; and doing a thing only once."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

from sqlalchemy import Row, and_, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from leadline.errors import Conflict, InvalidRequest, NotFound
from leadline.server import ledger
from leadline.server.accounts import DAY
from leadline.server.db import api_keys, buckets, idempotency, usage, users, vouchers
from leadline.server.db import ledger as entries
from leadline.server.ledger import BucketKind
from leadline.server.money import format_money
from leadline.server.secret_file import Secrets

By = Literal["day", "model", "key", "user"]

LETTERS = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"  # none that looks like another
MOST_VOUCHERS = 1000

_GROUPS = {"day": usage.c.day, "model": usage.c.model, "key": usage.c.key_id, "user": usage.c.user_id}
_NAMES = {"key": "key_name", "user": "email"}  # a column beside an id, for people
_COUNTS = ("requests", "cached_tokens", "miss_tokens", "completion_tokens", "amount")


async def grant(
    connection: AsyncConnection,
    user_id: int,
    amount: int,
    *,
    ref: str,
    now: int,
    kind: BucketKind = "granted",
    days: int | None = None,
) -> int:
    """Money from the house; the bucket's id."""
    expires = None if days is None else now + days * DAY
    source = ledger.GRANTS if kind == "granted" else ledger.PAYMENTS
    return await ledger.credit(
        connection, user_id, amount, kind=kind, source=source, what="grant", ref=ref, now=now, expires=expires
    )


async def make_vouchers(
    connection: AsyncConnection,
    made: Secrets,
    amount: int,
    *,
    now: int,
    count: int = 1,
    kind: BucketKind = "topped_up",
    days: int | None = None,
    valid_days: int | None = None,
) -> list[str]:
    """Codes that are worth `amount` each; they cannot be shown again."""
    if not 1 <= count <= MOST_VOUCHERS:
        raise InvalidRequest(f"count must lie in [1, {MOST_VOUCHERS}]", param="count", code="value_out_of_range")
    if amount <= 0:
        raise InvalidRequest("amount must be above 0", param="amount", code="value_out_of_range")
    codes = [_new_code() for _ in range(count)]
    expires = None if valid_days is None else now + valid_days * DAY
    shared = {"amount": amount, "kind": kind, "days": days, "expires": expires, "created": now}
    rows = [{"digest": _voucher_digest(made, code), "shown": f"...{code[-4:]}", **shared} for code in codes]
    await connection.execute(insert(vouchers), rows)
    return codes


async def redeem(connection: AsyncConnection, made: Secrets, user_id: int, code: str, now: int) -> Row[Any]:
    """Its amount for the user, as what the voucher says; a code works once."""
    usable = and_(
        vouchers.c.digest == _voucher_digest(made, code),
        vouchers.c.used.is_(None),
        or_(vouchers.c.expires.is_(None), vouchers.c.expires > now),
    )
    change = update(vouchers).where(usable).values(used=now, used_by=user_id)
    row: Row[Any] | None = (await connection.execute(change.returning(vouchers))).one_or_none()
    if row is None:
        raise NotFound("this voucher is wrong, was used, or is too old", param="code", code="voucher_invalid")
    await ledger.credit(
        connection,
        user_id,
        row.amount,
        kind=row.kind,
        source=ledger.PAYMENTS if row.kind == "topped_up" else ledger.GRANTS,
        what="voucher",
        ref=f"voucher:{row.id}",
        now=now,
        expires=None if row.days is None else now + row.days * DAY,
    )
    return row


async def list_vouchers(connection: AsyncConnection, limit: int = 200) -> list[Row[Any]]:
    return list((await connection.execute(select(vouchers).order_by(vouchers.c.id.desc()).limit(limit))).all())


async def list_buckets(connection: AsyncConnection, user_id: int, now: int) -> list[Row[Any]]:
    live = and_(
        buckets.c.user_id == user_id,
        buckets.c.balance > 0,
        or_(buckets.c.expires.is_(None), buckets.c.expires > now, buckets.c.held > 0),
    )
    return list((await connection.execute(select(buckets).where(live).order_by(buckets.c.id))).all())


async def list_entries(
    connection: AsyncConnection, user_id: int, *, before: int | None = None, limit: int = 100
) -> list[Row[Any]]:
    """A user's ledger, newest first."""
    mine = ledger.statement(user_id)
    if before is not None:
        mine = mine.where(entries.c.id < before)
    return list((await connection.execute(mine.limit(limit))).all())


async def usage_report(
    connection: AsyncConnection, by: Sequence[By], *, user_id: int | None = None, since: str = "", until: str = "9999"
) -> list[dict[str, Any]]:
    """Requests, tokens and money between two days, both included, summed up by what is asked for."""
    groups = [_GROUPS[name].label(name) for name in dict.fromkeys(by)]
    sums = [func.count().label("requests"), *(func.sum(usage.c[name]).label(name) for name in _COUNTS[1:])]
    chosen = [usage.c.day >= since, usage.c.day <= until]
    if user_id is not None:
        chosen.append(usage.c.user_id == user_id)
    query = select(*groups, *sums).where(and_(*chosen)).group_by(*groups).order_by(*groups)
    rows = [dict(row._mapping) for row in await connection.execute(query)]
    keys = await _key_names(connection, {row["key"] for row in rows if row.get("key") is not None})
    emails = await _emails(connection, {row["user"] for row in rows if "user" in row})
    return [_usage_row(row, keys, emails) for row in rows]


def usage_csv(rows: Sequence[dict[str, Any]], by: Sequence[By]) -> str:
    """The report as a table; a name that a spreadsheet would take for a formula is quoted for it."""
    fields = [*dict.fromkeys(by), *(name for group, name in _NAMES.items() if group in by), *_COUNTS]
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, extrasaction="ignore")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


async def once(
    connection: AsyncConnection,
    user_id: int,
    key: str | None,
    request: Any,
    action: Callable[[], Awaitable[dict[str, Any]]],
    now: int,
) -> dict[str, Any]:
    """Do `action`, unless the same request with this Idempotency-Key was done: then what was answered to it."""
    if key is None:
        return await action()
    if not 1 <= len(key) <= 200:
        raise InvalidRequest("an Idempotency-Key has 1 to 200 characters", code="value_out_of_range")
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    mine = and_(idempotency.c.user_id == user_id, idempotency.c.key == key)
    row = (await connection.execute(select(idempotency).where(mine))).one_or_none()
    if row is not None:
        if row.request != digest:
            raise Conflict("this Idempotency-Key came with another request before", code="idempotency_key_reused")
        stored: dict[str, Any] = row.response
        return stored
    response = await action()
    values = {"user_id": user_id, "key": key, "request": digest, "response": response, "created": now}
    await connection.execute(insert(idempotency).values(values))
    return response


def _new_code() -> str:
    letters = [secrets.choice(LETTERS) for _ in range(20)]
    return "-".join("".join(letters[start : start + 5]) for start in range(0, 20, 5))


def _voucher_digest(made: Secrets, code: str) -> str:
    """Case, spaces and hyphens of a code that someone types do not matter."""
    return made.digest("voucher", "".join(code.upper().replace("-", " ").split()))


async def _key_names(connection: AsyncConnection, ids: set[int]) -> dict[int, str]:
    query = select(api_keys.c.id, api_keys.c.name, api_keys.c.shown).where(api_keys.c.id.in_(ids))
    return {row.id: row.name or row.shown for row in await connection.execute(query)} if ids else {}


async def _emails(connection: AsyncConnection, ids: set[int]) -> dict[int, str]:
    """Someone who was deleted has none."""
    query = select(users.c.id, users.c.email).where(users.c.id.in_(ids))
    return {row.id: row.email or "" for row in await connection.execute(query)} if ids else {}


def _usage_row(row: dict[str, Any], keys: dict[int, str], emails: dict[int, str]) -> dict[str, Any]:
    row = {name: int(value) if name in _COUNTS else value for name, value in row.items()}
    row["amount"] = format_money(row["amount"])
    if "key" in row:
        row["key_name"] = keys.get(row["key"], "")
    if "user" in row:
        row["email"] = emails.get(row["user"], "")
    return row


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
