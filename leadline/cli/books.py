"""What the commands of `leadline admin` share: work on the books in one transaction, and finding a user in them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from leadline.cli.options import StoreOptions
from leadline.errors import NotFound

if TYPE_CHECKING:
    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

    from leadline.server.store import Store

T = TypeVar("T")


def on_books(options: StoreOptions, work: Callable[[AsyncConnection, Store], Awaitable[T]]) -> T:
    """`work` in one transaction."""
    from leadline.server.store import open_store

    async def run() -> T:
        async with open_store(options.folder, options.database) as opened, opened.database.write() as connection:
            return await work(connection, opened)

    return asyncio.run(run())


async def the_user(connection: AsyncConnection, email: str) -> Row[Any]:
    from leadline.server.accounts import find_user

    row = await find_user(connection, email)
    if row is None:
        raise NotFound(f"there is no user {email}")
    return row
