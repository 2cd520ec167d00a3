"""The platform and the operators: keys, bills, vouchers, grants, records."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import openai
import pytest
from playwright.sync_api import Browser, expect

from leadline.server.money import format_money
from tests.e2e.browser import Visitor, aside
from tests.e2e.website.conftest import MONEY
from tests.server.platform.books import HIT, MISS, OUTPUT
from tests.server.platform.site import Site, chat

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


def test_a_key_works_from_the_openai_client_and_the_bill_agrees(ada: Visitor, site: Site) -> None:
    ada.open("/platform/keys")
    ada.button("New key").click()
    ada.page.get_by_label("Name").fill("laptop")
    ada.page.locator("dialog").get_by_role("button", name="New key").click()
    secret = ada.page.get_by_label("laptop").input_value()
    ada.button("Copy for .env").click()
    assert ada.page.evaluate("navigator.clipboard.readText()") == f"DEEPSEEK={secret}\nDEEPSEEK_BASE_URL={site.url}\n"
    ada.page.reload()
    expect(ada.page.get_by_role("cell", name="laptop", exact=True)).to_be_visible()
    assert secret not in ada.page.content()

    def call() -> Any:
        with openai.OpenAI(base_url=f"{site.url}/v1", api_key=secret) as client:
            messages: Any = [{"role": "user", "content": "Hello"}]
            return client.chat.completions.create(model="fake", messages=messages)

    usage = aside(call).usage
    cached = usage.prompt_tokens_details.cached_tokens
    cost = HIT * cached + MISS * (usage.prompt_tokens - cached) + OUTPUT * usage.completion_tokens
    ada.open("/platform/billing")
    assert ada.page.locator("#balance").get_attribute("data-amount") == format_money(MONEY - cost)
    expect(ada.page.get_by_role("cell", name=f"−${format_money(cost)}")).to_be_visible()
    ada.open("/platform/usage")
    expect(ada.page.locator("#spent")).to_have_text(f"${format_money(cost)}")
    expect(ada.page.locator("canvas")).to_be_visible()
    with ada.page.expect_download() as download:
        ada.page.get_by_role("link", name="CSV").click()
    assert format_money(cost) in Path(download.value.path()).read_text()


def test_an_answers_cost_is_what_the_balance_lost(ada: Visitor) -> None:
    answer = ada.ask("Hello")
    cost = answer.locator(".cost").get_attribute("data-cost") or ""
    expect(answer).to_contain_text(re.compile(r"\d+ tokens\b"))
    ada.open("/platform/billing")
    left = ada.page.locator("#balance").get_attribute("data-amount")
    assert left == format_money(MONEY - round(float(cost) * 10**9))


def test_a_voucher_is_made_and_redeemed_once(operator: Visitor, ada: Visitor) -> None:
    operator.open("/admin/vouchers")
    operator.button("Make vouchers").click()
    code = operator.page.locator("#codes").input_value()
    ada.open("/platform/billing")
    field = ada.page.get_by_label("Voucher code")
    field.fill(code.lower())
    ada.button("Redeem a voucher").click()
    expect(ada.page.locator("#balance")).to_have_text("$6.00")
    field.fill(code)
    ada.button("Redeem a voucher").click()
    expect(ada.page.get_by_role("alert")).to_be_visible()
    expect(ada.page.locator("#balance")).to_have_text("$6.00")


def test_an_operator_grants_prices_and_sees_it_in_the_log(operator: Visitor, browser: Browser, site: Site) -> None:
    user = aside(lambda: site.user(email="carol@example.org"))
    operator.open("/admin/users")
    operator.page.get_by_label("Search by email").fill("carol@")
    operator.menu("Actions for carol@example.org", "Grant credit")
    operator.page.get_by_label(re.compile("^Amount")).fill("3.25")
    operator.button("Apply").click()
    expect(operator.page.get_by_role("cell", name="$3.25")).to_be_visible()
    assert aside(lambda: site.balance(user)).granted == 3_250_000_000
    operator.open("/admin/models")
    operator.button("Edit the licence record").click()
    operator.page.get_by_label("Name").fill("A model licence")
    operator.page.get_by_label(re.compile("^Use restrictions")).fill("No harm.\nNo fraud.")
    operator.button("Save").click()
    expect(operator.page.get_by_text("No fraud.")).to_be_visible()
    operator.open("/admin/audit")
    expect(operator.page.get_by_role("cell", name="grant", exact=True).first).to_be_visible()
    operator.open("/admin/books")
    expect(operator.page.get_by_text("The books add up.")).to_be_visible()
    operator.open("/admin")
    expect(operator.page.get_by_text("Tokens a second", exact=True)).to_be_visible()


def test_a_key_that_is_revoked_is_gone(ada: Visitor) -> None:
    ada.open("/platform/keys")
    for name in ("kept", "revoked"):
        ada.button("New key").click()
        ada.page.get_by_label("Name").fill(name)
        ada.page.locator("dialog").get_by_role("button", name="New key").click()
        expect(ada.page.get_by_role("cell", name=name, exact=True)).to_be_visible()
    ada.button("Revoke revoked").click()
    ada.page.locator("dialog").get_by_role("button", name="Revoke").click()
    expect(ada.page.get_by_role("cell", name="revoked", exact=True)).to_have_count(0)
    expect(ada.page.get_by_role("cell", name="kept", exact=True)).to_be_visible()


def test_an_operator_sees_who_spent_what_and_deletes_who_asks(operator: Visitor, site: Site) -> None:
    def used() -> None:
        user = site.user(email="dora@example.org", balance=10**9)
        assert chat(site.client(site.key(user, name="dora's laptop"))).status_code == 200

    aside(used)
    operator.open("/admin/usage")
    line = operator.page.get_by_role("row", name=re.compile("dora@example.org"))
    expect(line).to_contain_text("dora's laptop")
    operator.open("/admin/users")
    operator.page.get_by_label("Search by email").fill("dora@")
    operator.menu("Actions for dora@example.org", "Delete account")
    operator.button("Delete account").click()
    expect(operator.page.get_by_text("Nobody found.")).to_be_visible()
    operator.open("/admin/usage")
    expect(operator.page.get_by_text("dora@example.org")).to_have_count(0)
