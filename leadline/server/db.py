"""The platform's database: its tables, and transactions on them.

SQLite in WAL mode by default, PostgreSQL by URL: nothing below the engine's set-up knows which. A write transaction on
SQLite begins IMMEDIATE, so that what it read is still true when it writes; PostgreSQL's readers use FOR UPDATE, which
SQLite leaves out. Money is BIGINT nano-units, time is whole seconds since 1970. `Database.open` brings an older
database up to date. The ledger and the audit log are append-only, and triggers of the database itself see to it.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    event,
    make_url,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from leadline.errors import BooksUnavailable, ConfigError
from leadline.server.migrations import upgrade
from leadline.server.turn import Turn

BUSY_MILLISECONDS = 10_000  # another process, `leadline admin` say, may be writing
REPEAT_SECONDS = 10.0  # how often the log says that the database cannot be used

_UNAVAILABLE = tuple(
    f"SQLITE_{name}" for name in ("BUSY", "CANTOPEN", "CORRUPT", "FULL", "IOERR", "LOCKED", "NOTADB", "READONLY")
)

log = logging.getLogger("leadline.server.books")

Id = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts INTEGER keys only
Money = BigInteger
Seconds = BigInteger

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _table(name: str, *parts: Column[Any] | CheckConstraint | Index) -> Table:
    return Table(name, metadata, *parts, sqlite_autoincrement="id" in {part.name for part in parts})


def _id() -> Column[Any]:
    return Column("id", Id, primary_key=True, autoincrement=True)


def _needed(name: str, kind: Any, *more: Any, **options: Any) -> Column[Any]:
    return Column(name, kind, *more, nullable=False, **options)


def _user(**options: Any) -> Column[Any]:
    return _needed("user_id", Id, ForeignKey("users.id"), **options)


# A deleted user keeps the row without its email, name and password: the ledger's pseudonym.
users = _table(
    "users",
    _id(),
    Column("email", String(254), unique=True),
    _needed("name", String(100)),
    _needed("password", String(200)),  # argon2id; empty where only links sign in
    _needed("role", String(16)),  # user, admin
    _needed("state", String(16)),  # active, disabled, deleted
    _needed("created", Seconds),
    _needed("terms", Integer, default=0, server_default="0"),  # the version that was accepted
)

# The site's sessions and the long-lived client tokens; a JWT is worth what its row here says.
sessions = _table(
    "sessions",
    Column("id", String(32), primary_key=True),
    _user(index=True),
    _needed("purpose", String(16)),  # web, client
    _needed("name", String(100)),
    _needed("created", Seconds),
    _needed("expires", Seconds),
    _needed("last_used", Seconds),
)

api_keys = _table(
    "api_keys",
    _id(),
    _user(index=True),
    _needed("name", String(100)),
    _needed("digest", String(64), unique=True),
    _needed("shown", String(16)),  # the key's ends, for lists
    _needed("created", Seconds),
    Column("expires", Seconds),
    Column("revoked", Seconds),
    Column("last_used", Seconds),
    Column("models", JSON),  # names; null is all
    Column("requests_per_minute", Integer),
    Column("concurrency", Integer),
    _needed("control_tokens", Boolean),
    Column("spend_cap", Money),
    Column("monthly_cap", Money),
    _needed("spent", Money, default=0),
    _needed("held", Money, default=0),
    _needed("month", String(7), default=""),  # the month that month_spent is of
    _needed("month_spent", Money, default=0),
    CheckConstraint("held >= 0 AND spent >= 0 AND month_spent >= 0", name="money"),
)

# Invitations, password resets and sign-in links: each is a secret that does one thing once, or a few times.
links = _table(
    "links",
    _id(),
    _needed("purpose", String(16)),  # invite, reset, signin
    _needed("digest", String(64), unique=True),
    Column("user_id", Id, ForeignKey("users.id")),
    _needed("role", String(16)),
    _needed("grant_amount", Money),
    Column("grant_days", Integer),
    _needed("uses_left", Integer),
    _needed("created", Seconds),
    _needed("expires", Seconds),
    CheckConstraint("uses_left >= 0 AND grant_amount >= 0", name="counts"),
)

# Money of one kind and one expiry. `balance` is the sum of its ledger entries; `held` of it is spoken for.
buckets = _table(
    "buckets",
    _id(),
    _user(index=True),
    _needed("kind", String(16)),  # granted, topped_up
    Column("expires", Seconds),
    _needed("balance", Money),
    _needed("held", Money, default=0),
    _needed("created", Seconds),
    CheckConstraint("held >= 0 AND balance >= held", name="money"),
)

# The entries of one `txn` sum to zero. A user's entry names its bucket, the house's accounts have none.
ledger = _table(
    "ledger",
    _id(),
    _needed("txn", String(36), index=True),
    _needed("kind", String(16)),  # grant, voucher, usage, expiry, forfeit, correction
    _needed("account", String(32), index=True),
    Column("bucket_id", Id, ForeignKey("buckets.id"), index=True),
    _needed("amount", Money),
    _needed("ref", String(100)),
    _needed("created", Seconds),
    CheckConstraint("amount <> 0", name="amount"),
)

prices = _table(
    "prices",
    _id(),
    _needed("model", String(200)),
    _needed("version", Integer),
    _needed("hit", Money),
    _needed("miss", Money),
    _needed("output", Money),
    _needed("created", Seconds),
    CheckConstraint("hit >= 0 AND miss >= 0 AND output >= 0", name="money"),
    Index("uq_prices_model_version", "model", "version", unique=True),
)

# Requests that run. The counts are what is known to be delivered; `lease` is renewed while their process lives.
holds = _table(
    "holds",
    Column("id", String(64), primary_key=True),
    _user(index=True),
    Column("key_id", Id, ForeignKey("api_keys.id")),
    _needed("price_id", Id, ForeignKey("prices.id")),
    _needed("amount", Money),
    _needed("prompt_tokens", BigInteger),
    _needed("cached_tokens", BigInteger),
    _needed("completion_tokens", BigInteger),
    _needed("created", Seconds),
    _needed("lease", Seconds, index=True),
    CheckConstraint("amount >= 0", name="amount"),
)

hold_parts = _table(
    "hold_parts",
    Column("hold_id", String(64), ForeignKey("holds.id"), primary_key=True),
    Column("bucket_id", Id, ForeignKey("buckets.id"), primary_key=True, autoincrement=False),
    _needed("place", Integer),
    _needed("amount", Money),
    CheckConstraint("amount > 0", name="amount"),
)

usage = _table(
    "usage",
    Column("request_id", String(64), primary_key=True),
    _user(),
    Column("key_id", Id, ForeignKey("api_keys.id")),
    _needed("model", String(200)),
    _needed("price_id", Id, ForeignKey("prices.id")),
    _needed("cached_tokens", BigInteger),
    _needed("miss_tokens", BigInteger),
    _needed("completion_tokens", BigInteger),
    _needed("amount", Money),
    _needed("outcome", String(16)),  # finished, balance, aborted, failed, swept
    _needed("day", String(10)),
    _needed("created", Seconds),
    Index("ix_usage_user_id_day", "user_id", "day"),
)

vouchers = _table(
    "vouchers",
    _id(),
    _needed("digest", String(64), unique=True),
    _needed("shown", String(16)),
    _needed("amount", Money),
    _needed("kind", String(16)),
    Column("days", Integer),  # that the money lasts
    Column("expires", Seconds),  # of the voucher
    Column("used_by", Id, ForeignKey("users.id")),
    Column("used", Seconds),
    _needed("created", Seconds),
    CheckConstraint("amount > 0", name="amount"),
)

idempotency = _table(
    "idempotency",
    Column("user_id", Id, ForeignKey("users.id"), primary_key=True, autoincrement=False),
    Column("key", String(200), primary_key=True),
    _needed("request", String(64)),  # what was asked for, as a digest
    _needed("response", JSON),
    _needed("created", Seconds),
)

audit = _table(
    "audit",
    _id(),
    Column("actor", Id, ForeignKey("users.id")),  # null: the operator at the command line, or the server
    _needed("action", String(64)),
    _needed("subject", String(100)),
    _needed("detail", JSON),
    _needed("address", String(64)),
    _needed("created", Seconds, index=True),
)

# What the site keeps. A chat's messages are a tree; `current` is the end of the branch that is shown.
chats = _table(
    "chats",
    _id(),
    _needed("token", String(32), unique=True),  # its id outside
    _user(),
    _needed("title", String(200)),
    _needed("title_by", String(8)),  # auto, user
    _needed("pinned", Boolean),
    _needed("mode", String(8)),  # chat, coder
    _needed("system", Text),
    Column("temperature", Float),
    Column("max_tokens", Integer),
    Column("current", Integer),
    _needed("last", Integer, default=0),  # the highest number that a message has had
    _needed("created", Seconds),
    _needed("updated", Seconds),
    Column("deleted", Seconds),  # it is kept a while, so that it can be restored
    Index("ix_chats_user_id_updated", "user_id", "updated"),
)

# `request_id` is the running answer's bill in the making; counts, cost and times are sums over an answer's requests.
messages = _table(
    "messages",
    _id(),
    _needed("chat_id", Id, ForeignKey("chats.id")),
    _needed("number", Integer),
    Column("parent", Integer),
    _needed("role", String(16)),  # user, assistant
    _needed("content", Text),
    _needed("attachments", JSON),
    _needed("status", String(16)),  # running, done, stopped, failed
    Column("finish_reason", String(16)),
    Column("stop_reason", String(32)),
    Column("error", JSON),
    _needed("model", String(200)),
    Column("temperature", Float),
    Column("request_id", String(64), index=True),
    _needed("prompt_tokens", BigInteger, default=0),
    _needed("cached_tokens", BigInteger, default=0),
    _needed("completion_tokens", BigInteger, default=0),
    _needed("context_tokens", BigInteger, default=0),
    _needed("cost", Money, default=0),
    Column("first_token_ms", BigInteger),
    _needed("ms", BigInteger, default=0),
    _needed("created", Seconds),
    Index("uq_messages_chat_id_number", "chat_id", "number", unique=True),
)

# A snapshot that anyone with the link can read, until it is deleted.
shares = _table(
    "shares",
    _id(),
    _needed("token", String(32), unique=True),
    _user(index=True),
    Column("chat_id", Id, ForeignKey("chats.id"), index=True),
    _needed("title", String(200)),
    _needed("messages", JSON),
    _needed("created", Seconds),
)

presets = _table(
    "presets",
    _id(),
    _user(index=True),
    _needed("name", String(100)),
    _needed("system", Text),
    Column("temperature", Float),
)

terms = _table(
    "terms",
    Column("version", Integer, primary_key=True, autoincrement=False),
    _needed("text", Text),
    _needed("created", Seconds),
)

licences = _table(
    "licences",
    Column("model", String(200), primary_key=True),
    _needed("record", JSON),
    _needed("updated", Seconds),
)

facts = _table("facts", Column("name", String(64), primary_key=True), _needed("value", String(200)))


class Database:
    """Short transactions on a pool of connections."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        # Writers of one process queue here, in order, and not in SQLite's polling; PostgreSQL needs no queue.
        self._turn = Turn() if engine.dialect.name == "sqlite" else None
        self._told = -REPEAT_SECONDS

    @classmethod
    async def open(cls, url: str, *, durable: bool = True) -> Database:
        """Connect and bring the tables up to date. Not `durable`: a power cut may take the last transactions."""
        database = cls(_engine(url, durable=durable))
        try:
            async with database.write() as connection:
                await connection.run_sync(upgrade)
        except BooksUnavailable as error:
            await database.close()
            raise ConfigError(f"{database.engine.url.render_as_string()}: {error.message}", param="database") from None
        except BaseException:
            await database.close()
            raise
        return database

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncGenerator[AsyncConnection, None]:
        """One consistent snapshot."""
        with self._usable():
            async with self.engine.connect() as connection, connection.begin():
                yield connection

    @contextlib.asynccontextmanager
    async def write(self, *, urgent: bool = False) -> AsyncGenerator[AsyncConnection, None]:
        """All or nothing, one writer at a time on SQLite, `urgent` ones before all that wait."""
        turn = contextlib.nullcontext() if self._turn is None else self._turn.take(urgent=urgent)
        async with turn:
            with self._usable():
                async with self.engine.connect() as connection:
                    await connection.execution_options(leadline_write=True)
                    async with connection.begin():
                        yield connection

    @contextlib.contextmanager
    def _usable(self) -> Generator[None, None, None]:
        """A disk that is full and a database that another process locks are no faults in a request: one line in the
        log now and then, and a 503."""
        try:
            yield
        except DBAPIError as error:
            if not _is_unavailable(error):
                raise
            if time.monotonic() - self._told >= REPEAT_SECONDS:
                self._told = time.monotonic()
                log.error("the database cannot be used: %s", error.orig)
            raise BooksUnavailable(f"the books cannot be read or written now ({error.orig}); try again later") from None

    async def close(self) -> None:
        await self.engine.dispose()


def _is_unavailable(error: DBAPIError) -> bool:
    """Not a wrong statement, nor a constraint that held."""
    name = getattr(error.orig, "sqlite_errorname", None)
    return isinstance(error, OperationalError) if name is None else name.startswith(_UNAVAILABLE)


def file_url(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


def _engine(url: str, *, durable: bool) -> AsyncEngine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            parsed = parsed.set(drivername="sqlite+aiosqlite")
        engine = create_async_engine(parsed)
    except (ArgumentError, ImportError) as error:
        raise ConfigError(f"the database URL cannot be used: {error}", param="database") from None
    if engine.dialect.name == "sqlite":
        _set_up_sqlite(engine, durable=durable)
    return engine


def _set_up_sqlite(engine: AsyncEngine, *, durable: bool) -> None:
    pragmas = (
        f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}",
        "PRAGMA journal_mode = WAL",
        f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}",
        "PRAGMA foreign_keys = ON",
    )

    @event.listens_for(engine.sync_engine, "connect")
    def connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(pragma)
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("leadline_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
