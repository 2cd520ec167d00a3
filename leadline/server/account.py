"""/api: a user's own account, keys, tokens, money and usage. All but signing in and up is behind the cookie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy import Row
from starlette.responses import Response

from leadline.errors import AuthenticationError, PermissionDenied
from leadline.server import accounts, keys, legal, wallet
from leadline.server.access import Principal
from leadline.server.accounts import CLIENT_DAYS, WEB_DAYS, note
from leadline.server.auth import check_password
from leadline.server.db import prices
from leadline.server.erase import erase_user
from leadline.server.errors import json_response
from leadline.server.ledger import Balance, balance
from leadline.server.money import format_money, format_price
from leadline.server.platform import COOKIE, Platform
from leadline.server.routes import (
    Route,
    RowId,
    address,
    body,
    build,
    number_query,
    once,
    optional_money,
    out_of_range,
    report_query,
)
from leadline.server.schemas import Count, Schema

DAY = accounts.DAY


class SignUpBody(Schema):
    email: str
    password: str
    name: str = ""
    invite: str | None = None
    terms: Count = 0  # the version of the terms that is accepted


class LoginBody(Schema):
    email: str
    password: str


class LinkBody(Schema):
    token: str


class ResetBody(Schema):
    token: str
    password: str


class PasswordBody(Schema):
    old: str
    new: str


class DeletionBody(Schema):
    password: str


class TokenBody(Schema):
    name: str = ""
    days: Count = CLIENT_DAYS


class KeyBody(Schema):
    name: str = ""
    days: Count | None = None
    models: list[str] | None = None
    spend_cap: str | None = None
    monthly_cap: str | None = None
    requests_per_minute: Count | None = None
    concurrency: Count | None = None
    control_tokens: bool = False


class VoucherBody(Schema):
    code: str


_ROUTES: tuple[Route, ...] = (
    ("POST", "/signup", "sign_up", SignUpBody),
    ("POST", "/login", "login", LoginBody),
    ("POST", "/signin", "sign_in_by_link", LinkBody),
    ("POST", "/reset", "reset", ResetBody),
    ("POST", "/logout", "logout", None),
    ("GET", "/account", "account", None),
    ("POST", "/account/password", "change_password", PasswordBody),
    ("POST", "/account/delete", "delete_account", DeletionBody),
    ("GET", "/sessions", "sessions", None),
    ("DELETE", "/sessions/{session_id}", "end_session", None),
    ("GET", "/tokens", "tokens", None),
    ("POST", "/tokens", "make_token", TokenBody),
    ("DELETE", "/tokens/{session_id}", "end_session", None),
    ("GET", "/keys", "keys", None),
    ("POST", "/keys", "make_key", KeyBody),
    ("DELETE", "/keys/{key_id}", "revoke_key", None),
    ("GET", "/balance", "balance", None),
    ("GET", "/ledger", "ledger", None),
    ("POST", "/vouchers/redeem", "redeem", VoucherBody),
    ("GET", "/usage", "usage", None),
    ("GET", "/usage.csv", "usage_csv", None),
    ("GET", "/prices", "prices", None),
)


class AccountRoutes:
    def __init__(self, platform: Platform) -> None:
        self.platform = platform

    def router(self) -> APIRouter:
        return build(self, "/api", _ROUTES)

    # ---- in and out --------------------------------------------------------------------------------------------

    async def sign_up(self, request: Request) -> Response:
        given = await body(request, SignUpBody)
        mode = self.platform.settings.signup
        if mode == "closed":
            raise PermissionDenied("sign-up is closed", code="signup_closed")
        if mode == "invite" and given.invite is None:
            raise PermissionDenied("new accounts are by invitation here", code="signup_by_invitation")
        email = accounts.normal_email(given.email)
        check_password(given.password, email)
        store, now = self.platform.store, self.platform.store.now()
        self.platform.enter(address(request))
        with self.platform.attempt(address(request), "sign-up"):
            password = await self.platform.passwords.hash(given.password)
            async with store.database.write() as connection:
                invite = None
                if given.invite is not None:
                    invite = await accounts.use_link(connection, store.secrets, "invite", given.invite, now)
                role: accounts.Role = invite.role if invite else "user"
                user = await accounts.create_user(
                    connection, email, password, now=now, role=role, name=given.name.strip()
                )
                await legal.accept(connection, user.id, given.terms, param="terms")
                if invite:
                    await accounts.accept_invite(connection, invite, user.id, now)
                await self._note(connection, request, "sign-up", user.id, invite=invite.id if invite else None)
                token = await self._start_session(connection, request, user.id)
        return self._signed_in(request, user, token)

    async def login(self, request: Request) -> Response:
        given = await body(request, LoginBody)
        user = await self.platform.check_login(given.email, given.password, address(request))
        async with self.platform.store.database.write() as connection:
            await self._note(connection, request, "login", user.id)
            token = await self._start_session(connection, request, user.id)
        return self._signed_in(request, user, token)

    async def sign_in_by_link(self, request: Request) -> Response:
        given = await body(request, LinkBody)
        store, now = self.platform.store, self.platform.store.now()
        with self.platform.attempt(address(request), "link"):
            async with store.database.write() as connection:
                link = await accounts.use_link(connection, store.secrets, "signin", given.token, now)
                user = await accounts.get_user(connection, link.user_id)
                await self._note(connection, request, "login by link", user.id)
                token = await self._start_session(connection, request, user.id)
        return self._signed_in(request, user, token)

    async def reset(self, request: Request) -> Response:
        given = await body(request, ResetBody)
        check_password(given.password)
        store, now = self.platform.store, self.platform.store.now()
        with self.platform.attempt(address(request), "link"):
            password = await self.platform.passwords.hash(given.password)
            async with store.database.write() as connection:
                link = await accounts.use_link(connection, store.secrets, "reset", given.token, now)
                await accounts.set_password(connection, link.user_id, password)
                await self._note(connection, request, "password reset", link.user_id)
        return json_response({"ok": True})

    async def logout(self, request: Request) -> Response:
        visitor = await self.platform.visitor(request)
        async with self.platform.store.database.write() as connection:
            await accounts.end_session(connection, visitor.owner, visitor.session_id or "")
        response = json_response({"ok": True})
        response.delete_cookie(COOKIE, path="/api")
        return response

    # ---- the account -------------------------------------------------------------------------------------------

    async def account(self, request: Request) -> Response:
        visitor = await self.platform.visitor(request)
        async with self.platform.store.database.read() as connection:
            user = await accounts.get_user(connection, visitor.owner)
        return json_response(user_card(user))

    async def change_password(self, request: Request) -> Response:
        visitor = await self.platform.visitor(request)
        given = await body(request, PasswordBody)
        user = await self._confirmed(request, visitor, given.old)
        check_password(given.new, user.email or "")
        password = await self.platform.passwords.hash(given.new)
        async with self.platform.store.database.write() as connection:
            await accounts.set_password(connection, user.id, password, keep=visitor.session_id)
            await self._note(connection, request, "password change", user.id)
        return json_response({"ok": True})

    async def delete_account(self, request: Request) -> Response:
        visitor = await self.platform.visitor(request)
        given = await body(request, DeletionBody)
        user = await self._confirmed(request, visitor, given.password)
        await self.platform.end_answers(user.id)
        async with self.platform.store.database.write() as connection:
            await erase_user(connection, user.id, self.platform.store.now())
            await self._note(connection, request, "account deletion", user.id)
        response = json_response({"ok": True})
        response.delete_cookie(COOKIE, path="/api")
        return response

    async def sessions(self, request: Request) -> Response:
        return await self._list_sessions(request, "web")

    async def tokens(self, request: Request) -> Response:
        return await self._list_sessions(request, "client")

    async def end_session(self, request: Request, session_id: str) -> Response:
        visitor = await self.platform.visitor(request)
        async with self.platform.store.database.write() as connection:
            await accounts.end_session(connection, visitor.owner, session_id)
            await self._note(connection, request, "session end", visitor.owner)
        return json_response({"ok": True})

    async def make_token(self, request: Request) -> Response:
        """A client token for `.env`; it is shown this once."""
        visitor = await self.platform.visitor(request)
        given = await body(request, TokenBody)
        if not 1 <= given.days <= 10 * CLIENT_DAYS:
            raise out_of_range("days", 1, 10 * CLIENT_DAYS)
        store, now = self.platform.store, self.platform.store.now()
        async with store.database.write() as connection:
            await legal.check_accepted(connection, visitor.owner)
            session_id, token = await accounts.start_session(
                connection, store.secrets, visitor.owner, now=now, purpose="client", name=given.name, days=given.days
            )
            await self._note(connection, request, "client token", visitor.owner)
        return json_response({"id": session_id, "token": token}, 201)

    # ---- keys --------------------------------------------------------------------------------------------------

    async def keys(self, request: Request) -> Response:
        visitor = await self.platform.visitor(request)
        async with self.platform.store.database.read() as connection:
            rows = await keys.list_keys(connection, visitor.owner)
        return json_response({"data": [keys.key_card(row) for row in rows]})

    async def make_key(self, request: Request) -> Response:
        """The key is in this answer and nowhere else: a repeated request with its Idempotency-Key gets the card."""
        visitor = await self.platform.visitor(request)
        given = await body(request, KeyBody)
        store, now = self.platform.store, self.platform.store.now()
        spec = _key_spec(given, now)
        secrets: list[str] = []

        async with store.database.write() as connection:
            await legal.check_accepted(connection, visitor.owner)

            async def make() -> dict[str, Any]:
                row, secret = await keys.create_key(connection, store.secrets, visitor.owner, spec, now)
                await self._note(connection, request, "key", visitor.owner, key=row.id)
                secrets.append(secret)
                return keys.key_card(row)

            card = await once(request, connection, visitor.owner, given, make, self.platform.store.now())
        return json_response({**card, "secret": secrets[0] if secrets else None}, 201)

    async def revoke_key(self, request: Request, key_id: RowId) -> Response:
        visitor = await self.platform.visitor(request)
        store = self.platform.store
        async with store.database.write() as connection:
            await keys.revoke_key(connection, visitor.owner, key_id, store.now())
            await self._note(connection, request, "key revoked", visitor.owner, key=key_id)
        return json_response({"ok": True})

    # ---- money -------------------------------------------------------------------------------------------------

    async def balance(self, request: Request) -> Response:
        visitor = await self.platform.visitor(request)
        store, now = self.platform.store, self.platform.store.now()
        async with store.database.read() as connection:
            has = await balance(connection, visitor.owner, now)
            rows = await wallet.list_buckets(connection, visitor.owner, now)
        return json_response({"currency": self.platform.settings.currency, **balance_card(has, rows)})

    async def ledger(self, request: Request) -> Response:
        visitor = await self.platform.visitor(request)
        before = number_query(request, "before")
        async with self.platform.store.database.read() as connection:
            rows = await wallet.list_entries(connection, visitor.owner, before=before)
        return json_response({"data": [entry_card(row) for row in rows]})

    async def redeem(self, request: Request) -> Response:
        visitor = await self.platform.visitor(request)
        given = await body(request, VoucherBody)
        store, now = self.platform.store, self.platform.store.now()
        with self.platform.attempt(address(request), f"voucher {visitor.owner}"):
            async with store.database.write() as connection:

                async def redeem() -> dict[str, Any]:
                    row = await wallet.redeem(connection, store.secrets, visitor.owner, given.code, now)
                    await self._note(connection, request, "voucher", visitor.owner, voucher=row.id)
                    return {"amount": format_money(row.amount), "kind": row.kind}

                answer = await once(request, connection, visitor.owner, given, redeem, self.platform.store.now())
        return json_response(answer)

    async def usage(self, request: Request) -> Response:
        rows, _ = await self._usage(request)
        return json_response({"currency": self.platform.settings.currency, "data": rows})

    async def usage_csv(self, request: Request) -> Response:
        return csv_response(*await self._usage(request))

    async def prices(self, request: Request) -> Response:
        await self.platform.visitor(request)
        async with self.platform.store.database.read() as connection:
            rows = await connection.execute(prices.select().order_by(prices.c.model, prices.c.version))
            data = [price_card(row) for row in rows]
        return json_response({"currency": self.platform.settings.currency, "data": data})

    # ---- shared ------------------------------------------------------------------------------------------------

    async def _start_session(self, connection: Any, request: Request, user_id: int) -> str:
        """Listed under the browser's own name."""
        store, name = self.platform.store, request.headers.get("user-agent", "")
        _, token = await accounts.start_session(connection, store.secrets, user_id, now=store.now(), name=name)
        return token

    def _signed_in(self, request: Request, user: Row[Any], token: str) -> Response:
        """The cookie goes to /api alone, is out of every script's reach, and follows no link from elsewhere."""
        response = json_response(user_card(user))
        response.set_cookie(
            COOKIE,
            token,
            max_age=WEB_DAYS * DAY,
            path="/api",
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
        return response

    async def _confirmed(self, request: Request, visitor: Principal, password: str) -> Row[Any]:
        """The visitor's row, if they know the password; who never had one came by a link, and is believed."""
        async with self.platform.store.database.read() as connection:
            user = await accounts.get_user(connection, visitor.owner)
        self.platform.enter(address(request))
        with self.platform.attempt(address(request), f"password {user.id}"):
            if user.password and not await self.platform.password_fits(user, password):
                raise AuthenticationError("wrong password", code="wrong_password")
        return user

    async def _list_sessions(self, request: Request, purpose: accounts.Purpose) -> Response:
        visitor = await self.platform.visitor(request)
        store = self.platform.store
        async with store.database.read() as connection:
            rows = await accounts.list_sessions(connection, visitor.owner, purpose, store.now())
        names = ("id", "name", "created", "expires", "last_used")
        cards = [
            {**{name: getattr(row, name) for name in names}, "current": row.id == visitor.session_id} for row in rows
        ]
        return json_response({"data": cards})

    async def _usage(self, request: Request) -> tuple[list[dict[str, Any]], list[wallet.By]]:
        visitor = await self.platform.visitor(request)
        by, since, until = report_query(request)
        async with self.platform.store.database.read() as connection:
            rows = await wallet.usage_report(connection, by, user_id=visitor.owner, since=since, until=until)
        return rows, by

    async def _note(self, connection: Any, request: Request, action: str, user_id: int, **detail: Any) -> None:
        now, where = self.platform.store.now(), address(request)
        await note(connection, action, f"user:{user_id}", now=now, actor=user_id, address=where, **detail)


def user_card(user: Row[Any]) -> dict[str, Any]:
    return {name: getattr(user, name) for name in ("id", "email", "name", "role", "state", "created")}


def balance_card(has: Balance, buckets: Sequence[Row[Any]]) -> dict[str, Any]:
    amounts = {"total": has.total, "granted": has.granted, "topped_up": has.topped_up, "held": has.held}
    cards = [{"kind": row.kind, "balance": format_money(row.balance), "expires": row.expires} for row in buckets]
    return {**{name: format_money(amount) for name, amount in amounts.items()}, "buckets": cards}


def entry_card(row: Row[Any]) -> dict[str, Any]:
    """An entry of the ledger."""
    names = ("id", "kind", "ref", "created")
    return {**{name: getattr(row, name) for name in names}, "amount": format_money(row.amount)}


def csv_response(rows: Sequence[dict[str, Any]], by: Sequence[wallet.By]) -> Response:
    headers = {"content-disposition": 'attachment; filename="usage.csv"'}
    return Response(wallet.usage_csv(rows, by), headers=headers, media_type="text/csv; charset=utf-8")


def price_card(row: Row[Any]) -> dict[str, Any]:
    """A version of a price, for a million tokens."""
    amounts = {name: format_price(getattr(row, name)) for name in ("hit", "miss", "output")}
    return {"model": row.model, "version": row.version, "created": row.created, **amounts}


def _key_spec(given: KeyBody, now: int) -> keys.KeySpec:
    return keys.KeySpec(
        name=given.name.strip()[:100],
        expires=None if given.days is None else now + min(given.days, 36_500) * DAY,
        models=None if given.models is None else tuple(given.models[:100]),
        spend_cap=optional_money(given.spend_cap, "spend_cap"),
        monthly_cap=optional_money(given.monthly_cap, "monthly_cap"),
        requests_per_minute=_at_most(given.requests_per_minute),
        concurrency=_at_most(given.concurrency),
        control_tokens=given.control_tokens,
    )


def _at_most(number: int | None) -> int | None:
    return None if number is None else min(number, 1_000_000)
