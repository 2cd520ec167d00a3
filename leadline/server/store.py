"""What an installation keeps: a folder with its database and its secrets. The server opens it, and `leadline admin`."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Literal

from sqlalchemy import insert, select

from leadline.errors import ConfigError, ModelNotFound
from leadline.server.billing import current_price, set_price
from leadline.server.db import Database, facts, file_url
from leadline.server.money import Price
from leadline.server.secret_file import Secrets, load_secrets

Currency = Literal["USD", "CNY"]

# DeepSeek-V2's own of 2024 a million tokens: 0.014 for what the cache has, 0.14 for the rest, 0.28 for the answer.
DEFAULT_PRICE = Price(0, "", 0, hit=14, miss=140, output=280)


@dataclasses.dataclass(frozen=True, slots=True)
class Store:
    database: Database
    secrets: Secrets
    clock: Callable[[], float] = time.time

    def now(self) -> int:
        return int(self.clock())

    async def set_currency(self, currency: Currency) -> None:
        """The first start decides: what is in the books cannot change its unit."""
        async with self.database.write() as connection:
            known = await connection.scalar(select(facts.c.value).where(facts.c.name == "currency"))
            if known is None:
                await connection.execute(insert(facts).values(name="currency", value=currency))
            elif known != currency:
                raise ConfigError(f"the books are kept in {known}, not in {currency}", param="currency")

    async def ensure_price(self, model: str, price: Price = DEFAULT_PRICE) -> Price:
        """A model that has no price yet gets this one."""
        async with self.database.write() as connection:
            try:
                return await current_price(connection, model)
            except ModelNotFound:
                return await set_price(
                    connection, model, hit=price.hit, miss=price.miss, output=price.output, now=self.now()
                )


@contextlib.asynccontextmanager
async def open_store(
    folder: Path, url: str | None = None, *, durable: bool = True, clock: Callable[[], float] = time.time
) -> AsyncGenerator[Store, None]:
    """The installation in `folder`, made if it is not there; its database elsewhere if `url` says so."""
    secrets, path = _prepare(folder)
    if url is None:
        _keep_private(path)
    database = await Database.open(url or file_url(path), durable=durable)
    try:
        yield Store(database, secrets, clock)
    finally:
        await database.close()


def _keep_private(path: Path) -> None:
    """What was said in chats is in it. The folder that we make is shut; one that was there may be open to others.
    SQLite gives the files beside it the same mode."""
    try:
        path.touch(mode=0o600)
        path.chmod(0o600)
    except PermissionError:  # another user's: SQLite says what it makes of that
        pass
    except OSError as error:
        raise ConfigError(f"cannot use {path}: {error.strerror or error}") from None


def _prepare(folder: Path) -> tuple[Secrets, Path]:
    """The secrets, and where the database is."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot use the folder {folder}: {error.strerror or error}") from None
    return load_secrets(folder / "secrets.json"), folder.resolve() / "leadline.db"
