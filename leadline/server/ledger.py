"""The books: buckets of money, and an append-only ledger whose transactions sum to zero.

Every function works inside the caller's write transaction. Money enters a bucket from one of the house's accounts
(grants, payments) and leaves it to another (revenue, expired): a bucket's balance is always the sum of its entries.
What is held stays in the balance, but nothing else can take it. Granted money is spent before topped-up money, and
what expires first before what lasts.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import Row, Select, and_, case, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from leadline.errors import InsufficientBalance
from leadline.server.db import api_keys, buckets, hold_parts, holds, ledger, usage

BucketKind = Literal["granted", "topped_up"]

GRANTS = "house:grants"
PAYMENTS = "house:payments"
REVENUE = "house:revenue"
EXPIRED = "house:expired"
CORRECTIONS = "house:corrections"

_GRANTED_FIRST = case((buckets.c.kind == "granted", 0), else_=1)
_NEVER = 1 << 62


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    account: str
    amount: int
    bucket_id: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """Of one bucket: how much is held, or free to be."""

    bucket_id: int
    amount: int


@dataclasses.dataclass(frozen=True, slots=True)
class Balance:
    """What a user has, by kind; `held` of the sum is spoken for by requests that run."""

    granted: int = 0
    topped_up: int = 0
    held: int = 0

    @property
    def total(self) -> int:
        return self.granted + self.topped_up

    @property
    def available(self) -> int:
        return self.total - self.held


def account(user_id: int) -> str:
    return f"user:{user_id}"


async def post(connection: AsyncConnection, kind: str, ref: str, entries: Sequence[Entry], now: int) -> None:
    """One transaction in the ledger. Entries of nothing are left out."""
    await post_all(connection, kind, [(ref, entries)], now)


async def post_all(
    connection: AsyncConnection, kind: str, transactions: Sequence[tuple[str, Sequence[Entry]]], now: int
) -> None:
    """Several transactions, each a ref and its entries."""
    rows: list[dict[str, Any]] = []
    for ref, entries in transactions:
        assert sum(entry.amount for entry in entries) == 0
        shared = {"txn": str(uuid.uuid4()), "kind": kind, "ref": ref, "created": now}
        rows += [{**shared, **dataclasses.asdict(entry)} for entry in entries if entry.amount]
    if rows:
        await connection.execute(insert(ledger), rows)


async def credit(
    connection: AsyncConnection,
    user_id: int,
    amount: int,
    *,
    kind: BucketKind,
    source: str,
    what: str,
    ref: str,
    now: int,
    expires: int | None = None,
) -> int:
    """Money for a user, as a bucket of its own; its id."""
    assert amount > 0
    row = {"user_id": user_id, "kind": kind, "expires": expires, "balance": amount, "created": now}
    result = await connection.execute(insert(buckets).values(row).returning(buckets.c.id))
    bucket_id: int = result.scalar_one()
    entries = [Entry(account(user_id), amount, bucket_id), Entry(source, -amount)]
    await post(connection, what, ref, entries, now)
    return bucket_id


async def free_parts(connection: AsyncConnection, user_id: int, now: int) -> list[Part]:
    """What can be held, in the order in which it is spent."""
    rows = await connection.execute(_spendable(user_id, now).with_for_update())
    return [Part(row.id, row.balance - row.held) for row in rows]


def divide(parts: Sequence[Part], amount: int) -> list[Part]:
    """`amount` taken from the front of `parts`, which must hold it."""
    taken = []
    for part in parts:
        piece = min(part.amount, amount)
        if piece:
            taken.append(Part(part.bucket_id, piece))
        amount -= piece
    assert amount == 0
    return taken


async def hold_in_buckets(connection: AsyncConnection, parts: Sequence[Part]) -> None:
    for part in parts:
        free = and_(buckets.c.id == part.bucket_id, buckets.c.balance - buckets.c.held >= part.amount)
        result = await connection.execute(update(buckets).where(free).values(held=buckets.c.held + part.amount))
        assert result.rowcount == 1


async def release(connection: AsyncConnection, parts: Sequence[Part], paid: Sequence[Part]) -> None:
    """Let go of held `parts`; what of them is `paid` leaves the balance too. A bucket may have several of both."""
    held, spent = _by_bucket(parts), _by_bucket(paid)
    for bucket_id in sorted(held):
        values = {
            "held": buckets.c.held - held[bucket_id],
            "balance": buckets.c.balance - spent[bucket_id],
        }
        await connection.execute(update(buckets).where(buckets.c.id == bucket_id).values(values))


def _by_bucket(parts: Sequence[Part]) -> Counter[int]:
    sums = Counter[int]()
    for part in parts:
        sums[part.bucket_id] += part.amount
    return sums


async def debit(connection: AsyncConnection, user_id: int, amount: int, *, ref: str, now: int) -> None:
    """Take money back, as far as nothing holds it."""
    free = await free_parts(connection, user_id, now)
    if sum(part.amount for part in free) < amount:
        raise InsufficientBalance("the account does not have so much that is free")
    parts = divide(free, amount)
    await hold_in_buckets(connection, parts)
    await release(connection, parts, parts)
    entries = [Entry(account(user_id), -part.amount, part.bucket_id) for part in parts]
    await post(connection, "correction", ref, [*entries, Entry(CORRECTIONS, amount)], now)


async def expire(connection: AsyncConnection, now: int) -> int:
    """Empty what has expired, but for what a running request holds; the number of buckets."""
    over = and_(buckets.c.expires <= now, buckets.c.balance > buckets.c.held)
    return await _empty(connection, select(buckets).where(over), "expiry", now)


async def forfeit(connection: AsyncConnection, user_id: int, now: int) -> int:
    """Empty all buckets of an account that is deleted."""
    owned = and_(buckets.c.user_id == user_id, buckets.c.balance > buckets.c.held)
    return await _empty(connection, select(buckets).where(owned), "forfeit", now)


async def balance(connection: AsyncConnection, user_id: int, now: int) -> Balance:
    return (await balances(connection, [user_id], now))[user_id]


async def balances(connection: AsyncConnection, user_ids: Sequence[int], now: int) -> dict[int, Balance]:
    """What has expired counts as long as a request holds it."""
    live = and_(buckets.c.user_id.in_(user_ids), or_(_unexpired(now), buckets.c.held > 0))
    sums = [func.sum(buckets.c.balance).label("balance"), func.sum(buckets.c.held).label("held")]
    owner = [buckets.c.user_id, buckets.c.kind]
    found = dict.fromkeys(user_ids, Balance())
    for row in await connection.execute(select(*owner, *sums).where(live).group_by(*owner)):
        before = found[row.user_id]
        kind = {row.kind: int(row.balance)}
        found[row.user_id] = dataclasses.replace(before, **kind, held=before.held + int(row.held))
    return found


def statement(user_id: int) -> Select[Any]:
    """A user's entries, newest first."""
    return select(ledger).where(ledger.c.account == account(user_id)).order_by(ledger.c.id.desc())


