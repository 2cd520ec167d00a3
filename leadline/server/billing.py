"""What a request costs: held before it runs, settled exactly once however it ends.

A hold covers the prompt and the next `HOLD_TOKENS` tokens of output, at the prices of the moment the request came, and
is extended while the answer streams. Settling deletes the hold, and only who deletes it writes the bill: a second
settlement, or a sweep that comes late, finds nothing. A hold whose process died keeps its last persisted counts; when
its lease is over, `sweep` bills those. A request never costs more than was held for it.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from sqlalchemy import Row, and_, bindparam, case, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from leadline.engine.types import Usage
from leadline.errors import AuthenticationError, BudgetExceeded, InsufficientBalance, ModelNotFound
from leadline.server import ledger
from leadline.server.access import Outcome
from leadline.server.db import Database, api_keys, hold_parts, holds, prices, usage, users
from leadline.server.ledger import Entry, Part
from leadline.server.money import Price, format_money

HOLD_TOKENS = 256
LEASE_SECONDS = 15


Clock = Callable[[], float]


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    """A request as billing sees it; `most` is how many tokens all of its answers can have together."""

    request_id: str
    user_id: int
    key_id: int | None
    model: str
    prompt_tokens: int
    most: int


@dataclasses.dataclass(frozen=True, slots=True)
class Hold:
    """An order that is paid for up to `covered` tokens of output."""

    order: Order
    price: Price
    covered: int


@dataclasses.dataclass(frozen=True, slots=True)
class Settlement:
    """How a request ended."""

    request_id: str
    delivered: Usage
    outcome: Outcome


@dataclasses.dataclass(frozen=True, slots=True)
class Bill:
    """A settled request: what it had held and from which buckets, what it cost and which of them paid."""

    hold: Row[Any]
    parts: Sequence[Part]
    price: Price
    delivered: Usage
    outcome: Outcome
    cost: int
    paid: Sequence[Part]

    @property
    def request_id(self) -> str:
        return str(self.hold.id)


class Witness(Protocol):
    """Who keeps what was paid for: it writes in the transaction that writes the money, and so the two always agree."""

    def texts(self, request_ids: Collection[str]) -> Mapping[str, str]:
        """What those of the requests that it keeps have delivered by now."""
        ...

    async def persisted(self, connection: AsyncConnection, texts: Mapping[str, str]) -> None: ...

    async def settled(self, connection: AsyncConnection, bills: Sequence[Bill]) -> None: ...


class Billing:
    def __init__(self, database: Database, *, clock: Clock = time.time, witness: Witness | None = None) -> None:
        self.database = database
        self.clock = clock
        self.witness = witness

    def now(self) -> int:
        return int(self.clock())

    async def hold(self, order: Order) -> Hold:
        """Hold for the prompt and the first tokens, or raise `InsufficientBalance`: then nothing runs."""
        covered = min(HOLD_TOKENS, order.most)
        async with self.database.write() as connection:
            price = await current_price(connection, order.model)
            amount = price.ceiling(order.prompt_tokens, covered)
            free = await ledger.free_parts(connection, order.user_id, self.now())
            if sum(part.amount for part in free) < amount:
                raise _refusal(order, price, covered, sum(part.amount for part in free))
            if not await self._hold_on_key(connection, order.key_id, amount):
                raise BudgetExceeded(f"the spending cap of this key does not leave {format_money(amount)}")
            await connection.execute(insert(holds).values(self._row(order, price, amount)))
            await _add_parts(connection, order.request_id, ledger.divide(free, amount))
        return Hold(order, price, covered)

    async def extend(self, hold: Hold, tokens: int) -> Hold:
        """Cover up to `tokens` more, as many as the balance and the key's cap leave. Raises `AuthenticationError` when
        the account or the key is no longer good: an answer that runs ends there."""
        async with self.database.write() as connection:
            row = await _open_hold(connection, hold.order.request_id)
            if row is None:
                return hold  # swept: its process was taken for dead
            await _check_still_allowed(connection, row)
            free = await ledger.free_parts(connection, row.user_id, self.now())
            available = sum(part.amount for part in free)
            if (left := await self._left_on_key(connection, row.key_id)) is not None:
                available = min(available, left)
            if hold.price.output:
                tokens = min(tokens, available // hold.price.output)
            amount = tokens * hold.price.output
            if not await self._hold_on_key(connection, row.key_id, amount):
                return hold
            await connection.execute(
                update(holds).where(holds.c.id == row.id).values(amount=holds.c.amount + amount, lease=self._lease())
            )
            await _add_parts(connection, row.id, ledger.divide(free, amount))
        return dataclasses.replace(hold, covered=hold.covered + tokens)

    async def settle(self, request_id: str, delivered: Usage, outcome: Outcome) -> int | None:
        """Bill what was delivered and give the rest back; None when that was done before."""
        return (await self.settle_all([Settlement(request_id, delivered, outcome)])).get(request_id)

    async def settle_all(self, settlements: Sequence[Settlement]) -> dict[str, int]:
        """The costs of those that were not settled before, all in one transaction: many that end at once take about as
        long as one."""
        async with self.database.write() as connection:
            return await self._settle(connection, settlements)

    async def persist(self, counts: Mapping[str, Usage]) -> None:
        """Write down what running requests have delivered, and renew their leases. `counts` are of this moment."""
        if not counts:
            return
        texts = {} if self.witness is None else self.witness.texts(counts)
        names = ("prompt_tokens", "cached_tokens", "completion_tokens")
        lease = self._lease()
        rows = [
            {"hold": request_id, "lease": lease, **{name: getattr(counted, name) for name in names}}
            for request_id, counted in counts.items()
        ]
        # Answers wait when this comes late (leadline/server/meter.py), so it stands in no queue of holds.
        async with self.database.write(urgent=True) as connection:
            # `bindparam` by hand: a column of the WHERE clause may not share its parameter's name.
            await connection.execute(update(holds).where(holds.c.id == bindparam("hold")), rows)
            if self.witness is not None and texts:
                await self.witness.persisted(connection, texts)

    async def sweep(self, alive: Collection[str] = ()) -> int:
        """Settle the holds of processes that are gone at what they had written down; the number of holds."""
        async with self.database.write() as connection:
            rows = await connection.execute(select(holds).where(holds.c.lease < self.now()).with_for_update())
            dead = [
                Settlement(row.id, Usage(row.prompt_tokens, row.completion_tokens, row.cached_tokens), "swept")
                for row in rows
                if row.id not in alive
            ]
            return len(await self._settle(connection, dead)) if dead else 0

    async def expire(self) -> int:
        async with self.database.write() as connection:
            return await ledger.expire(connection, self.now())

    def _row(self, order: Order, price: Price, amount: int) -> dict[str, Any]:
        return {
            "id": order.request_id,
            "user_id": order.user_id,
            "key_id": order.key_id,
            "price_id": price.id,
            "amount": amount,
            "prompt_tokens": 0,
            "cached_tokens": 0,
            "completion_tokens": 0,
            "created": self.now(),
            "lease": self._lease(),
        }

    def _lease(self) -> int:
        return self.now() + LEASE_SECONDS

    def _month(self) -> str:
        return time.strftime("%Y-%m", time.gmtime(self.now()))

    async def _settle(self, connection: AsyncConnection, settlements: Sequence[Settlement]) -> dict[str, int]:
        bills = await _bills(connection, {each.request_id: each for each in settlements})
        if not bills:
            return {}
        ids = [bill.request_id for bill in bills]
        await connection.execute(delete(hold_parts).where(hold_parts.c.hold_id.in_(ids)))
        await connection.execute(delete(holds).where(holds.c.id.in_(ids)))
        await ledger.release(
            connection, [part for bill in bills for part in bill.parts], [part for bill in bills for part in bill.paid]
        )
        await ledger.post_all(connection, "usage", [(bill.request_id, _entries(bill)) for bill in bills], self.now())
        await self._settle_on_keys(connection, bills)
        await connection.execute(insert(usage), [self._usage_row(bill) for bill in bills])
        if self.witness is not None:
            await self.witness.settled(connection, bills)
        return {bill.request_id: bill.cost for bill in bills}

    def _usage_row(self, bill: Bill) -> dict[str, Any]:
        now, row, delivered = self.now(), bill.hold, bill.delivered
        return {
            "request_id": row.id,
            "user_id": row.user_id,
            "key_id": row.key_id,
            "model": bill.price.model,
            "price_id": bill.price.id,
            "cached_tokens": delivered.cached_tokens,
            "miss_tokens": delivered.prompt_tokens - delivered.cached_tokens,
            "completion_tokens": delivered.completion_tokens,
            "amount": bill.cost,
            "outcome": bill.outcome,
            "day": time.strftime("%Y-%m-%d", time.gmtime(now)),
            "created": now,
        }

    def _month_spent(self) -> Any:
        return case((api_keys.c.month == self._month(), api_keys.c.month_spent), else_=0)

    async def _hold_on_key(self, connection: AsyncConnection, key_id: int | None, amount: int) -> bool:
        """Count `amount` against the key's caps; False when one does not allow it."""
        if key_id is None:
            return True
        keys, month_spent = api_keys.c, self._month_spent()
        allowed = and_(
            keys.id == key_id,
            or_(keys.spend_cap.is_(None), keys.spent + keys.held + amount <= keys.spend_cap),
            or_(keys.monthly_cap.is_(None), month_spent + keys.held + amount <= keys.monthly_cap),
        )
        result = await connection.execute(update(api_keys).where(allowed).values(held=keys.held + amount))
        return result.rowcount == 1

    async def _left_on_key(self, connection: AsyncConnection, key_id: int | None) -> int | None:
        if key_id is None:
            return None
        keys = api_keys.c
        query = select(keys.spend_cap - keys.spent - keys.held, keys.monthly_cap - self._month_spent() - keys.held)
        row = (await connection.execute(query.where(keys.id == key_id).with_for_update())).one()
        return min((max(0, left) for left in row if left is not None), default=None)

    async def _settle_on_keys(self, connection: AsyncConnection, bills: Sequence[Bill]) -> None:
        held, cost = Counter[int](), Counter[int]()
        for bill in bills:
            if bill.hold.key_id is not None:
                held[bill.hold.key_id] += bill.hold.amount
                cost[bill.hold.key_id] += bill.cost
        for key_id in sorted(held):
            values = {
                "held": api_keys.c.held - held[key_id],
                "spent": api_keys.c.spent + cost[key_id],
                "month": self._month(),
                "month_spent": self._month_spent() + cost[key_id],
            }
            await connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(values))


