"""When something is wrong: no money, no connection, too much, a full chat."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.browser import Visitor, aside, visitor
from tests.server.platform.site import Site

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


def test_without_money_the_words_stay_and_a_way_out_is_shown(browser: Browser, site: Site) -> None:
    user = aside(lambda: site.user(balance=1000))
    with visitor(browser, site) as poor:
        poor.sign_in(aside(lambda: site.email(user)))
        poor.composer.fill("How deep is it?")
        poor.composer.press("Enter")
        expect(poor.page.get_by_role("alert")).to_contain_text("Your balance is used up")
        expect(poor.composer).to_have_value("How deep is it?")
        expect(poor.page).to_have_url(f"{site.url}/")
        poor.page.get_by_role("link", name="Add money").click()
        expect(poor.page.get_by_label("Voucher code")).to_be_visible()
        poor.open("/")
        expect(poor.page.get_by_text("Your chats will be listed here.")).to_be_visible()


def test_too_many_requests_count_down(ada: Visitor) -> None:
    body = {"error": {"message": "slow down", "type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded"}}
    refused = {"status": 429, "headers": {"retry-after": "2"}, "json": body}
    ada.page.route("**/messages", lambda route: route.fulfill(**refused), times=1)
    ada.composer.fill("Hello")
    ada.composer.press("Enter")
    expect(ada.button(re.compile("Again in"))).to_be_disabled()
    ada.button("Try again").click()
    ada.ended()
    expect(ada.answers.last).to_contain_text("fathoms")


def test_a_lost_connection_is_taken_up_where_it_broke(ada: Visitor) -> None:
    ada.say("a long answer, please")
    expect(ada.answers.last).to_contain_text("2 fathoms")
    ada.context.set_offline(True)
    expect(ada.page.get_by_text("You are offline")).to_be_visible()
    ada.page.evaluate("window.stop()")
    expect(ada.page.get_by_text("The connection was lost")).to_be_visible()
    ada.context.set_offline(False)
    expect(ada.page.get_by_text("The connection was lost")).to_have_count(0)
    expect(ada.page.get_by_text("You are offline")).to_have_count(0)
    ada.button("Stop").click()
    ada.ended()
    numbers = [int(number) for number in re.findall(r"(\d+) fathoms,", ada.answers.last.inner_text())]
    assert numbers == list(range(len(numbers)))


def test_a_server_that_is_away_is_said_and_tried_again(ada: Visitor) -> None:
    ada.page.route("**/api/session", lambda route: route.abort(), times=1)
    ada.page.reload()
    expect(ada.page.get_by_role("heading", name="The server is not there")).to_be_visible()
    ada.button("Try again").click()
    expect(ada.composer).to_be_visible()
    ada.page.route("**/PlatformPage-*.js", lambda route: route.abort())
    ada.menu(re.compile("Account and more"), "API platform")
    expect(ada.page.get_by_role("heading", name="The server is not there")).to_be_visible()
    ada.page.unroute("**/PlatformPage-*.js")
    ada.button("Try again").click()
    expect(ada.page.get_by_role("heading", name="Quick start")).to_be_visible()


def test_what_fills_the_context_is_not_continued(ada: Visitor) -> None:
    answer = ada.ask("a long answer, please: " + "water " * 500)
    expect(answer).to_contain_text("The answer was cut at its limit.")
    expect(ada.button("Continue in a new chat")).to_be_visible()
    expect(ada.button("Continue", exact=True)).to_have_count(0)


def test_a_full_chat_offers_a_new_one_that_carries_on(ada: Visitor) -> None:
    ada.ask("Hello " * 20)
    ada.composer.fill("water " * 1200)
    expect(ada.page.get_by_text("This chat is almost full")).to_be_visible()
    ada.button("Continue in a new chat").click()
    expect(ada.page.get_by_role("list", name="Attached files")).to_contain_text(".txt")
    expect(ada.answers).to_have_count(0)
