"""`leadline admin`: users, credit, prices, vouchers and invitations, on the database itself.

It works beside a running server and without one. What it does is in the audit log with no actor: the operator at the
command line. Secrets that it makes are printed once and kept nowhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import App

from leadline.cli.books import on_books, the_user
from leadline.cli.options import STORE, StoreOptions
from leadline.cli.support import COMMANDS
from leadline.errors import InvalidRequest

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from leadline.server.store import Store

app = App(name="admin", help="Users, credit, prices, vouchers and invitations, on the database itself.")
for _each in COMMANDS:
    app.command(_each)


@app.command
def users(query: str = "", /, *, store: StoreOptions = STORE) -> None:
    """List the users and their balances.

    Args:
        query: A part of the email address.
    """
    from sqlalchemy import select

    from leadline.server.db import users as table
    from leadline.server.ledger import balances
    from leadline.server.money import format_money

    async def work(connection: AsyncConnection, opened: Store) -> list[tuple[str, ...]]:
        found = await connection.execute(select(table).where(table.c.email.contains(query, autoescape=True)))
        rows = found.all()
        has = await balances(connection, [row.id for row in rows], opened.now())
        return [(str(row.id), row.email, row.role, row.state, format_money(has[row.id].total)) for row in rows]

    for columns in on_books(store, work):
        print(*columns, sep="\t")


@app.command
def user(email: str, /, *, role: Literal["user", "admin"] = "user", store: StoreOptions = STORE) -> None:
    """Make a user, and print the token with which a first password is set, within a day.

    Args:
        email: The new user's address.
        role: What the user may do; an admin is an operator of this server.
    """
    from leadline.server import accounts

    async def work(connection: AsyncConnection, opened: Store) -> str:
        now = opened.now()
        row = await accounts.create_user(connection, email, "", now=now, role=role)
        await accounts.note(connection, "user", f"user:{row.id}", now=now, role=role)
        return await accounts.make_link(connection, opened.secrets, "reset", now=now, user_id=row.id)

    print(on_books(store, work))


@app.command
def change(
    email: str,
    /,
    *,
    role: Literal["user", "admin"] | None = None,
    state: Literal["active", "disabled"] | None = None,
    store: StoreOptions = STORE,
) -> None:
    """Change what a user may do; one who is disabled is out at once.

    Args:
        email: The user's address.
        role: user or admin.
        state: active or disabled.
    """
    from leadline.server import accounts

    given = (("role", role), ("state", state))
    values: dict[str, Any] = {name: value for name, value in given if value is not None}
    if not values:
        raise InvalidRequest("say --role or --state")

    async def work(connection: AsyncConnection, opened: Store) -> None:
        row = await the_user(connection, email)
        await accounts.change_user(connection, row.id, **values)
        await accounts.note(connection, "user change", f"user:{row.id}", now=opened.now(), **values)

    on_books(store, work)


@app.command
def reset(email: str, /, *, store: StoreOptions = STORE) -> None:
    """Print the token with which a user sets a new password, within a day.

    Args:
        email: The user's address.
    """
    from leadline.server import accounts

    async def work(connection: AsyncConnection, opened: Store) -> str:
        row = await the_user(connection, email)
        await accounts.note(connection, "reset link", f"user:{row.id}", now=opened.now())
        return await accounts.make_link(connection, opened.secrets, "reset", now=opened.now(), user_id=row.id)

    print(on_books(store, work))


@app.command
def key(email: str, /, *, name: str = "", control_tokens: bool = False, store: StoreOptions = STORE) -> None:
    """Make an API key for a user and print it.

    Args:
        email: The user's address.
        name: What the key is called in lists.
        control_tokens: Prompts may have control tokens, as those of another leadline have (--engine-url).
    """
    from leadline.server import accounts, keys

    async def work(connection: AsyncConnection, opened: Store) -> str:
        row = await the_user(connection, email)
        spec = keys.KeySpec(name=name[:100], control_tokens=control_tokens)
        made, secret = await keys.create_key(connection, opened.secrets, row.id, spec, opened.now())
        await accounts.note(connection, "key", f"user:{row.id}", now=opened.now(), key=made.id)
        return secret

    print(on_books(store, work))


@app.command
def grant(
    email: str, amount: str, /, *, days: int | None = None, topped_up: bool = False, store: StoreOptions = STORE
) -> None:
    """Give a user money, in the currency of the books.

    Args:
        email: The user's address.
        amount: As 12.50, with up to nine decimals.
        days: After which it expires; never by default.
        topped_up: It was paid for: it is spent after what was granted.
    """
    from leadline.server import accounts, wallet
    from leadline.server.money import parse_money

    money = parse_money(amount)
    if money == 0 or (days is not None and days < 1):
        raise InvalidRequest("the amount and the days must be above 0")

    async def work(connection: AsyncConnection, opened: Store) -> None:
        row = await the_user(connection, email)
        kind: Literal["granted", "topped_up"] = "topped_up" if topped_up else "granted"
        now = opened.now()
        await wallet.grant(connection, row.id, money, ref="command line", now=now, kind=kind, days=days)
        await accounts.note(connection, "grant", f"user:{row.id}", now=now, amount=amount, kind=kind)

    on_books(store, work)


@app.command
def price(
    model: str | None = None,
    /,
    *,
    hit: str | None = None,
    miss: str | None = None,
    output: str | None = None,
    store: StoreOptions = STORE,
) -> None:
    """List the prices of a million tokens, or give a model a new one; requests that run keep theirs.

    Args:
        model: The model's name in the API.
        hit: For prompt tokens that the prefix cache has.
        miss: For the other prompt tokens.
        output: For tokens of the answer.
    """
    from leadline.server import accounts
    from leadline.server.billing import set_price
    from leadline.server.db import prices
    from leadline.server.money import format_price, parse_price

    given = {"hit": hit, "miss": miss, "output": output}
    if model is not None and None in given.values():
        raise InvalidRequest("a new price needs --hit, --miss and --output")
    amounts: dict[str, Any] = {name: parse_price(text, name) for name, text in given.items() if text is not None}

    async def work(connection: AsyncConnection, opened: Store) -> list[tuple[Any, ...]]:
        if model is not None:
            made = await set_price(connection, model, **amounts, now=opened.now())
            await accounts.note(connection, "price", model, now=opened.now(), version=made.version, **amounts)
        rows = await connection.execute(prices.select().order_by(prices.c.model, prices.c.version))
        return [(row.model, row.version, *map(format_price, (row.hit, row.miss, row.output))) for row in rows]

    for columns in on_books(store, work):
        print(*columns, sep="\t")


@app.command
def voucher(
    amount: str,
    /,
    *,
    count: int = 1,
    days: int | None = None,
    valid_days: int | None = None,
    store: StoreOptions = STORE,
) -> None:
    """Make voucher codes and print them.

    Args:
        amount: What each is worth, as 12.50.
        count: How many.
        days: After which the money expires, counted from its redemption; never by default.
        valid_days: After which the voucher itself expires; never by default.
    """
    from leadline.server import accounts, wallet
    from leadline.server.money import parse_money

    money = parse_money(amount)

    async def work(connection: AsyncConnection, opened: Store) -> list[str]:
        now = opened.now()
        codes = await wallet.make_vouchers(
            connection, opened.secrets, money, now=now, count=count, days=days, valid_days=valid_days
        )
        await accounts.note(connection, "vouchers", f"{count} vouchers", now=now, amount=amount)
        return codes

    print(*on_books(store, work), sep="\n")


@app.command
def invite(
    *,
    role: Literal["user", "admin"] = "user",
    grant: str = "0",
    grant_days: int | None = None,
    uses: int = 1,
    store: StoreOptions = STORE,
) -> None:
    """Print the token of an invitation, good for a week.

    Args:
        role: What who accepts it may do.
        grant: The money to start with, as 5.00.
        grant_days: After which that money expires; never by default.
        uses: How many accounts it is for.
    """
    from leadline.server import accounts
    from leadline.server.money import parse_money

    money = parse_money(grant, "grant")
    if uses < 1:
        raise InvalidRequest("--uses must be above 0")

    async def work(connection: AsyncConnection, opened: Store) -> str:
        now = opened.now()
        await accounts.note(connection, "invite", "link", now=now, role=role, grant=grant, uses=uses)
        return await accounts.make_link(
            connection,
            opened.secrets,
            "invite",
            now=now,
            role=role,
            grant=money,
            grant_days=grant_days,
            uses=uses,
        )

    print(on_books(store, work))


@app.command
def check(*, store: StoreOptions = STORE) -> int:
    """Check that the books add up: every transaction, balance, hold and bill."""
    from leadline.server.ledger import faults

    async def work(connection: AsyncConnection, _: Store) -> list[str]:
        return await faults(connection)

    found = on_books(store, work)
    print(*(found or ["the books add up"]), sep="\n")
    return 1 if found else 0


@app.command
def backup(target: Path, /, *, store: StoreOptions = STORE) -> None:
    """Write the database and the secrets into one file, also while the server runs.

    Args:
        target: The file to make; whoever has it can sign in as anyone.
    """
    from leadline.server.backup import backup as write

    _only_a_file(store)
    print(f"{target}: {write(store.folder, target)} bytes")


@app.command
def restore(source: Path, /, *, store: StoreOptions = STORE) -> None:
    """Make an installation from a backup, in a folder that has none.

    Args:
        source: The backup's file.
    """
    from leadline.server.backup import restore as read

    _only_a_file(store)
    read(source, store.folder)


@app.command
def link(email: str, /, *, store: StoreOptions = STORE) -> None:
    """Print the token of a sign-in link, good once and within the hour; it goes behind /signin# of the site's address.

    Args:
        email: The user's address.
    """
    from leadline.server import accounts

    async def work(connection: AsyncConnection, opened: Store) -> str:
        row = await the_user(connection, email)
        await accounts.note(connection, "sign-in link", f"user:{row.id}", now=opened.now())
        return await accounts.make_link(connection, opened.secrets, "signin", now=opened.now(), user_id=row.id)

    print(on_books(store, work))


@app.command
def terms(file: Path | None = None, /, *, store: StoreOptions = STORE) -> None:
    """Print the terms of use, or publish new ones, which everyone is asked to accept.

    Args:
        file: Markdown.
    """
    from leadline.server import accounts, legal

    async def work(connection: AsyncConnection, opened: Store) -> str:
        await legal.ensure_terms(connection, opened.now())
        if file is None:
            return str((await legal.current_terms(connection)).text).rstrip()
        version = await legal.publish(connection, _text(file), opened.now())
        await accounts.note(connection, "terms", f"version {version}", now=opened.now())
        return f"version {version}"

    print(on_books(store, work))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"cannot read {file}: {error}") from None


def _only_a_file(store: StoreOptions) -> None:
    if store.database is not None:
        raise InvalidRequest("a database elsewhere has backups of its own; this is for the file in the data folder")