async def current_price(connection: AsyncConnection, model: str) -> Price:
    """The newest version."""
    query = select(prices).where(prices.c.model == model).order_by(prices.c.version.desc()).limit(1)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise ModelNotFound(f"the model {model!r} has no price yet, so it is not for sale", param="model")
    return _as_price(row)


async def set_price(connection: AsyncConnection, model: str, *, hit: int, miss: int, output: int, now: int) -> Price:
    """A new version; requests that run keep theirs."""
    newest = await connection.scalar(select(func.max(prices.c.version)).where(prices.c.model == model))
    row = {"model": model, "version": (newest or 0) + 1, "hit": hit, "miss": miss, "output": output, "created": now}
    return _as_price((await connection.execute(insert(prices).values(row).returning(prices))).one())


def _as_price(row: Row[Any]) -> Price:
    return Price(row.id, row.model, row.version, row.hit, row.miss, row.output)


async def _open_hold(connection: AsyncConnection, request_id: str) -> Row[Any] | None:
    return (await connection.execute(select(holds).where(holds.c.id == request_id).with_for_update())).one_or_none()


async def _check_still_allowed(connection: AsyncConnection, hold: Row[Any]) -> None:
    if await connection.scalar(select(users.c.state).where(users.c.id == hold.user_id)) != "active":
        raise AuthenticationError("the account is no longer active")
    query = select(api_keys.c.id).where(and_(api_keys.c.id == hold.key_id, api_keys.c.revoked.is_not(None)))
    if hold.key_id is not None and await connection.scalar(query) is not None:
        raise AuthenticationError("this key was revoked")


