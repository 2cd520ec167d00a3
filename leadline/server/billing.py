"""What a request costs: held before it runs, settled exactly once however it ends.

A hold covers the prompt and the next `HOLD_TOKENS` tokens of output, at the prices of the moment the request came, and
is extended while the answer streams. Settling deletes the hold, and only who deletes it writes the bill: a second
settlement, or a sweep that comes late, finds nothing. A hold whose process died keeps its last persisted counts; when
its lease is over, `sweep` bills those. A request never costs more than was held for it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from sqlalchemy import Row, and_, bindparam, case, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from leadline.engine.types import Usage
from leadline.errors import BudgetExceeded, InsufficientBalance, ModelNotFound
from leadline.server import ledger
from leadline.server.access import Outcome
from leadline.server.db import Database, api_keys, hold_parts, holds, prices, usage
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
class Bill:
    """A settled request."""

    request_id: str
    delivered: Usage
    cost: int
    outcome: Outcome


class Witness(Protocol):
    """Who keeps what was paid for: it writes in the transaction that writes the money, and so the two always agree."""

    def texts(self, request_ids: Collection[str]) -> Mapping[str, str]:
        """What those of the requests that it keeps have delivered by now."""
        ...

    async def persisted(self, connection: AsyncConnection, texts: Mapping[str, str]) -> None: ...

    async def settled(self, connection: AsyncConnection, bill: Bill) -> None: ...


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
        """Cover up to `tokens` more, as many as the balance and the key's cap leave."""
        async with self.database.write() as connection:
            row = await _open_hold(connection, hold.order.request_id)
            if row is None:
                return hold  # swept: its process was taken for dead
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
        async with self.database.write() as connection:
            return await self._settle(connection, request_id, delivered, outcome)

    async def persist(self, counts: Mapping[str, Usage]) -> None:
        """Write down what running requests have delivered, and renew their leases. `counts` are of this moment."""
        if not counts:
            return
        texts = self.witness.texts(counts) if self.witness else {}
        names = ("prompt_tokens", "cached_tokens", "completion_tokens")
        lease = self._lease()
        rows = [
            {"hold": request_id, "lease": lease, **{name: getattr(counted, name) for name in names}}
            for request_id, counted in counts.items()
        ]
        async with self.database.write() as connection:
            # `bindparam` by hand: a column of the WHERE clause may not share its parameter's name.
            await connection.execute(update(holds).where(holds.c.id == bindparam("hold")), rows)
            if self.witness and texts:
                await self.witness.persisted(connection, texts)

    async def sweep(self, alive: Collection[str] = ()) -> int:
        """Settle the holds of processes that are gone at what they had written down; the number of holds."""
        swept = 0
        async with self.database.write() as connection:
            rows = await connection.execute(select(holds).where(holds.c.lease < self.now()).with_for_update())
            for row in rows.all():
                if row.id not in alive:
                    counted = Usage(row.prompt_tokens, row.completion_tokens, row.cached_tokens)
                    swept += await self._settle(connection, row.id, counted, "swept") is not None
        return swept

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

    async def _settle(
        self, connection: AsyncConnection, request_id: str, delivered: Usage, outcome: Outcome
    ) -> int | None:
        row = await _open_hold(connection, request_id)
        if row is None:
            return None
        parts = await _parts(connection, request_id)
        await connection.execute(delete(hold_parts).where(hold_parts.c.hold_id == request_id))
        await connection.execute(delete(holds).where(holds.c.id == request_id))
        price = await _price(connection, row.price_id)
        cost: int = min(price.cost(delivered), row.amount)
        paid = ledger.divide(parts, cost)
        await ledger.release(connection, parts, paid)
        entries = [Entry(ledger.account(row.user_id), -part.amount, part.bucket_id) for part in paid]
        await ledger.post(connection, "usage", request_id, [*entries, Entry(ledger.REVENUE, cost)], self.now())
        await self._settle_on_key(connection, row, cost)
        await connection.execute(insert(usage).values(self._usage_row(row, price, delivered, cost, outcome)))
        if self.witness:
            await self.witness.settled(connection, Bill(request_id, delivered, cost, outcome))
        return cost

    def _usage_row(self, row: Row[Any], price: Price, delivered: Usage, cost: int, outcome: Outcome) -> dict[str, Any]:
        now = self.now()
        return {
            "request_id": row.id,
            "user_id": row.user_id,
            "key_id": row.key_id,
            "model": price.model,
            "price_id": price.id,
            "cached_tokens": delivered.cached_tokens,
            "miss_tokens": delivered.prompt_tokens - delivered.cached_tokens,
            "completion_tokens": delivered.completion_tokens,
            "amount": cost,
            "outcome": outcome,
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

    async def _settle_on_key(self, connection: AsyncConnection, hold: Row[Any], cost: int) -> None:
        if hold.key_id is None:
            return
        values = {
            "held": api_keys.c.held - hold.amount,
            "spent": api_keys.c.spent + cost,
            "month": self._month(),
            "month_spent": self._month_spent() + cost,
        }
        await connection.execute(update(api_keys).where(api_keys.c.id == hold.key_id).values(values))


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


async def _price(connection: AsyncConnection, price_id: int) -> Price:
    return _as_price((await connection.execute(select(prices).where(prices.c.id == price_id))).one())


def _as_price(row: Row[Any]) -> Price:
    return Price(row.id, row.model, row.version, row.hit, row.miss, row.output)


async def _open_hold(connection: AsyncConnection, request_id: str) -> Row[Any] | None:
    return (await connection.execute(select(holds).where(holds.c.id == request_id).with_for_update())).one_or_none()


async def _parts(connection: AsyncConnection, request_id: str) -> list[Part]:
    query = select(hold_parts).where(hold_parts.c.hold_id == request_id).order_by(hold_parts.c.place)
    return [Part(row.bucket_id, row.amount) for row in await connection.execute(query)]


async def _add_parts(connection: AsyncConnection, request_id: str, added: list[Part]) -> None:
    """Hold `added` in their buckets, and remember them with the hold, after what it has."""
    await ledger.hold_in_buckets(connection, added)
    known = {part.bucket_id for part in await _parts(connection, request_id)}
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
