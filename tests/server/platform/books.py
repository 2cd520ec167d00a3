"""A fresh set of books for each test: a migrated SQLite file, a clock that is moved by hand, a user, a price."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import Any

from sqlalchemy import func, insert, select

from leadline.server import ledger
from leadline.server.billing import Billing, Order, set_price
from leadline.server.db import Database, file_url, holds, usage, users

NOW = 1_800_000_000.0
HIT, MISS, OUTPUT = 14, 140, 280
MODEL = "fake"


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@dataclasses.dataclass
class Books:
    database: Database
    billing: Billing
    clock: Clock

    @property
    def now(self) -> int:
        return int(self.clock.now)

    async def user(self, email: str = "ada@example.org") -> int:
        row = {
            "email": email,
            "name": "",
            "password": "",
            "role": "user",
            "state": "active",
            "created": self.now,
        }
        async with self.database.write() as connection:
            return int((await connection.execute(insert(users).values(row).returning(users.c.id))).scalar_one())

    async def credit(self, user_id: int, amount: int, kind: ledger.BucketKind = "topped_up", **more: Any) -> int:
        async with self.database.write() as connection:
            return await ledger.credit(
                connection,
                user_id,
                amount,
                kind=kind,
                source=ledger.GRANTS,
                what="grant",
                ref="test",
                now=self.now,
                **more,
            )

    async def balance(self, user_id: int) -> ledger.Balance:
        async with self.database.read() as connection:
            return await ledger.balance(connection, user_id, self.now)

    async def faults(self) -> list[str]:
        async with self.database.read() as connection:
            return await ledger.faults(connection)

    async def count_holds(self) -> int:
        async with self.database.read() as connection:
            return int(await connection.scalar(select(func.count()).select_from(holds)) or 0)

    async def bills(self) -> dict[str, int]:
        async with self.database.read() as connection:
            return {row.request_id: row.amount for row in await connection.execute(select(usage))}


def order(request_id: str, user_id: int, **more: Any) -> Order:
    fields: dict[str, Any] = {"key_id": None, "model": MODEL, "prompt_tokens": 10, "most": 100, **more}
    return Order(request_id, user_id, **fields)


@functools.cache
def _template() -> Path:
    """A migrated, empty database: copying it is quicker than making one."""
    folder = tempfile.mkdtemp(prefix="books-", dir=Path.home())  # the tests' own home, which goes with them
    path = Path(folder, "empty.db")

    async def make() -> None:
        await (await Database.open(file_url(path))).close()

    asyncio.run(make())
    return path


def empty_database(folder: Path) -> Path:
    return Path(shutil.copy(_template(), folder / "leadline.db"))


@contextlib.asynccontextmanager
async def books(path: Path, *, priced: bool = True) -> AsyncGenerator[Books, None]:
    clock = Clock()
    database = await Database.open(file_url(path), durable=False)
    try:
        if priced:
            async with database.write() as connection:
                await set_price(connection, MODEL, hit=HIT, miss=MISS, output=OUTPUT, now=int(NOW))
        yield Books(database, Billing(database, clock=clock), clock)
    finally:
        await database.close()


def with_books(test: Callable[[Books], Coroutine[Any, Any, None]]) -> Callable[[Path], None]:
    """An async test on fresh books as a plain one."""

    def wrapped(tmp_path: Path) -> None:
        path = empty_database(tmp_path)

        async def run() -> None:
            async with books(path) as fresh:
                await test(fresh)

        asyncio.run(run())

    wrapped.__name__ = test.__name__
    wrapped.__doc__ = test.__doc__
    return wrapped