async def _bills(connection: AsyncConnection, wanted: Mapping[str, Settlement]) -> list[Bill]:
    """Of those whose hold is still there."""
    query = select(holds).where(holds.c.id.in_(wanted)).order_by(holds.c.id).with_for_update()
    rows = (await connection.execute(query)).all()
    parts = await _parts(connection, [row.id for row in rows])
    query = select(prices).where(prices.c.id.in_({row.price_id for row in rows}))
    known = {row.id: _as_price(row) for row in await connection.execute(query)}
    bills = []
    for row in rows:
        price, ended = known[row.price_id], wanted[row.id]
        cost = min(price.cost(ended.delivered), row.amount)
        paid = ledger.divide(parts[row.id], cost)
        bills.append(Bill(row, parts[row.id], price, ended.delivered, ended.outcome, cost, paid))
    return bills


def _entries(bill: Bill) -> list[Entry]:
    spent = [Entry(ledger.account(bill.hold.user_id), -part.amount, part.bucket_id) for part in bill.paid]
    return [*spent, Entry(ledger.REVENUE, bill.cost)]


async def _parts(connection: AsyncConnection, request_ids: Collection[str]) -> dict[str, list[Part]]:
    query = select(hold_parts).where(hold_parts.c.hold_id.in_(request_ids)).order_by(hold_parts.c.place)
    parts: dict[str, list[Part]] = {request_id: [] for request_id in request_ids}
    for row in await connection.execute(query):
        parts[row.hold_id].append(Part(row.bucket_id, row.amount))
    return parts


async def _add_parts(connection: AsyncConnection, request_id: str, added: list[Part]) -> None:
    """Hold `added` in their buckets, and remember them with the hold, after what it has."""
    await ledger.hold_in_buckets(connection, added)
    known = {part.bucket_id for part in (await _parts(connection, [request_id]))[request_id]}
    for place, part in enumerate(added, len(known)):
        if part.bucket_id in known:
            here = and_(hold_parts.c.hold_id == request_id, hold_parts.c.bucket_id == part.bucket_id)
            await connection.execute(update(hold_parts).where(here).values(amount=hold_parts.c.amount + part.amount))
        else:
            row = {"hold_id": request_id, "bucket_id": part.bucket_id, "place": place, "amount": part.amount}
            await connection.execute(insert(hold_parts).values(row))


def _refusal(order: Order, price: Price, covered: int, available: int) -> InsufficientBalance:
    prompt = price.ceiling(order.prompt_tokens, 0)
    fits = (available - prompt) // price.output if price.output else 0
    hint = f"; max_tokens of {fits} would fit" if fits > 0 else ""
    return InsufficientBalance(
        f"Insufficient Balance: {order.prompt_tokens} prompt tokens and the first {covered} of the answer need "
        f"{format_money(price.ceiling(order.prompt_tokens, covered))}, and {format_money(available)} is free{hint}"
    )
