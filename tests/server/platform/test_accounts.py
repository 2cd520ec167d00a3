"""Accounts over HTTP: in and out, links, sessions, keys, vouchers, usage, deletion; and what others must not see."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from leadline.server import accounts, db, wallet
from leadline.server.auth import AUDIENCE
from leadline.server.platform import COOKIE
from leadline.server.store import Store
from leadline.tokenizer import Tokenizer
from tests.server.platform.site import PASSWORD, Site, chat, live_site

NEW = "a quite different password"


def link(site: Site, purpose: accounts.LinkPurpose, **options: Any) -> str:
    async def make(connection: AsyncConnection, store: Store) -> str:
        return await accounts.make_link(connection, store.secrets, purpose, now=store.now(), **options)

    return site.work(make)


def voucher(site: Site, amount: int) -> str:
    async def make(connection: AsyncConnection, store: Store) -> str:
        return (await wallet.make_vouchers(connection, store.secrets, amount, now=store.now()))[0]

    return site.work(make)


def row(site: Site, table: Any, **where: Any) -> Any:
    async def read(connection: AsyncConnection, _: Store) -> Any:
        query = select(table).where(*(table.c[name] == value for name, value in where.items()))
        return (await connection.execute(query)).one()

    return site.work(read)


def member(site: Site, email: str, **options: Any) -> httpx2.Client:
    site.user(email=email, **options)
    return site.browser(email)


# ---- in and out ----------------------------------------------------------------------------------------------------


def test_sign_up_by_invitation_brings_its_grant_once(site: Site) -> None:
    invite = link(site, "invite", grant=5 * 10**9, grant_days=30)
    body = {"email": " New@Example.org ", "password": NEW, "name": "New", "terms": 1}
    browser = site.client()
    assert browser.post("/api/signup", json=body).status_code == 403
    assert browser.post("/api/signup", json={**body, "invite": "wrong"}).status_code == 401
    made = browser.post("/api/signup", json={**body, "invite": invite})
    assert made.status_code == 200
    assert made.json()["email"] == "new@example.org"
    balance = browser.get("/api/balance").json()
    assert (balance["granted"], balance["total"]) == ("5.00", "5.00")
    assert balance["buckets"][0]["expires"] is not None
    again = site.client().post("/api/signup", json={**body, "email": "b@example.org", "invite": invite})
    assert again.status_code == 401
    spare = link(site, "invite", uses=2)
    taken = site.client().post("/api/signup", json={**body, "invite": spare})
    assert taken.status_code == 409
    assert row(site, db.links, digest=site.platform.store.secrets.digest("invite", spare)).uses_left == 2


@pytest.mark.parametrize(("signup", "status"), [("open", 200), ("closed", 403)])
def test_sign_up_open_and_closed(tokenizer: Tokenizer, tmp_path: Path, signup: str, status: int) -> None:
    with live_site(tokenizer, tmp_path, options={"signup": signup}) as other:
        browser = other.client()
        made = browser.post("/api/signup", json={"email": "a@example.org", "password": NEW, "terms": 1})
        assert made.status_code == status
        if status == 200:
            assert browser.get("/api/balance").json()["total"] == "0.00", "grants come by invitation or by operators"


@pytest.mark.parametrize(
    ("email", "password"),
    [("a@example.org", "short"), ("a@example.org", "password123"), ("nobody", NEW), ("someones@x", "someones@x")],
)
def test_bad_emails_and_guessed_passwords_are_refused(site: Site, email: str, password: str) -> None:
    invite = link(site, "invite")
    body = {"email": email, "password": password, "invite": invite}
    assert site.client().post("/api/signup", json=body).status_code == 400


def test_the_cookie_goes_to_the_site_alone(site: Site) -> None:
    site.user(email="cookies@example.org")
    body = {"email": "COOKIES@example.org", "password": PASSWORD}
    response = site.client().post("/api/login", json=body)
    cookie = response.headers["set-cookie"].lower()
    assert all(word in cookie for word in ("httponly", "samesite=strict", "path=/api"))
    assert "password" not in response.text


def test_wrong_and_unknown_are_answered_alike_and_soon_not_at_all(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with live_site(tokenizer, tmp_path) as other:
        other.user(email="known@example.org")
        answers = [
            other.client().post("/api/login", json={"email": email, "password": "wrong password"})
            for email in ("known@example.org", "unknown@example.org")
        ]
        assert answers[0].status_code == answers[1].status_code == 401
        assert answers[0].json() == answers[1].json()
        for _ in range(4):
            other.client().post("/api/login", json={"email": "known@example.org", "password": "wrong password"})
        blocked = other.client().post("/api/login", json={"email": "known@example.org", "password": PASSWORD})
        assert blocked.status_code == 429
        assert int(blocked.headers["retry-after"]) > 60
        other.user(email="someone@example.org")
        assert other.browser("someone@example.org").get("/api/account").status_code == 200


def test_logout_ends_the_session_itself(site: Site) -> None:
    browser = member(site, "out@example.org")
    token = browser.cookies[COOKIE]
    assert browser.post("/api/logout").status_code == 200
    kept = httpx2.get(f"{site.url}/api/account", headers={"cookie": f"{COOKIE}={token}"})
    assert kept.status_code == 401


def test_a_new_password_ends_other_sessions_and_tokens(site: Site) -> None:
    browser = member(site, "change@example.org")
    other = site.browser("change@example.org")
    token = browser.post("/api/tokens", json={"name": ".env"}).json()["token"]
    assert site.client(token).get("/v1/models").status_code == 200
    assert browser.post("/api/account/password", json={"old": "wrong one", "new": NEW}).status_code == 401
    assert browser.post("/api/account/password", json={"old": PASSWORD, "new": NEW}).status_code == 200
    assert browser.get("/api/account").status_code == 200
    assert other.get("/api/account").status_code == 401
    assert site.client(token).get("/v1/models").status_code == 401
    assert site.browser("change@example.org", NEW).get("/api/account").status_code == 200


def test_a_reset_link_works_once(site: Site) -> None:
    user_id = site.user(email="reset@example.org")
    first, second = (link(site, "reset", user_id=user_id) for _ in range(2))
    body = {"token": first, "password": NEW}
    assert site.client().post("/api/reset", json=body).status_code == 200
    assert site.client().post("/api/reset", json=body).status_code == 401
    assert site.client().post("/api/reset", json={**body, "token": second}).status_code == 401, "older links end too"
    assert site.browser("reset@example.org", NEW).get("/api/account").status_code == 200


def test_a_sign_in_link_works_once_and_for_nothing_else(site: Site) -> None:
    user_id = site.user(email="owner@example.org", role="admin")
    secret = link(site, "signin", user_id=user_id)
    assert site.client().post("/api/reset", json={"token": secret, "password": NEW}).status_code == 401
    browser = site.client()
    asked = browser.post("/api/signin", json={"token": secret}, headers={"user-agent": "Lynx"})
    assert asked.json()["role"] == "admin"
    assert browser.get("/api/account").status_code == 200
    assert [each["name"] for each in browser.get("/api/sessions").json()["data"]] == ["Lynx"]
    assert site.client().post("/api/signin", json={"token": secret}).status_code == 401


def test_client_tokens_are_listed_and_revoked(site: Site) -> None:
    browser = member(site, "tokens@example.org", balance=10**9)
    made = browser.post("/api/tokens", json={"name": "laptop", "days": 30}).json()
    client = site.client(made["token"])
    assert chat(client).status_code == 200
    listed = browser.get("/api/tokens").json()["data"]
    assert [(each["id"], each["name"]) for each in listed] == [(made["id"], "laptop")]
    assert made["token"] not in str(listed)
    as_cookie = httpx2.get(f"{site.url}/api/account", headers={"cookie": f"{COOKIE}={made['token']}"})
    assert as_cookie.status_code == 401
    assert browser.delete(f"/api/tokens/{made['id']}").status_code == 200
    assert client.get("/v1/models").status_code == 401


def test_forged_tokens_are_refused(site: Site) -> None:
    """Another key, no algorithm, another algorithm, another audience, no session, an old one."""
    browser = member(site, "forged@example.org")
    secret = bytes.fromhex(site.platform.store.secrets.jwt)
    good = jwt.decode(browser.cookies[COOKIE], secret, algorithms=["HS256"], audience=AUDIENCE)
    forged = [
        jwt.encode(good, b"x" * 32, algorithm="HS256"),
        jwt.encode(good, None, algorithm="none"),
        jwt.encode(good, secret * 2, algorithm="HS512"),
        jwt.encode({**good, "aud": "elsewhere"}, secret, algorithm="HS256"),
        jwt.encode({**good, "sid": "0" * 32}, secret, algorithm="HS256"),
        jwt.encode({**good, "sub": "1"}, secret, algorithm="HS256"),
        jwt.encode({**good, "exp": 1}, secret, algorithm="HS256"),
        jwt.encode({name: value for name, value in good.items() if name != "exp"}, secret, algorithm="HS256"),
        "a.b.c",
        "",
    ]
    for token in forged:
        answer = httpx2.get(f"{site.url}/api/account", headers={"cookie": f"{COOKIE}={token}"})
        assert answer.status_code == 401, token


def test_a_disabled_user_is_out_at_once(site: Site) -> None:
    user_id = site.user(email="bad@example.org", balance=10**9)
    browser, client = site.browser("bad@example.org"), site.client(site.key(user_id))
    operator = site.operator()
    assert operator.post(f"/api/admin/users/{user_id}", json={"state": "disabled"}).status_code == 200
    assert browser.get("/api/account").status_code == 401
    assert client.get("/v1/models").status_code == 401
    body = {"email": "bad@example.org", "password": PASSWORD}
    assert site.client().post("/api/login", json=body).status_code == 401
    assert operator.post(f"/api/admin/users/{user_id}", json={"state": "active"}).status_code == 200
    assert client.get("/v1/models").status_code == 200


def test_deletion_forgets_who_it_was_and_keeps_the_books(site: Site) -> None:
    browser = member(site, "gone@example.org", balance=10**9)
    user_id = browser.get("/api/account").json()["id"]
    once = {"idempotency-key": "k"}
    secret = browser.post("/api/keys", json={"name": "my own name"}, headers=once).json()["secret"]
    assert browser.post("/api/presets", json={"name": "mine", "system": "My own words."}).status_code == 201
    assert chat(site.client(secret)).status_code == 200
    assert browser.post("/api/account/delete", json={"password": "wrong one"}).status_code == 401
    assert browser.post("/api/account/delete", json={"password": PASSWORD}).status_code == 200
    assert browser.get("/api/account").status_code == 401
    assert site.client(secret).get("/v1/models").status_code == 401
    kept = row(site, db.users, id=user_id)
    assert (kept.email, kept.name, kept.password, kept.state) == (None, "", "", "deleted")
    assert row(site, db.api_keys, user_id=user_id).name == ""
    assert [site.count(table, user_id) for table in ("presets", "idempotency", "sessions")] == [0, 0, 0]
    assert len(site.bills(user_id)) == 1
    assert site.balance(user_id).total == 0
    site.user(email="gone@example.org")  # the address is free again


def test_one_address_signs_up_and_in_only_so_often(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Also when each time it may: whoever has a password must not keep the cores busy with it."""
    with live_site(tokenizer, tmp_path, options={"entries_per_minute": 3, "signup": "open"}) as site:
        site.user(email="ada@example.org")
        login = {"email": "ada@example.org", "password": PASSWORD}
        answers = [site.client().post("/api/login", json=login) for _ in range(2)]
        for number in range(2):
            sign_up = {"email": f"new{number}@example.org", "password": NEW, "terms": 1}
            answers.append(site.client().post("/api/signup", json=sign_up))
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert answers[-1].json()["error"]["code"] == "rate_limit_exceeded"
        assert int(answers[-1].headers["retry-after"]) <= 20