async def faults(connection: AsyncConnection) -> list[str]:
    """What does not add up in the books; nothing, unless the database was tampered with."""
    unbalanced = select(ledger.c.txn).group_by(ledger.c.txn).having(func.sum(ledger.c.amount) != 0)
    entered = select(func.coalesce(func.sum(ledger.c.amount), 0)).where(ledger.c.bucket_id == buckets.c.id)
    parts = select(func.coalesce(func.sum(hold_parts.c.amount), 0)).where(hold_parts.c.bucket_id == buckets.c.id)
    of_key = select(func.coalesce(func.sum(holds.c.amount), 0)).where(holds.c.key_id == api_keys.c.id)
    by_key = select(func.coalesce(func.sum(usage.c.amount), 0)).where(usage.c.key_id == api_keys.c.id)
    checks = {
        "ledger transaction {} does not sum to zero": unbalanced,
        "bucket {} is not the sum of its entries": select(buckets.c.id).where(
            buckets.c.balance != entered.scalar_subquery()
        ),
        "bucket {} does not hold what its holds say": select(buckets.c.id).where(
            buckets.c.held != parts.scalar_subquery()
        ),
        "key {} does not hold what its holds say": select(api_keys.c.id).where(
            api_keys.c.held != of_key.scalar_subquery()
        ),
        "key {} has not spent what its usage says": select(api_keys.c.id).where(
            api_keys.c.spent != by_key.scalar_subquery()
        ),
    }
    found = [text.format(row[0]) for text, query in checks.items() for row in await connection.execute(query)]
    return found + await _revenue_fault(connection)


async def _revenue_fault(connection: AsyncConnection) -> list[str]:
    revenue = await connection.scalar(select(func.sum(ledger.c.amount)).where(ledger.c.account == REVENUE))
    billed = await connection.scalar(select(func.sum(usage.c.amount)))
    return [] if (revenue or 0) == (billed or 0) else ["the revenue is not the sum of the usage"]


async def _empty(connection: AsyncConnection, query: Select[Any], what: str, now: int) -> int:
    rows = (await connection.execute(query.with_for_update())).all()
    for row in rows:
        await _empty_bucket(connection, row, what, now)
    return len(rows)


async def _empty_bucket(connection: AsyncConnection, row: Row[Any], what: str, now: int) -> None:
    free = row.balance - row.held
    await connection.execute(update(buckets).where(buckets.c.id == row.id).values(balance=buckets.c.balance - free))
    entries = [Entry(account(row.user_id), -free, row.id), Entry(EXPIRED, free)]
    await post(connection, what, f"bucket:{row.id}", entries, now)


def _unexpired(now: int) -> Any:
    return or_(buckets.c.expires.is_(None), buckets.c.expires > now)


def _spendable(user_id: int, now: int) -> Select[Any]:
    free = and_(buckets.c.user_id == user_id, buckets.c.balance > buckets.c.held, _unexpired(now))
    return (
        select(buckets.c.id, buckets.c.balance, buckets.c.held)
        .where(free)
        .order_by(_GRANTED_FIRST, func.coalesce(buckets.c.expires, _NEVER), buckets.c.id)
    )
