"""/api/admin: users, grants, prices, vouchers, invitations, the audit log, the books. For operators signed in."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from sqlalchemy import and_, func, select
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from leadline.errors import InvalidRequest, ModelNotFound
from leadline.server import accounts, keys, ledger, legal, wallet
from leadline.server.access import Principal
from leadline.server.account import balance_card, csv_response, entry_card, user_card
from leadline.server.accounts import note
from leadline.server.answers import Answers
from leadline.server.billing import set_price
from leadline.server.completion import CompletionService
from leadline.server.db import audit, holds, users
from leadline.server.db import ledger as entries
from leadline.server.erase import erase_user
from leadline.server.errors import json_response
from leadline.server.money import format_money, parse_money, parse_price
from leadline.server.platform import Platform
from leadline.server.routes import Route, RowId, address, body, build, number_query, once, out_of_range, report_query
from leadline.server.schemas import Count, Schema
from leadline.server.site_routes import model_card

PAGE = 100
MOST_DAYS = 36_500
MOST_USES, MOST_INVITE_DAYS = 1000, 365


class UserBody(Schema):
    """A user without a password gets one by the link in the answer."""

    email: str
    name: str = ""
    role: Literal["user", "admin"] = "user"


class ChangeBody(Schema):
    role: Literal["user", "admin"] | None = None
    state: Literal["active", "disabled"] | None = None


class GrantBody(Schema):
    amount: str
    kind: Literal["granted", "topped_up"] = "granted"
    days: Count | None = None
    reason: str = ""


class PriceBody(Schema):
    """For a million tokens."""

    model: str
    hit: str
    miss: str
    output: str


class VouchersBody(Schema):
    amount: str
    count: Count = 1
    kind: Literal["granted", "topped_up"] = "topped_up"
    days: Count | None = None
    valid_days: Count | None = None


class InviteBody(Schema):
    role: Literal["user", "admin"] = "user"
    grant: str = "0"
    grant_days: Count | None = None
    uses: Count = 1
    days: Count = 7


class LicenceBody(Schema):
    name: Annotated[str, Field(max_length=200)]
    url: Annotated[str, Field(max_length=500)] = ""
    text: Annotated[str, Field(max_length=20_000)] = ""
    restrictions: list[Annotated[str, Field(max_length=1000)]] = Field([], max_length=50)
    note: Annotated[str, Field(max_length=1000)] = ""


class TermsText(Schema):
    text: str


_ROUTES: tuple[Route, ...] = (
    ("GET", "/users", "users", None),
    ("POST", "/users", "make_user", UserBody),
    ("POST", "/users/{user_id}", "change_user", ChangeBody),
    ("POST", "/users/{user_id}/grants", "grant", GrantBody),
    ("POST", "/users/{user_id}/corrections", "correct", GrantBody),
    ("POST", "/users/{user_id}/reset", "reset_link", None),
    ("POST", "/users/{user_id}/delete", "delete_user", None),
    ("DELETE", "/users/{user_id}/keys/{key_id}", "revoke_key", None),
    ("GET", "/users/{user_id}", "user", None),
    ("GET", "/users/{user_id}/ledger", "user_ledger", None),
    ("POST", "/prices", "make_price", PriceBody),
    ("GET", "/vouchers", "vouchers", None),
    ("POST", "/vouchers", "make_vouchers", VouchersBody),
    ("GET", "/invites", "invites", None),
    ("POST", "/invites", "invite", InviteBody),
    ("DELETE", "/invites/{invite_id}", "cancel_invite", None),
    ("GET", "/usage", "usage", None),
    ("GET", "/usage.csv", "usage_csv", None),
    ("GET", "/audit", "audit", None),
    ("GET", "/books", "books", None),
    ("GET", "/load", "load", None),
    ("GET", "/models", "models", None),
    ("POST", "/models/{model:path}/licence", "set_licence", LicenceBody),
    ("GET", "/terms", "terms", None),
    ("POST", "/terms", "publish_terms", TermsText),
)


class AdminRoutes:
    def __init__(self, platform: Platform, service: CompletionService, answers: Answers) -> None:
        self.platform = platform
        self.service = service
        self.answers = answers

    def router(self) -> APIRouter:
        return build(self, "/api/admin", _ROUTES)

    # ---- users -------------------------------------------------------------------------------------------------

    async def users(self, request: Request) -> Response:
        await self._operator(request)
        after = number_query(request, "after") or 0
        pattern = request.query_params.get("query", "")[:100]
        chosen = and_(users.c.id > after, func.coalesce(users.c.email, "").contains(pattern, autoescape=True))
        store = self.platform.store
        async with store.database.read() as connection:
            rows = (await connection.execute(select(users).where(chosen).order_by(users.c.id).limit(PAGE))).all()
            has = await ledger.balances(connection, [row.id for row in rows], store.now())
        data = [{**user_card(row), "balance": format_money(has[row.id].total)} for row in rows]
        return json_response({"data": data})

    async def user(self, request: Request, user_id: RowId) -> Response:
        """What there is to know when someone asks why a key or a balance is as it is."""
        await self._operator(request)
        store, now = self.platform.store, self.platform.store.now()
        async with store.database.read() as connection:
            row = await accounts.get_user(connection, user_id)
            has = await ledger.balance(connection, user_id, now)
            buckets = await wallet.list_buckets(connection, user_id, now)
            mine = await keys.list_keys(connection, user_id)
            running = await connection.scalar(select(func.count()).where(holds.c.user_id == user_id))
        cards = {"keys": [keys.key_card(key) for key in mine], "holds": running}
        return json_response({**user_card(row), "balance": balance_card(has, buckets), **cards})

    async def user_ledger(self, request: Request, user_id: RowId) -> Response:
        await self._operator(request)
        before = number_query(request, "before")
        async with self.platform.store.database.read() as connection:
            await accounts.get_user(connection, user_id)
            rows = await wallet.list_entries(connection, user_id, before=before)
        return json_response({"data": [entry_card(row) for row in rows]})

    async def revoke_key(self, request: Request, user_id: RowId, key_id: RowId) -> Response:
        """For one that has leaked and whose owner is not there."""
        operator = await self._operator(request)
        store = self.platform.store
        async with store.database.write() as connection:
            await keys.revoke_key(connection, user_id, key_id, store.now())
            await self._note(connection, request, operator, "key revoked", f"user:{user_id}", key=key_id)
        return json_response({"ok": True})

    async def delete_user(self, request: Request, user_id: RowId) -> Response:
        """For who asks to be forgotten and cannot sign in any more."""
        operator = await self._operator(request)
        if operator.user_id == user_id:
            raise InvalidRequest("another operator has to change your account", code="own_account")
        await self.platform.end_answers(user_id)
        async with self.platform.store.database.write() as connection:
            await _check_not_deleted(connection, user_id)
            await erase_user(connection, user_id, self.platform.store.now())
            await self._note(connection, request, operator, "user deletion", f"user:{user_id}")
        return json_response({"ok": True})

    async def make_user(self, request: Request) -> Response:
        operator = await self._operator(request)
        given = await body(request, UserBody)
        store, now = self.platform.store, self.platform.store.now()
        async with store.database.write() as connection:
            user = await accounts.create_user(connection, given.email, "", now=now, role=given.role, name=given.name)
            token = await accounts.make_link(connection, store.secrets, "reset", now=now, user_id=user.id)
            await self._note(connection, request, operator, "user", f"user:{user.id}", role=given.role)
        return json_response({**user_card(user), "reset": token}, 201)

    async def change_user(self, request: Request, user_id: RowId) -> Response:
        operator = await self._operator(request)
        given = await body(request, ChangeBody)
        values = given.model_dump(exclude_none=True)
        if operator.user_id == user_id:
            raise InvalidRequest("another operator has to change your account", code="own_account")
        async with self.platform.store.database.write() as connection:
            if not values:
                raise InvalidRequest("there is nothing to change", code="nothing_to_change")
            await _check_not_deleted(connection, user_id)
            user = await accounts.change_user(connection, user_id, **values)
            await self._note(connection, request, operator, "user change", f"user:{user_id}", **values)
        if user.state != "active":
            await self.platform.end_answers(user_id)
        return json_response(user_card(user))

    async def reset_link(self, request: Request, user_id: RowId) -> Response:
        operator = await self._operator(request)
        store = self.platform.store
        async with store.database.write() as connection:
            user = await accounts.get_user(connection, user_id)
            if user.state != "active":
                raise InvalidRequest("the account is not active", code="account_inactive")
            token = await accounts.make_link(connection, store.secrets, "reset", now=store.now(), user_id=user_id)
            await self._note(connection, request, operator, "reset link", f"user:{user_id}")
        return json_response({"token": token}, 201)

    async def grant(self, request: Request, user_id: RowId) -> Response:
        operator = await self._operator(request)
        given = await body(request, GrantBody)
        amount = _positive(parse_money(given.amount))
        store, now = self.platform.store, self.platform.store.now()
        async with store.database.write() as connection:

            async def grant() -> dict[str, Any]:
                await _check_not_deleted(connection, user_id)
                ref = f"admin:{operator.user_id}"
                bucket = await wallet.grant(
                    connection, user_id, amount, ref=ref, now=now, kind=given.kind, days=_days(given.days)
                )
                detail = {"amount": format_money(amount), "kind": given.kind, "reason": given.reason[:200]}
                await self._note(connection, request, operator, "grant", f"user:{user_id}", **detail)
                return {"bucket": bucket, "amount": format_money(amount)}

            answer = await once(request, connection, operator.owner, given, grant, self.platform.store.now())
        return json_response(answer, 201)

    async def correct(self, request: Request, user_id: RowId) -> Response:
        """Take money back, as far as nothing holds it."""
        operator = await self._operator(request)
        given = await body(request, GrantBody)
        amount = _positive(parse_money(given.amount))
        store, now = self.platform.store, self.platform.store.now()
        async with store.database.write() as connection:

            async def correct() -> dict[str, Any]:
                await accounts.get_user(connection, user_id)
                await ledger.debit(connection, user_id, amount, ref=f"admin:{operator.user_id}", now=now)
                detail = {"amount": format_money(amount), "reason": given.reason[:200]}
                await self._note(connection, request, operator, "correction", f"user:{user_id}", **detail)
                return {"amount": format_money(amount)}

            answer = await once(request, connection, operator.owner, given, correct, self.platform.store.now())
        return json_response(answer, 201)

    # ---- prices, vouchers, invitations -------------------------------------------------------------------------

    async def make_price(self, request: Request) -> Response:
        """A new version: requests that run keep the price they came at."""
        operator = await self._operator(request)
        given = await body(request, PriceBody)
        amounts = {name: parse_price(getattr(given, name), name) for name in ("hit", "miss", "output")}
        store = self.platform.store
        async with store.database.write() as connection:
            price = await set_price(connection, given.model[:200], **amounts, now=store.now())
            await self._note(connection, request, operator, "price", price.model, version=price.version, **amounts)
        return json_response({"model": price.model, "version": price.version}, 201)

    async def vouchers(self, request: Request) -> Response:
        await self._operator(request)
        async with self.platform.store.database.read() as connection:
            rows = await wallet.list_vouchers(connection)
        names = ("id", "shown", "kind", "days", "expires", "used_by", "used", "created")
        data = [{**{name: getattr(row, name) for name in names}, "amount": format_money(row.amount)} for row in rows]
        return json_response({"data": data})

    async def make_vouchers(self, request: Request) -> Response:
        """The codes are in this answer and nowhere else: a repeated request with its Idempotency-Key gets none."""
        operator = await self._operator(request)
        given = await body(request, VouchersBody)
        amount = parse_money(given.amount)
        limits = {"days": _days(given.days), "valid_days": _days(given.valid_days)}
        store, now = self.platform.store, self.platform.store.now()
        codes: list[str] = []
        async with store.database.write() as connection:

            async def make() -> dict[str, Any]:
                codes.extend(
                    await wallet.make_vouchers(
                        connection, store.secrets, amount, now=now, count=given.count, kind=given.kind, **limits
                    )
                )
                detail = {"amount": format_money(amount), "kind": given.kind}
                await self._note(connection, request, operator, "vouchers", f"{len(codes)} vouchers", **detail)
                return {"count": len(codes)}

            answer = await once(request, connection, operator.owner, given, make, self.platform.store.now())
        return json_response({**answer, "codes": codes}, 201)

    async def invites(self, request: Request) -> Response:
        await self._operator(request)
        store = self.platform.store
        async with store.database.read() as connection:
            rows = await accounts.list_invites(connection, store.now())
        names = ("id", "role", "grant_days", "uses_left", "created", "expires")
        data = [
            {**{name: getattr(row, name) for name in names}, "grant": format_money(row.grant_amount)} for row in rows
        ]
        return json_response({"data": data})

    async def invite(self, request: Request) -> Response:
        operator = await self._operator(request)
        given = await body(request, InviteBody)
        if not 1 <= given.uses <= MOST_USES:
            raise out_of_range("uses", 1, MOST_USES)
        if not 1 <= given.days <= MOST_INVITE_DAYS:
            raise out_of_range("days", 1, MOST_INVITE_DAYS)
        store, now = self.platform.store, self.platform.store.now()
        async with store.database.write() as connection:
            token = await accounts.make_link(
                connection,
                store.secrets,
                "invite",
                now=now,
                role=given.role,
                grant=parse_money(given.grant, "grant"),
                grant_days=_days(given.grant_days),
                uses=given.uses,
                seconds=given.days * accounts.DAY,
            )
            await self._note(connection, request, operator, "invite", "link", **given.model_dump())
        return json_response({"token": token}, 201)

    async def cancel_invite(self, request: Request, invite_id: RowId) -> Response:
        operator = await self._operator(request)
        async with self.platform.store.database.write() as connection:
            await accounts.cancel_invite(connection, invite_id)
            await self._note(connection, request, operator, "invite cancelled", f"invite:{invite_id}")
        return json_response({"ok": True})

    # ---- what happens ------------------------------------------------------------------------------------------

    async def usage(self, request: Request) -> Response:
        """Everyone's, or one `user`'s."""
        rows, _ = await self._usage(request)
        return json_response({"currency": self.platform.settings.currency, "data": rows})

    async def usage_csv(self, request: Request) -> Response:
        return csv_response(*await self._usage(request))

    async def _usage(self, request: Request) -> tuple[list[dict[str, Any]], list[wallet.By]]:
        await self._operator(request)
        by, since, until = report_query(request, ("day", "model", "key", "user"))
        user = number_query(request, "user")
        async with self.platform.store.database.read() as connection:
            rows = await wallet.usage_report(connection, by, user_id=user, since=since, until=until)
        return rows, by

    async def audit(self, request: Request) -> Response:
        await self._operator(request)
        query = select(audit).order_by(audit.c.id.desc()).limit(PAGE)
        before = number_query(request, "before")
        async with self.platform.store.database.read() as connection:
            rows = await connection.execute(query if before is None else query.where(audit.c.id < before))
            data = [dict(row._mapping) for row in rows]
        return json_response({"data": data})

    async def books(self, request: Request) -> Response:
        """Whether the books add up, and their accounts' sums."""
        await self._operator(request)
        kind = func.substr(entries.c.account, 1, 5)
        query = select(entries.c.account, func.sum(entries.c.amount).label("sum")).where(kind == "house")
        async with self.platform.store.database.read() as connection:
            faults = await ledger.faults(connection)
            sums = (await connection.execute(query.group_by(entries.c.account))).all()
            held = await connection.scalar(select(func.sum(holds.c.amount)))
            running = await connection.scalar(select(func.count()).select_from(holds))
        house = {row.account: format_money(int(row.sum)) for row in sums}
        return json_response({"faults": faults, "accounts": house, "held": format_money(held or 0), "holds": running})

    async def load(self, request: Request) -> Response:
        """What the engine is and does."""
        await self._operator(request)
        engine = self.service.engine
        info, stats = dataclasses.asdict(engine.info), dataclasses.asdict(engine.stats())
        return json_response({"info": info, "stats": stats, "answers": self.answers.running})

    # ---- what is agreed to -------------------------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        await self._operator(request)
        async with self.platform.store.database.read() as connection:
            card = await model_card(connection, self.service)
        return json_response({"data": [{**card, "served": True}]})

    async def set_licence(self, request: Request, model: str) -> Response:
        operator = await self._operator(request)
        given = await body(request, LicenceBody)
        if model != self.service.model:
            raise ModelNotFound(f"the model {model[:100]!r} is not served here", param="model")
        store = self.platform.store
        async with store.database.write() as connection:
            await legal.set_licence(connection, model, given.model_dump(), store.now())
            await self._note(connection, request, operator, "licence", model[:100], name=given.name)
        return json_response(given.model_dump())

    async def terms(self, request: Request) -> Response:
        await self._operator(request)
        async with self.platform.store.database.read() as connection:
            rows = await legal.all_terms(connection)
        return json_response({"data": [dict(row._mapping) for row in rows]})

    async def publish_terms(self, request: Request) -> Response:
        operator = await self._operator(request)
        given = await body(request, TermsText, 4 * legal.MOST_TEXT)
        store = self.platform.store
        async with store.database.write() as connection:
            version = await legal.publish(connection, given.text, store.now())
            await self._note(connection, request, operator, "terms", f"version {version}")
        return json_response({"version": version}, 201)

    # ---- shared ------------------------------------------------------------------------------------------------

    async def _operator(self, request: Request) -> Principal:
        return await self.platform.visitor(request, admin=True)

    async def _note(
        self, connection: Any, request: Request, operator: Principal, action: str, subject: str, **detail: Any
    ) -> None:
        now, where = self.platform.store.now(), address(request)
        await note(connection, action, subject, now=now, actor=operator.user_id, address=where, **detail)


async def _check_not_deleted(connection: AsyncConnection, user_id: int) -> None:
    if (await accounts.get_user(connection, user_id)).state == "deleted":
        raise InvalidRequest("the account was deleted", code="account_inactive")


def _positive(amount: int) -> int:
    if amount == 0:
        raise InvalidRequest("amount must be above 0", param="amount", code="value_out_of_range")
    return amount


def _days(days: int | None) -> int | None:
    if days is not None and not 1 <= days <= MOST_DAYS:
        raise out_of_range("days", 1, MOST_DAYS)
    return days