# ---- keys, money, usage --------------------------------------------------------------------------------------------


def test_a_key_is_shown_once_and_kept_as_a_digest(site: Site) -> None:
    browser = member(site, "keys@example.org")
    body = {"name": "one", "days": 10, "spend_cap": "2.5", "monthly_cap": "1", "models": ["fake"], "concurrency": 3}
    made = browser.post("/api/keys", json=body)
    assert made.status_code == 201
    secret = made.json()["secret"]
    card = browser.get("/api/keys").json()["data"][0]
    assert secret not in str(card)
    assert card["key"] == f"{secret[:6]}...{secret[-4:]}"
    assert (card["spend_cap"], card["monthly_cap"], card["spent"]) == ("2.50", "1.00", "0.00")
    stored = row(site, db.api_keys, id=card["id"])
    assert secret[3:] not in str(stored)
    assert stored.digest == site.platform.store.secrets.digest("key", secret)


def test_a_repeated_request_makes_one_key_and_tells_it_once(site: Site) -> None:
    browser = member(site, "again@example.org")
    headers = {"idempotency-key": "abc"}
    first, second = (browser.post("/api/keys", json={"name": "one"}, headers=headers).json() for _ in range(2))
    assert first["secret"].startswith("sk-")
    assert second == {**first, "secret": None}
    assert len(browser.get("/api/keys").json()["data"]) == 1
    assert browser.post("/api/keys", json={"name": "two"}, headers=headers).status_code == 409
    assert first["secret"] not in str(row(site, db.idempotency, key="abc"))


