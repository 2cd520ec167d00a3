"""The tables: migrations end where the code is, the ledger only grows, a database of another version is told."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import delete, update
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

from leadline.errors import BooksUnavailable, ConfigError
from leadline.server import chats
from leadline.server.billing import Billing
from leadline.server.db import Database, buckets, facts, file_url, ledger, metadata, users
from leadline.server.ledger import balance, faults
from leadline.server.migrations import upgrade
from tests.server.platform.books import Books, empty_database, with_books


def _ours(name: str | None, kind: str, _: object) -> bool:
    """All but the full-text index, which is SQLite's own."""
    return kind != "table" or not (name or "").startswith("search")


@with_books
async def test_migrations_make_the_tables_of_the_code(books: Books) -> None:
    async with books.database.read() as connection:
        differences = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync, opts={"include_name": _ours}), metadata)
        )
    assert differences == []


@with_books
async def test_the_ledger_cannot_be_rewritten(books: Books) -> None:
    await books.credit(await books.user(), 1000)
    for statement in (update(ledger).values(amount=5), delete(ledger)):
        with pytest.raises(IntegrityError, match="append-only"):
            async with books.database.write() as connection:
                await connection.execute(statement)
    assert await books.faults() == []


@with_books
async def test_the_database_itself_refuses_a_negative_balance(books: Books) -> None:
    await books.credit(await books.user(), 1000)
    for values in ({"balance": -1}, {"held": 1001}, {"held": -1}):
        with pytest.raises(IntegrityError):
            async with books.database.write() as connection:
                await connection.execute(update(buckets).values(values))


@with_books
async def test_a_failed_transaction_leaves_nothing(books: Books) -> None:
    await books.user()

    async def change() -> None:
        async with books.database.write() as connection:
            await connection.execute(update(users).values(name="changed"))
            await connection.execute(update(users).values(role=None))

    with pytest.raises(IntegrityError):
        await change()
    async with books.database.read() as connection:
        assert (await connection.execute(users.select())).one().name == ""


def test_opening_again_changes_nothing_and_a_newer_database_is_told(tmp_path: Path) -> None:
    path = empty_database(tmp_path)

    async def reopen() -> None:
        await (await Database.open(file_url(path))).close()

    asyncio.run(reopen())
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(ConfigError, match="another version of leadline"):
        asyncio.run(reopen())


def test_an_old_installation_keeps_its_money_and_gets_its_chats(tmp_path: Path) -> None:
    """A database of the first migration, with what a server leaves that was killed: a user, money, an open hold."""
    path = tmp_path / "leadline.db"
    asyncio.run(_first_release(path))
    with contextlib.closing(sqlite3.connect(path)) as old, old:
        old.executescript(
            """
            INSERT INTO users (id, email, name, password, role, state, created)
                VALUES (1, 'ada@example.org', 'Ada', '', 'user', 'active', 1);
            INSERT INTO prices (id, model, version, hit, miss, output, created) VALUES (1, 'fake', 1, 14, 140, 280, 1);
            INSERT INTO buckets (id, user_id, kind, balance, held, created) VALUES (1, 1, 'topped_up', 1000, 300, 1);
            INSERT INTO ledger (txn, kind, account, bucket_id, amount, ref, created)
                VALUES ('a', 'grant', 'user:1', 1, 1000, 'x', 1), ('a', 'grant', 'house:payments', NULL, -1000, 'x', 1);
            INSERT INTO holds
                (id, user_id, price_id, amount, prompt_tokens, cached_tokens, completion_tokens, created, lease)
                VALUES ('r', 1, 1, 300, 1, 0, 0, 1, 1);
            INSERT INTO hold_parts (hold_id, bucket_id, place, amount) VALUES ('r', 1, 0, 300);
            """
        )

    async def now() -> None:
        database = await Database.open(file_url(path))
        assert await Billing(database).sweep() == 1
        async with database.write() as connection:
            assert await faults(connection) == []
            assert (await balance(connection, 1, 1)).available == 860
            chat = await chats.create(connection, 1, 1, title="", mode="chat")
            await chats.add_message(connection, chat, 1, 1, role="user", content="Four fathoms", parent=None)
            assert (await connection.execute(users.select())).one().terms == 0
        await database.close()

    asyncio.run(now())


async def _first_release(path: Path) -> None:
    engine = create_async_engine(file_url(path))
    async with engine.begin() as connection:
        await connection.run_sync(upgrade, "0001")
    await engine.dispose()


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "leadline.db"
    path.write_bytes(b"no database at all" * 1000)
    with pytest.raises(ConfigError, match=r"leadline\.db: .*file is not a database"):
        asyncio.run(Database.open(file_url(path)))


@pytest.mark.parametrize("url", ["nonsense", "oracle+nothing://x", "postgresql+psycopg://x/y"])
def test_a_url_that_cannot_be_used_is_told(url: str) -> None:
    with pytest.raises(ConfigError, match="database URL"):
        asyncio.run(Database.open(url))


def test_a_full_disk_is_told_and_passes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(_fill(empty_database(tmp_path)))
    assert caplog.text.count("the database cannot be used: database or disk is full") == 1


async def _fill(path: Path) -> None:
    database = await Database.open(file_url(path))

    async def write(most_pages: int) -> None:
        async with database.write() as connection:
            await connection.exec_driver_sql(f"PRAGMA max_page_count = {most_pages}")
            rows = [{"name": f"{most_pages}-{number}", "value": "v" * 200} for number in range(2000)]
            await connection.execute(facts.insert(), rows)

    for _ in range(3):
        with pytest.raises(BooksUnavailable, match="full") as caught:
            await write(1)
    assert (caught.value.status, caught.value.code) == (503, "books_unavailable")
    await write(1 << 30)
    await database.close()


@with_books
async def test_a_wrong_statement_is_no_full_disk(books: Books) -> None:
    with pytest.raises(OperationalError, match="no such table"):
        async with books.database.read() as connection:
            await connection.exec_driver_sql("SELECT * FROM nowhere")


@with_books
async def test_transactions_that_are_cancelled_leave_all_or_nothing(books: Books) -> None:
    async def write(number: int) -> None:
        async with books.database.write() as connection:
            for half in "ab":
                await connection.execute(facts.insert().values(name=f"{number}{half}", value=""))

    chance = random.Random(1)
    tasks = []
    for number in range(60):
        tasks.append(asyncio.create_task(write(number)))
        await asyncio.sleep(chance.uniform(0, 0.002))
        if chance.random() < 0.5:
            tasks[-1].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} == {type(None), asyncio.CancelledError}
    async with books.database.read() as connection:
        names = {row.name for row in await connection.execute(facts.select())}
    assert {f"{number}{half}" for number, result in enumerate(results) if result is None for half in "ab"} <= names
    assert {name[:-1] + "a" for name in names} | {name[:-1] + "b" for name in names} == names
