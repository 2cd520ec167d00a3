"""The platform: accounts and money behind the API. Takes the place of `OpenAccess` at the seam in `access`.

On the API a request proves itself with a key or a client token and never with a cookie; on the site's own routes it is
the other way round. A request passes: who -> rate -> schema -> prompt -> slots -> hold -> engine -> settle.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from pathlib import Path
from typing import Any, Literal

from fastapi import Request
from sqlalchemy import Row, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from leadline.engine.types import Usage
from leadline.errors import AuthenticationError, BooksUnavailable, EngineOverloaded, PermissionDenied
from leadline.server import chats, legal
from leadline.server.access import Meter, Outcome, Principal
from leadline.server.accounts import (
    DAY,
    TOUCH_SECONDS,
    change_user,
    find_session,
    find_user,
    forget_ended,
    touch_session,
)
from leadline.server.answers import LINGER_SECONDS, Answers
from leadline.server.auth import Passwords, bearer, is_key, masked, read_token
from leadline.server.billing import Billing, Order
from leadline.server.db import facts, usage
from leadline.server.keys import find_key, touch_key
from leadline.server.limits import Rates, Slots, Throttle, network
from leadline.server.meter import HoldMeter, Meters, every
from leadline.server.metrics import Metrics
from leadline.server.money import Price
from leadline.server.store import DEFAULT_PRICE, Currency, Store, open_store
from leadline.server.titles import Titles

COOKIE = "leadline_session"
UPKEEP_SECONDS = 60.0
BLOCK_SECONDS = 300.0

SignUp = Literal["open", "invite", "closed"]


@dataclasses.dataclass(frozen=True, slots=True)
class PlatformSettings:
    """`requests_per_minute` and `concurrency` are an account's, whatever its keys say beside."""

    folder: Path
    database: str | None = None  # a URL; a file in the folder by default
    currency: Currency = "USD"
    signup: SignUp = "invite"
    price: Price = DEFAULT_PRICE
    requests_per_minute: int = 600
    concurrency: int = 32
    entries_per_minute: int = 60  # of one address: each sign-up and sign-in costs a core for a moment
    trusted_proxies: tuple[str, ...] = ()  # whose X-Forwarded-For and -Proto are believed
    durable: bool = True
    linger_seconds: float = LINGER_SECONDS  # how long an answer on the site goes on when nobody watches it
    retention_days: int | None = None  # after which a chat that nobody touches is forgotten
    titles: Titles = "words"  # who names a chat: the model after its first answer, or its first words for good