def test_nobody_else_can_touch_a_key_a_token_or_a_session(site: Site) -> None:
    mine, other = member(site, "mine@example.org"), member(site, "other@example.org")
    key = mine.post("/api/keys", json={}).json()["id"]
    token = mine.post("/api/tokens", json={}).json()["id"]
    session = mine.get("/api/sessions").json()["data"][0]["id"]
    for path in (f"/api/keys/{key}", f"/api/tokens/{token}", f"/api/sessions/{session}", "/api/keys/999999999"):
        assert other.delete(path).status_code == 404
    assert mine.get("/api/account").status_code == 200
    assert other.get("/api/keys").json()["data"] == []
    assert other.delete(f"/api/keys/{10**40}").status_code == 400


def test_a_voucher_is_worth_its_amount_once(site: Site) -> None:
    browser, other = member(site, "rich@example.org"), member(site, "poor@example.org")
    code = voucher(site, 3 * 10**9)
    typed = code.lower().replace("-", " ")
    redeemed = browser.post("/api/vouchers/redeem", json={"code": typed})
    assert redeemed.json() == {"amount": "3.00", "kind": "topped_up"}
    assert browser.get("/api/balance").json()["topped_up"] == "3.00"
    assert browser.post("/api/vouchers/redeem", json={"code": code}).status_code == 404
    assert other.post("/api/vouchers/redeem", json={"code": code}).status_code == 404
    assert [entry["kind"] for entry in browser.get("/api/ledger").json()["data"]] == ["voucher"]


