"""`leadline admin`, what users ask operators for: statements, usage, leaked keys, money taken back, being forgotten."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from leadline.cli.books import on_books, the_user
from leadline.cli.options import STORE, StoreOptions
from leadline.errors import InvalidRequest

if TYPE_CHECKING:
    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

    from leadline.server.store import Store


def keys(email: str, /, *, store: StoreOptions = STORE) -> None:
    """List a user's keys: number, name, ends, when it was last used, what it spent.

    Args:
        email: The user's address.
    """
    from leadline.server.keys import key_card, list_keys

    async def work(connection: AsyncConnection, _: Store) -> list[dict[str, Any]]:
        row = await the_user(connection, email)
        return [key_card(key) for key in await list_keys(connection, row.id)]

    for card in on_books(store, work):
        used = "never" if card["last_used"] is None else _moment(card["last_used"])
        print(card["id"], card["name"], card["key"], used, card["spent"], sep="\t")


def revoke(key: str, /, *, store: StoreOptions = STORE) -> None:
    """Revoke a key, whoever has it; answers that run with it end too.

    Args:
        key: Its number in `leadline admin keys`, or the key itself, as it was found where it should not be.
    """
    from leadline.server import accounts
    from leadline.server.keys import revoke_any_key

    async def work(connection: AsyncConnection, opened: Store) -> None:
        row = await revoke_any_key(connection, opened.secrets, key, opened.now())
        await accounts.note(connection, "key revoked", f"user:{row.user_id}", now=opened.now(), key=row.id)

    on_books(store, work)


def ledger(email: str, /, *, limit: int = 50, store: StoreOptions = STORE) -> None:
    """Print a user's statement, the newest first: when, what, the answer's id or who it came from, how much.

    Args:
        email: The user's address.
        limit: How many lines.
    """
    from leadline.server.money import format_money
    from leadline.server.wallet import list_entries

    async def work(connection: AsyncConnection, _: Store) -> list[Row[Any]]:
        row = await the_user(connection, email)
        return await list_entries(connection, row.id, limit=max(1, limit))

    for entry in on_books(store, work):
        print(_moment(entry.created), entry.kind, entry.ref, format_money(entry.amount), sep="\t")


def usage(
    *,
    by: str = "user",
    user: str | None = None,
    since: str = "0000-01-01",
    until: str = "9999-12-31",
    store: StoreOptions = STORE,
) -> None:
    """Print what was used and what it cost, as a table with commas.

    Args:
        by: What a row is for: some of day, user, model and key, with commas between.
        user: Only this user's; the email address.
        since: The first day, as 2026-01-31.
        until: The last day.
    """
    from leadline.server.routes import report_days, report_groups
    from leadline.server.wallet import usage_csv, usage_report

    groups, (first, last) = report_groups(by, ("day", "user", "model", "key")), report_days(since, until)

    async def work(connection: AsyncConnection, _: Store) -> str:
        user_id = None if user is None else int((await the_user(connection, user)).id)
        return usage_csv(await usage_report(connection, groups, user_id=user_id, since=first, until=last), groups)

    print(on_books(store, work), end="")


def correct(email: str, amount: str, /, *, store: StoreOptions = STORE) -> None:
    """Take money back from a user, as far as no running request holds it; the ledger keeps both entries.

    Args:
        email: The user's address.
        amount: As 12.50, with up to nine decimals.
    """
    from leadline.server import accounts, ledger
    from leadline.server.money import parse_money

    money = parse_money(amount)
    if money == 0:
        raise InvalidRequest("the amount must be above 0")

    async def work(connection: AsyncConnection, opened: Store) -> None:
        row, now = await the_user(connection, email), opened.now()
        await ledger.debit(connection, row.id, money, ref="command line", now=now)
        await accounts.note(connection, "correction", f"user:{row.id}", now=now, amount=amount)

    on_books(store, work)


def delete(email: str, /, *, yes: bool = False, store: StoreOptions = STORE) -> None:
    """Delete a user's account: name, address, keys and chats go, money is lost, bills stay under a number.

    Args:
        email: The user's address.
        yes: It is meant; nothing brings the account back but a backup.
    """
    from leadline.server import accounts
    from leadline.server.erase import erase_user

    if not yes:
        raise InvalidRequest(f"this cannot be undone; to delete the account of {email}, say --yes")

    async def work(connection: AsyncConnection, opened: Store) -> None:
        row, now = await the_user(connection, email), opened.now()
        await erase_user(connection, row.id, now)
        await accounts.note(connection, "user deletion", f"user:{row.id}", now=now)

    on_books(store, work)


def _moment(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


COMMANDS = (keys, revoke, ledger, usage, correct, delete)
