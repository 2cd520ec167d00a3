"""Coming in: by a link, by an invitation, by a password."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.browser import Visitor, aside, sign_in_link, visitor
from tests.server.platform.site import PASSWORD, Site

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


def test_a_sign_in_link_works_once(operator: Visitor, browser: Browser, site: Site) -> None:
    user = aside(lambda: site.user())
    link = sign_in_link(site, user).removeprefix(site.url)
    for attempt in range(2):
        with visitor(browser, site) as someone:
            someone.open(link)
            someone.button("Sign me in").click()
            shown = someone.composer if attempt == 0 else someone.page.get_by_role("alert")
            expect(shown).to_be_visible()
    expect(operator.page).to_have_url(f"{site.url}/")


def test_an_operator_invites_someone_who_signs_up_and_chats(operator: Visitor, browser: Browser, site: Site) -> None:
    operator.open("/admin/invites")
    operator.page.get_by_label("Starting credit").fill("2.50")
    operator.button("Make a link").click()
    link = operator.page.get_by_label("Invitation link").input_value()
    assert link.startswith(f"{site.url}/signup#")
    with visitor(browser, site) as bob:
        bob.page.goto(link)
        bob.page.get_by_label("Email").fill("bob@example.org")
        bob.page.get_by_label("Password").fill(PASSWORD)
        bob.button("Create an account").click()  # the browser asks for the box to be ticked first
        expect(bob.page).to_have_url(link)
        bob.page.get_by_role("checkbox").check()
        bob.button("Create an account").click()
        expect(bob.composer).to_be_visible()
        assert "fathoms" in bob.ask("Hello").inner_text()
        bob.open("/platform/billing")
        expect(bob.page.locator("#balance")).to_contain_text("$2.4999")


def test_a_wrong_password_is_told_and_the_page_stays(browser: Browser, site: Site) -> None:
    with visitor(browser, site) as someone:
        someone.open("/platform/keys")
        expect(someone.page).to_have_url(f"{site.url}/login")
        someone.page.get_by_label("Email").fill("nobody@example.org")
        someone.page.get_by_label("Password").fill("four fathoms and a third")
        someone.button("Sign in").click()
        expect(someone.page.get_by_role("alert")).to_contain_text("rong email address or password")