def test_redeeming_again_with_the_same_idempotency_key_repeats_the_answer(site: Site) -> None:
    browser = member(site, "twice@example.org")
    code, headers = voucher(site, 10**9), {"idempotency-key": "k"}
    answers = [browser.post("/api/vouchers/redeem", json={"code": code}, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert browser.get("/api/balance").json()["total"] == "1.00"


def test_guessing_vouchers_is_slowed_down(site: Site) -> None:
    browser = member(site, "guess@example.org")
    statuses = [browser.post("/api/vouchers/redeem", json={"code": str(n)}).status_code for n in range(7)]
    assert statuses == [404] * 5 + [429] * 2


def test_usage_by_day_model_and_key_adds_up_to_what_was_paid(site: Site) -> None:
    user_id = site.user(email="usage@example.org", balance=10**9)
    browser = site.browser("usage@example.org")
    secrets = [browser.post("/api/keys", json={"name": name}).json()["secret"] for name in ("=one", "two")]
    for secret in (*secrets, secrets[1]):
        assert chat(site.client(secret)).status_code == 200
    rows = browser.get("/api/usage", params={"by": "day,model,key"}).json()["data"]
    assert [(each["key_name"], each["requests"]) for each in rows] == [("=one", 1), ("two", 2)]
    whole = browser.get("/api/usage", params={"by": "model"}).json()["data"][0]
    assert (whole["model"], whole["requests"]) == ("fake", 3)
    spent = 10**9 - site.balance(user_id).total
    assert whole["amount"] == f"0.{spent:09d}".rstrip("0")
    text = browser.get("/api/usage.csv", params={"by": "day,key"})
    assert text.headers["content-type"] == "text/csv; charset=utf-8"
    table = list(csv.DictReader(io.StringIO(text.text)))
    assert [each["key_name"] for each in table] == ["'=one", "two"]
    assert browser.get("/api/usage", params={"by": "weather"}).status_code == 400
    assert browser.get("/api/usage", params={"from": "yesterday"}).status_code == 400
    assert browser.get("/api/usage", params={"from": "2999-01-01"}).json()["data"] == []


def test_prices_are_for_a_million_tokens(site: Site) -> None:
    shown = member(site, "prices@example.org").get("/api/prices").json()
    price = shown["data"][0]
    assert (price["hit"], price["miss"], price["output"]) == ("0.014", "0.14", "0.28")
    assert shown["currency"] == "USD"


# ---- operators -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "users"),
        ("GET", "audit"),
        ("GET", "books"),
        ("GET", "vouchers"),
        ("GET", "invites"),
        ("GET", "usage"),
        ("GET", "load"),
    ]
    + [("POST", path) for path in ("users", "users/1", "users/1/grants", "prices", "vouchers", "invites")],
)
def test_operators_only(site: Site, method: str, path: str) -> None:
    email = f"{method}{path.replace('/', '-')}@example.org"
    assert member(site, email).request(method, f"/api/admin/{path}", json={}).status_code == 403
    assert site.client().request(method, f"/api/admin/{path}", json={}).status_code == 401


