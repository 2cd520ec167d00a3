"""Closing an account, whoever asks for it: the user, an operator on the site, an operator at the command line."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncConnection

from leadline.server import accounts, chats


async def erase_user(connection: AsyncConnection, user_id: int, now: int) -> None:
    """All that says who it was and what was said is gone; bills and ledger stay, under a number."""
    await accounts.delete_user(connection, user_id, now)
    await chats.purge_user(connection, user_id)
