"""For everyone: keyboards, two languages, two themes, two widths, screen readers."""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.browser import CHOSEN, DESK, PHONE, Visitor, aside, visitor
from tests.e2e.website.conftest import MONEY
from tests.server.platform.site import Site

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

LOOKS = [(language, theme) for language in ("en", "zh-CN") for theme in ("light", "dark")]
PLACES = (
    "/ /platform /platform/keys /platform/usage /platform/billing /platform/pricing /platform/access /platform/account "
    "/admin /admin/users /admin/invites /admin/vouchers /admin/prices /admin/models /admin/terms /admin/usage "
    "/admin/books /admin/audit /terms /login /signup /signin /reset /s/nothing /c/nothing"
).split()
NOT_AFFILIATED = re.compile("Not affiliated with DeepSeek|与 DeepSeek 无任何关联")


def test_keys_alone_are_enough(ada: Visitor) -> None:
    ada.page.keyboard.press("Control+/")
    expect(ada.page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
    ada.page.keyboard.press("Escape")
    expect(ada.page.get_by_role("dialog")).to_have_count(0)
    ada.ask("Hello")
    ada.page.keyboard.press("Control+Shift+C")
    expect(ada.page.get_by_text("Copied")).to_be_visible()
    assert "fathoms" in ada.page.evaluate("navigator.clipboard.readText()")
    ada.page.keyboard.press("Control+b")
    expect(ada.history).to_have_count(0)
    ada.page.keyboard.press("Control+b")
    expect(ada.history).to_have_count(1)
    live = ada.page.locator("[aria-live=polite]").first
    expect(live).to_contain_text("The answer is complete: Four fathoms")


def test_language_and_theme_are_switched_and_kept(ada: Visitor) -> None:
    ada.menu(re.compile("Account and more"), "Settings")
    ada.button("Dark", exact=True).click()
    ada.page.get_by_label("Language").select_option("zh-CN")
    expect(ada.page.get_by_role("heading", name="设置")).to_be_visible()
    ada.page.reload()
    expect(ada.composer).to_have_attribute("placeholder", "想问什么？")
    assert ada.page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert ada.page.evaluate("document.documentElement.lang") == "zh-CN"


def every_look(someone: Visitor, where: str) -> list[Any]:
    """What is wrong with the page as it stands: both languages and themes at both widths."""
    faults: list[Any] = []
    for screen in (DESK, PHONE):
        someone.page.set_viewport_size(screen)  # type: ignore[arg-type]
        for language, theme in LOOKS:
            someone.look(language, theme)
            found = [*lasting(someone), *(["too wide"] if someone.overflow() > 0 else [])]
            faults += [(where, screen["width"], language, theme, fault) for fault in found]
    someone.page.set_viewport_size(DESK)  # type: ignore[arg-type]
    someone.look("en", "light")
    return faults


def lasting(someone: Visitor) -> list[str]:
    """What axe finds and finds again: on a busy machine it may meet a page between two looks."""
    first = someone.serious()
    return first and [fault for fault in someone.serious() if fault in first]


@pytest.fixture
def still(browser: Browser, site: Site) -> Generator[Visitor, None, None]:
    """An operator whose pages do not move: what is still fading in has not its colours yet."""
    user = aside(lambda: site.user(balance=MONEY, role="admin"))
    with visitor(browser, site, viewport=DESK, reduced_motion="reduce") as someone:
        someone.enter(aside(lambda: site.email(user)))
        yield someone


def test_every_page_fits_and_axe_finds_nothing_serious(still: Visitor) -> None:
    for place in PLACES:
        still.open(place)
        expect(still.page.locator("h1, h2").first).to_be_attached()
        expect(still.page.locator(".skeleton")).to_have_count(0)
        expect(still.page.get_by_text(NOT_AFFILIATED).first).to_be_visible()
        assert every_look(still, place) == []


def test_a_chat_is_sound_with_all_that_is_in_it(still: Visitor) -> None:
    still.composer.fill("something rich, and a_word_" + "x" * 200)
    still.button("Send", exact=True).click()
    still.ended()
    expect(still.answers.last.locator("math").first).to_be_visible()
    expect(still.answers.last.locator(".hljs-keyword").first).to_be_visible()
    assert every_look(still, "an answer") == []
    still.composer.press("ArrowUp")
    assert every_look(still, "an edit") == []


def test_with_reduced_motion_another_theme_is_there_at_once(still: Visitor) -> None:
    """No colour fades: inherited ones would do so from each element to the next, for as long as the page is deep."""
    still.ask("something rich")
    still.page.evaluate(CHOSEN, {"theme": "dark"})
    moving = still.page.evaluate(
        "new Promise((then) => requestAnimationFrame(() => then(document.getAnimations().length)))"
    )
    assert moving == 0


def test_dialogs_are_sound_too(still: Visitor) -> None:
    still.ask("Hello")
    still.page.keyboard.press("Control+k")
    still.page.get_by_role("combobox", name="Search").fill("hello")
    expect(still.page.get_by_role("option").first).to_be_visible()
    assert every_look(still, "search") == []
    still.page.keyboard.press("Escape")
    for name in ("Settings", "Keyboard shortcuts"):
        still.menu(re.compile("Account and more"), name)
        expect(still.page.get_by_role("dialog")).to_be_visible()
        assert every_look(still, name) == []
        still.page.keyboard.press("Escape")
    still.button("How it answers").click()
    expect(still.button(re.compile("^Fiction"))).to_be_visible()
    assert every_look(still, "options") == []
    still.page.keyboard.press("Escape")
    still.menu("More about this chat", "Share")
    still.button("Make a link").click()
    assert every_look(still, "share") == []


def test_the_drawer_of_a_phone_takes_the_focus_and_gives_it_back(ada: Visitor) -> None:
    ada.ask("Hello")
    ada.page.set_viewport_size(PHONE)  # type: ignore[arg-type]
    opener = ada.button("Show the list of chats")
    opener.click()
    expect(ada.button("Hide the list of chats").last).to_be_focused()
    assert ada.page.evaluate("document.querySelector('main').inert")
    ada.page.keyboard.press("Escape")
    expect(opener).to_be_focused()
    opener.click()
    ada.history.first.click()
    expect(ada.history).to_have_count(0)


def test_refusals_are_said_in_the_language_of_the_page(ada: Visitor) -> None:
    ada.open("/platform/billing")
    for language, words in (("en", "this voucher is wrong"), ("zh-CN", "兑换码无效")):
        ada.look(language, "light")
        ada.page.locator("form input.mono").fill("AAAAA-AAAAA-AAAAA-AAAAA")
        ada.page.locator("form button[type=submit]").click()
        expect(ada.page.get_by_role("alert")).to_contain_text(re.compile(words, re.IGNORECASE))
    ada.open("/platform/account")
    ada.page.get_by_label("旧密码").fill("not this one at all")
    ada.page.get_by_label("新密码").fill("five fathoms and a third")
    ada.button("修改密码").click()
    expect(ada.page.get_by_role("alert")).to_contain_text("密码不正确")  # and nobody is signed out by it


def test_a_shared_chat_prints_as_what_was_said(ada: Visitor) -> None:
    ada.ask("something rich")
    ada.page.emulate_media(media="print")
    expect(ada.questions.last).to_be_visible()
    expect(ada.answers.last.locator("math").first).to_be_visible()
    for hidden in (ada.composer, ada.history, ada.answers.last.locator(".code-copy"), ada.button("Answer anew")):
        expect(hidden.first).to_be_hidden()
    assert ada.page.evaluate("getComputedStyle(document.querySelector('.scroller')).overflowY") == "visible"