def test_an_operators_day(site: Site) -> None:
    operator = site.operator()
    made = operator.post("/api/admin/users", json={"email": "made@example.org"}).json()
    reset = {"token": made["reset"], "password": NEW}
    assert site.client().post("/api/reset", json=reset).status_code == 200
    browser = site.browser("made@example.org", NEW)
    path, headers = f"/api/admin/users/{made['id']}", {"idempotency-key": "grant-1"}
    body = {"amount": "5", "days": 30, "reason": "welcome"}
    grants = [operator.post(f"{path}/grants", json=body, headers=headers).json() for _ in range(2)]
    assert grants[0] == grants[1]
    assert browser.get("/api/balance").json()["granted"] == "5.00"
    assert operator.post(f"{path}/corrections", json={"amount": "2"}).status_code == 201
    assert operator.post(f"{path}/corrections", json={"amount": "9"}).status_code == 402
    found = operator.get("/api/admin/users", params={"query": "made@"}).json()["data"]
    assert [(each["id"], each["balance"]) for each in found] == [(made["id"], "3.00")]
    codes = operator.post("/api/admin/vouchers", json={"amount": "1.5", "count": 2}).json()["codes"]
    assert browser.post("/api/vouchers/redeem", json={"code": codes[1]}).json()["amount"] == "1.50"
    invite = operator.post("/api/admin/invites", json={"grant": "1", "uses": 2}).json()["token"]
    sign_up = {"email": "invited@example.org", "password": NEW, "invite": invite, "terms": 1}
    assert site.client().post("/api/signup", json=sign_up).status_code == 200
    listed = operator.get("/api/admin/invites").json()["data"][0]
    assert (listed["uses_left"], listed["grant"]) == (1, "1.00")
    assert operator.delete(f"/api/admin/invites/{listed['id']}").status_code == 200
    assert site.client().post("/api/signup", json={**sign_up, "email": "late@example.org"}).status_code == 401
    price = {"model": "other", "hit": "0.1", "miss": "1", "output": "2"}
    assert operator.post("/api/admin/prices", json=price).json() == {"model": "other", "version": 1}
    assert operator.post("/api/admin/prices", json={**price, "hit": "-1"}).status_code == 400
    books = operator.get("/api/admin/books").json()
    assert books["faults"] == []
    actions = [entry["action"] for entry in operator.get("/api/admin/audit").json()["data"]]
    assert {"grant", "correction", "vouchers", "invite", "invite cancelled", "price", "user", "sign-up"} <= set(actions)
    assert "made@example.org" not in str(operator.get("/api/admin/audit").json())