class Platform:
    def __init__(self, settings: PlatformSettings, *, passwords: Passwords | None = None) -> None:
        self.settings = settings
        self.model = ""
        self.passwords = passwords or Passwords()
        self.rates = Rates()
        self.slots = Slots()
        self.sources = Throttle(most=30, block_seconds=BLOCK_SECONDS)
        self.pairs = Throttle(most=5, block_seconds=BLOCK_SECONDS)  # of a source and an account
        self.answers: Answers | None = None  # the site's, when there is one
        self._touching: set[Any] = set()  # ids of keys and of sessions, which are numbers and words
        self._open: tuple[Store, Meters] | None = None

    @property
    def store(self) -> Store:
        assert self._open is not None, "the platform runs"
        return self._open[0]

    @property
    def meters(self) -> Meters:
        assert self._open is not None, "the platform runs"
        return self._open[1]

    @contextlib.asynccontextmanager
    async def running(self, model: str, metrics: Metrics | None = None) -> AsyncGenerator[None, None]:
        """Open the books, sell `model`, and keep house until the end."""
        settings = self.settings
        async with open_store(settings.folder, settings.database, durable=settings.durable) as store:
            await store.set_currency(settings.currency)
            await store.ensure_price(model, settings.price)
            async with store.database.write() as connection:
                await legal.ensure_terms(connection, store.now())
            self.model = model
            meters = Meters(Billing(store.database, clock=store.clock, witness=self.answers))
            async with meters.running(), every(UPKEEP_SECONDS, self._upkeep):
                self._open = store, meters
                if metrics is not None:
                    metrics.watch_money(meters)
                try:
                    yield
                finally:
                    if self.answers is not None:
                        await self.answers.close()
                    await meters.drain()
                    self._open = None

    async def _upkeep(self) -> None:
        """Forget what is over: sessions, answers to repeat, chats that were deleted or are older than is kept."""
        if self._open is None:
            return
        store, days = self.store, self.settings.retention_days
        async with store.database.write() as connection:
            await forget_ended(connection, store.now())
            await chats.purge(connection, store.now(), None if days is None else days * DAY)

    # ---- who asks ----------------------------------------------------------------------------------------------

    async def admit(self, request: Request) -> Principal:
        """On the API: a key or a client token."""
        secret = bearer(request.headers.get("authorization"))
        principal = await (self._key(secret) if secret.startswith("sk-") else self._session(secret, "client"))
        request.scope["account"] = principal.owner
        self._rate(principal)
        return principal

    async def visitor(self, request: Request, *, admin: bool = False) -> Principal:
        """On the site's own routes: the cookie."""
        token = request.cookies.get(COOKIE)
        if token is None:
            raise AuthenticationError("sign in first", code="not_signed_in")
        try:
            principal = await self._session(token, "web")
        except AuthenticationError as error:
            raise AuthenticationError(error.message, code="session_ended") from None
        request.scope["account"] = principal.owner
        if admin and not principal.admin:
            raise PermissionDenied("this is for the operators", code="operators_only")
        self._rate(principal)
        return principal

    async def user(self, request: Request) -> int:
        """The visitor's account."""
        return (await self.visitor(request)).owner

    async def customer(self, request: Request) -> Principal:
        """A visitor who may have answers: one who has accepted the terms."""
        visitor = await self.visitor(request)
        async with self.store.database.read() as connection:
            await legal.check_accepted(connection, visitor.owner)
        return visitor

    async def check_login(self, email: str, password: str, address: str) -> Row[Any]:
        """The user whose password this is. Someone unknown takes as long, and is told the same."""
        store = self.store
        self.enter(address)
        with self.attempt(address, email.strip().lower()):
            async with store.database.read() as connection:
                user = await find_user(connection, email)
            if not await self.password_fits(user, password) or user is None:
                raise AuthenticationError("wrong email address or password", code="wrong_credentials")
        if self.passwords.is_old(user.password):
            stronger = await self.passwords.hash(password)
            async with store.database.write() as connection:
                await change_user(connection, user.id, password=stronger)
        return user

    def enter(self, address: str) -> None:
        """Raises when one address signs up or in too often, also when each time it may: a password's hash is work."""
        self.rates.take(("address", network(address)), self.settings.entries_per_minute)

    async def password_fits(self, user: Row[Any] | None, password: str) -> bool:
        stored = user.password if user is not None and user.state == "active" else ""
        return await self.passwords.verify(stored, password)

    async def operator(self, request: Request) -> Principal:
        """On the API: an operator's key, for machines that watch this one."""
        principal = await self.admit(request)
        if not principal.admin:
            raise PermissionDenied("this is for the operators", code="operators_only")
        return principal

    async def _key(self, secret: str) -> Principal:
        store, now = self.store, self.store.now()
        row = None
        if is_key(secret):
            async with store.database.read() as connection:
                row = await find_key(connection, store.secrets, secret, now)
        if row is None:
            raise AuthenticationError(f"Authentication Fails, Your api key: {masked(secret)} is invalid")
        self._touch(touch_key, row, now)
        return Principal(
            user_id=row.user_id,
            key_id=row.id,
            admin=row.role == "admin",
            models=None if row.models is None else tuple(row.models),
            control_tokens=row.control_tokens,
            requests_per_minute=row.requests_per_minute,
            concurrency=row.concurrency,
        )

    async def _session(self, token: str, purpose: str) -> Principal:
        store, now = self.store, self.store.now()
        claims = read_token(store.secrets.jwt, token, purpose)
        async with store.database.read() as connection:
            row = await find_session(connection, claims, now)
        self._touch(touch_session, row, now)
        return Principal(
            user_id=row.user_id,
            session_id=row.id,
            admin=row.role == "admin",
            control_tokens=False,
        )

    def _touch(self, touch: Callable[[AsyncConnection, Any, int], Awaitable[None]], row: Row[Any], now: int) -> None:
        """Note that a key or a session was used. Nobody waits for it: who only reads needs no place in the queue."""
        if now - (row.last_used or 0) >= TOUCH_SECONDS and row.id not in self._touching:
            self._touching.add(row.id)
            self.meters.spawn(self._touched(touch, row.id, now))

    async def _touched(
        self, touch: Callable[[AsyncConnection, Any, int], Awaitable[None]], used: Any, now: int
    ) -> None:
        try:
            async with self.store.database.write() as connection:
                await touch(connection, used, now)
        except BooksUnavailable:
            pass  # the database has said so in the log
        finally:
            self._touching.discard(used)

    # ---- what they may do at once, and what it costs -----------------------------------------------------------

    def meter(self, principal: Principal, request_id: str, prompt_tokens: int, most: int) -> Meter:
        order = Order(request_id, principal.owner, principal.key_id, self.model, prompt_tokens, most)
        return AccountMeter(self.meters.meter(order), self.slots, self._slots_of(principal))

    async def check_ready(self) -> None:
        """Raises when the books cannot be written in."""
        if self._open is None:
            raise EngineOverloaded("the server is starting or stopping")
        async with self.store.database.write() as connection:
            await connection.execute(update(facts).where(facts.c.name == "currency").values(name="currency"))

    async def end_answers(self, user_id: int) -> None:
        """Of this account, on the site."""
        if self.answers is not None:
            await self.answers.stop_of(user_id)

    async def cost(self, request_id: str) -> int:
        """What a request that has ended did cost."""
        async with self.store.database.read() as connection:
            amount = await connection.scalar(select(usage.c.amount).where(usage.c.request_id == request_id))
        return int(amount or 0)

    def _rate(self, principal: Principal) -> None:
        if principal.requests_per_minute is not None:
            self.rates.take(("key", principal.key_id), principal.requests_per_minute)
        self.rates.take(("user", principal.owner), self.settings.requests_per_minute)

    def _slots_of(self, principal: Principal) -> dict[tuple[str, Any], int]:
        slots: dict[tuple[str, Any], int] = {("user", principal.owner): self.settings.concurrency}
        if principal.concurrency is not None:
            slots["key", principal.key_id] = principal.concurrency
        return slots

    @contextlib.contextmanager
    def attempt(self, address: str, subject: str) -> Generator[None, None, None]:
        """Around a try at a secret: raises when there were too many; a fault inside counts against both."""
        source = network(address)
        self.pairs.begin((source, subject))  # a blocked pair does not count against its source
        self.sources.begin(source)
        yield
        self.pairs.succeed((source, subject))
        self.sources.succeed(source)


class AccountMeter:
    """A hold, and the places of its account and key among what runs at once."""

    def __init__(self, hold: HoldMeter, slots: Slots, wanted: dict[tuple[str, Any], int]) -> None:
        self.hold = hold
        self.slots = slots
        self.wanted = wanted
        self._taken: list[tuple[str, Any]] = []

    async def open(self) -> None:
        for subject, most in self.wanted.items():
            self.slots.take(subject, most)
            self._taken.append(subject)
        await self.hold.open()

    async def cover(self, completion_tokens: int) -> bool:
        return await self.hold.cover(completion_tokens)

    def delivered(self, usage: Usage) -> None:
        self.hold.delivered(usage)

    async def close(self, outcome: Outcome) -> None:
        while self._taken:
            self.slots.give(self._taken.pop())
        await self.hold.close(outcome)
