"""A live platform for tests: a fake engine, real sockets, books on disk; and shortcuts to what an operator would do."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from argon2 import PasswordHasher
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from leadline.server import accounts, keys, ledger, wallet
from leadline.server.auth import Passwords
from leadline.server.db import holds, metadata, usage
from leadline.server.money import Price
from leadline.server.platform import Platform, PlatformSettings
from leadline.server.settings import ServerSettings
from leadline.server.store import Store, open_store
from leadline.tokenizer import Tokenizer
from tests.fixtures_server import LiveServer, live_server
from tests.server.platform.books import HIT, MISS, OUTPUT, empty_database

T = TypeVar("T")

PASSWORD = "four fathoms and a half"
HASHER = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


class Site:
    def __init__(self, live: LiveServer, platform: Platform) -> None:
        self.live = live
        self.platform = platform
        self.url = live.url
        self._numbers = itertools.count(1)
        self._clients = contextlib.ExitStack()
        self._loop = asyncio.new_event_loop()
        self._opened = contextlib.AsyncExitStack()
        beside = open_store(platform.settings.folder, durable=False)
        self._store = self._loop.run_until_complete(self._opened.enter_async_context(beside))

    def work(self, action: Callable[[AsyncConnection, Store], Awaitable[T]]) -> T:
        """Something on the server's books, from beside the server, as `leadline admin` does it."""

        async def run() -> T:
            async with self._store.database.write() as connection:
                return await action(connection, self._store)

        return self._loop.run_until_complete(run())

    def user(self, *, balance: int = 0, role: accounts.Role = "user", email: str | None = None) -> int:
        address = email or f"user{next(self._numbers)}@example.org"

        async def make(connection: AsyncConnection, store: Store) -> int:
            password = HASHER.hash(PASSWORD)
            user = await accounts.create_user(connection, address, password, now=store.now(), role=role)
            await accounts.change_user(connection, user.id, terms=1)
            if balance:
                await wallet.grant(connection, user.id, balance, ref="test", now=store.now(), kind="topped_up")
            return int(user.id)

        return self.work(make)

    def email(self, user_id: int) -> str:
        async def read(connection: AsyncConnection, _: Store) -> str:
            return str((await accounts.get_user(connection, user_id)).email)

        return self.work(read)

    def key(self, user_id: int, **spec: Any) -> str:
        async def make(connection: AsyncConnection, store: Store) -> str:
            _, secret = await keys.create_key(connection, store.secrets, user_id, keys.KeySpec(**spec), store.now())
            return secret

        return self.work(make)

    def customer(self, balance: int = 10**9, **spec: Any) -> tuple[int, httpx2.Client]:
        """A user with money, and a client with their key."""
        user_id = self.user(balance=balance)
        return user_id, self.client(self.key(user_id, **spec))

    def client(self, secret: str | None = None) -> httpx2.Client:
        headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
        return self._clients.enter_context(httpx2.Client(base_url=self.url, timeout=20, headers=headers))

    def close(self) -> None:
        self._clients.close()
        self._loop.run_until_complete(self._opened.aclose())
        self._loop.close()

    def browser(self, email: str, password: str = PASSWORD) -> httpx2.Client:
        client = self.client()
        client.post("/api/login", json={"email": email, "password": password}).raise_for_status()
        return client

    def operator(self) -> httpx2.Client:
        email = f"operator{next(self._numbers)}@example.org"
        self.user(role="admin", email=email)
        return self.browser(email)

    def balance(self, user_id: int) -> ledger.Balance:
        async def read(connection: AsyncConnection, store: Store) -> ledger.Balance:
            return await ledger.balance(connection, user_id, store.now())

        return self.work(read)

    def bills(self, user_id: int) -> list[Any]:
        async def read(connection: AsyncConnection, store: Store) -> list[Any]:
            query = select(usage).where(usage.c.user_id == user_id).order_by(usage.c.created)
            return list((await connection.execute(query)).all())

        return self.work(read)

    def open_holds(self) -> int:
        async def read(connection: AsyncConnection, store: Store) -> int:
            return int(await connection.scalar(select(func.count()).select_from(holds)) or 0)

        return self.work(read)

    def count(self, table: str, user_id: int) -> int:
        """Rows of this user's."""

        async def read(connection: AsyncConnection, _: Store) -> int:
            columns = metadata.tables[table].c
            return int(await connection.scalar(select(func.count()).where(columns.user_id == user_id)) or 0)

        return self.work(read)

    def faults(self) -> list[str]:
        async def read(connection: AsyncConnection, store: Store) -> list[str]:
            return await ledger.faults(connection)

        return self.work(read)


@contextlib.contextmanager
def live_site(
    tokenizer: Tokenizer,
    folder: Path,
    *,
    server: ServerSettings | None = None,
    options: Any = None,
    fresh: bool = True,
    grace: int = 1,
    **engine: Any,
) -> Generator[Site, None, None]:
    """A platform with `options` for its settings, over a fake engine made with `engine`."""
    if fresh:
        empty_database(folder)
    price = Price(0, "", 0, HIT, MISS, OUTPUT)
    limits = {"requests_per_minute": 100_000, "concurrency": 1000, "entries_per_minute": 100_000}
    given = {"price": price, "durable": False, **limits, **(options or {})}
    settings = PlatformSettings(folder, **given)
    platform = Platform(settings, passwords=Passwords(HASHER))
    with live_server(tokenizer, server, platform=platform, grace=grace, **engine) as live:
        site = Site(live, platform)
        with contextlib.closing(site):
            yield site


def chat(client: httpx2.Client, content: str = "Hello", **fields: Any) -> httpx2.Response:
    body = {"model": "fake", "messages": [{"role": "user", "content": content}], **fields}
    return client.post("/v1/chat/completions", json=body)