def test_money_that_an_operator_moves_twice_by_mistake_moves_once(site: Site) -> None:
    operator, user_id = site.operator(), site.user(balance=10 * 10**9)
    path, headers = f"/api/admin/users/{user_id}/corrections", {"idempotency-key": "correction-1"}
    for _ in range(2):
        assert operator.post(path, json={"amount": "2"}, headers=headers).json() == {"amount": "2.00"}
    assert site.balance(user_id).total == 8 * 10**9
    assert operator.post(path, json={"amount": "3"}, headers=headers).status_code == 409
    headers, body = {"idempotency-key": "vouchers-1"}, {"amount": "1", "count": 3}
    first, second = (operator.post("/api/admin/vouchers", json=body, headers=headers).json() for _ in range(2))
    assert len(first["codes"]) == 3
    assert second == {"count": 3, "codes": []}, "codes are shown once and kept nowhere"


def test_an_operator_sees_what_a_user_asks_about(site: Site) -> None:
    operator, browser = site.operator(), member(site, "asks@example.org", balance=10**9)
    user_id = browser.get("/api/account").json()["id"]
    secret = browser.post("/api/keys", json={"name": "laptop"}).json()["secret"]
    assert chat(site.client(secret)).status_code == 200
    seen = operator.get(f"/api/admin/users/{user_id}").json()
    assert (seen["email"], seen["state"], seen["holds"]) == ("asks@example.org", "active", 0)
    assert seen["balance"]["total"] == browser.get("/api/balance").json()["total"]
    assert [key["name"] for key in seen["keys"]] == ["laptop"]
    assert secret not in str(seen)
    leaked = f"/api/admin/users/{user_id}/keys/{seen['keys'][0]['id']}"
    assert operator.delete(f"/api/admin/users/{site.user()}/keys/{seen['keys'][0]['id']}").status_code == 404
    assert operator.delete(leaked).status_code == 200
    assert site.client(secret).get("/v1/models").status_code == 401
    entries = operator.get(f"/api/admin/users/{user_id}/ledger").json()["data"]
    assert entries == browser.get("/api/ledger").json()["data"]
    assert [entry["kind"] for entry in entries] == ["usage", "grant"]
    used = operator.get("/api/admin/usage", params={"by": "user,key", "user": user_id}).json()["data"]
    assert [(each["user"], each["email"], each["key_name"]) for each in used] == [
        (user_id, "asks@example.org", "laptop")
    ]
    assert browser.get("/api/usage", params={"by": "user"}).status_code == 400
    table = operator.get("/api/admin/usage.csv", params={"by": "user"}).text.splitlines()
    assert table[0] == "user,email,requests,cached_tokens,miss_tokens,completion_tokens,amount"
    assert any(line.startswith(f"{user_id},asks@example.org,1,") for line in table)
    assert operator.get("/api/admin/users/999999").json()["error"]["code"] == "user_not_found"


def test_an_operator_deletes_who_asks_for_it(site: Site) -> None:
    operator, browser = site.operator(), member(site, "forget@example.org", balance=10**9)
    user_id = browser.get("/api/account").json()["id"]
    path = f"/api/admin/users/{user_id}"
    assert operator.post(f"{path}/delete").status_code == 200
    assert browser.get("/api/account").status_code == 401
    assert row(site, db.users, id=user_id).email is None
    for after, body in ((f"{path}/delete", None), (f"{path}/grants", {"amount": "1"}), (path, {"state": "active"})):
        assert operator.post(after, json=body).json()["error"]["code"] == "account_inactive"
    own = operator.get("/api/account").json()["id"]
    assert operator.post(f"/api/admin/users/{own}/delete").json()["error"]["code"] == "own_account"


def test_an_operator_cannot_lock_the_own_account(site: Site) -> None:
    operator = site.operator()
    own = operator.get("/api/account").json()["id"]
    assert operator.post(f"/api/admin/users/{own}", json={"role": "user"}).status_code == 400


def test_metrics_are_for_operators(site: Site) -> None:
    _, client = site.customer()
    assert site.client().get("/metrics").status_code == 401
    assert client.get("/metrics").status_code == 403
    scraper = site.client(site.key(site.user(role="admin")))
    assert "leadline_requests_running" in scraper.get("/metrics").text
    assert site.operator().get("/api/admin/load").json()["stats"]["alive"] is True


# ---- doors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"host": "evil.example"},
    ],
)
def test_other_sites_change_nothing(site: Site, headers: dict[str, str]) -> None:
    browser = member(site, f"{'-'.join(headers.values()).replace(':', '').replace('/', '')}@example.org")
    assert browser.post("/api/keys", json={}, headers=headers).status_code == 403
    assert browser.get("/api/keys").json()["data"] == []


def test_the_protocol_of_2024_is_asked_by_other_sites_programs(site: Site) -> None:
    for headers in ({"origin": "https://chat.example"}, {"sec-fetch-site": "cross-site"}):
        assert site.client().post("/api/v0/nowhere", json={}, headers=headers).status_code == 404


def test_own_pages_and_programs_may(site: Site) -> None:
    browser = member(site, "own@example.org")
    for headers in ({"origin": site.url, "sec-fetch-site": "same-origin"}, {}):
        assert browser.post("/api/keys", json={}, headers=headers).status_code == 201
    form = browser.post("/api/keys", data={"name": "x"})
    assert form.status_code == 415


def test_cors_is_open_on_the_api_without_credentials_and_shut_on_the_site(site: Site) -> None:
    asks = {"origin": "https://app.example", "access-control-request-method": "POST"}
    preflight = httpx2.options(f"{site.url}/v1/chat/completions", headers=asks)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    _, client = site.customer()
    answer = client.get("/v1/models", headers={"origin": "https://app.example"})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in answer.headers
    shut = httpx2.options(f"{site.url}/api/keys", headers=asks)
    assert "access-control-allow-origin" not in shut.headers


def test_a_trusted_proxy_names_the_client_and_nobody_else_does(tokenizer: Tokenizer, tmp_path: Path) -> None:
    forwarded = {"x-forwarded-for": "203.0.113.7", "x-forwarded-proto": "https"}
    for trusted, address, secure in ((("127.0.0.1",), "203.0.113.7", True), ((), "127.0.0.1", False)):
        folder = tmp_path / address
        folder.mkdir()
        with live_site(tokenizer, folder, options={"trusted_proxies": trusted}) as other:
            other.user(email="a@example.org", role="admin")
            body = {"email": "a@example.org", "password": PASSWORD}
            login = other.client().post("/api/login", json=body, headers=forwarded)
            assert ("secure" in login.headers["set-cookie"].lower()) is secure
            assert row(other, db.audit, action="login").address == address
