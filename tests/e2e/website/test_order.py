"""Keeping order among chats: search, names, deletion, sharing, export and import."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from leadline.tokenizer import Tokenizer
from tests.e2e.browser import Visitor, aside, visitor, website
from tests.e2e.website.conftest import MONEY
from tests.server.platform.site import Site

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


def test_search_finds_english_and_chinese(ada: Visitor) -> None:
    ada.ask("The harbour of Valparaiso")
    ada.page.keyboard.press("Control+Shift+O")
    ada.ask("今天的海水很深")
    for words, title in (("valpar", "The harbour of Valparaiso"), ("海水", "今天的海水很深")):
        ada.page.keyboard.press("Control+k")
        ada.page.get_by_role("combobox", name="Search").fill(words)
        expect(ada.page.get_by_role("option").first).to_contain_text(title)
        ada.page.keyboard.press("Enter")
        expect(ada.questions.last).to_contain_text(title)


def test_search_opens_the_branch_of_what_it_found(ada: Visitor) -> None:
    ada.ask("The first wording")
    ada.edit_last("Another version")
    ada.page.keyboard.press("Control+k")
    ada.page.get_by_role("combobox", name="Search").fill("wording")
    expect(ada.page.get_by_role("option").filter(has_text="first wording").first).to_be_visible()
    ada.page.get_by_role("option").filter(has=ada.page.locator("mark")).last.click()
    expect(ada.questions.last).to_contain_text("The first wording")
    expect(ada.questions.last).to_contain_text("1 / 2")


def test_rename_pin_delete_and_undo(ada: Visitor) -> None:
    ada.ask("Hello there")
    expect(ada.history).to_have_count(1)
    ada.menu(re.compile("^Actions for"), "Rename")
    ada.page.get_by_label("Rename").fill("Soundings")
    ada.page.keyboard.press("Enter")
    expect(ada.history).to_have_text("Soundings")
    ada.menu("Actions for Soundings", "Pin")
    expect(ada.page.get_by_role("heading", name="Pinned")).to_be_visible()
    ada.menu("Actions for Soundings", "Delete")
    expect(ada.history).to_have_count(0)
    expect(ada.page).to_have_url(f"{ada.site.url}/")
    ada.button("Undo").click()
    expect(ada.history).to_have_text("Soundings")
    expect(ada.questions).to_have_count(1)


def test_a_shared_chat_is_read_by_anyone_until_revoked(ada: Visitor, browser: Browser, site: Site) -> None:
    ada.ask("Shall we share this?")
    ada.menu("More about this chat", "Share")
    ada.button("Make a link").click()
    link = ada.page.get_by_label("Link", exact=True).input_value()
    ada.button("Close").click()
    ada.ask("This comes later")
    with visitor(browser, site) as stranger:
        stranger.page.goto(link)
        expect(stranger.page.get_by_text("Shall we share this?").last).to_be_visible()
        expect(stranger.page.get_by_text("This comes later")).to_have_count(0)
        assert stranger.serious() == []
        ada.menu("More about this chat", "Share")
        ada.button("Revoke").click()
        expect(ada.page.get_by_label("Link", exact=True)).to_have_count(0)
        stranger.page.reload()
        expect(stranger.page.get_by_text("This link leads nowhere")).to_be_visible()


def test_export_and_import_give_the_same_chats(ada: Visitor, tmp_path: Path) -> None:
    ada.ask("First question")
    ada.edit_last("First question, otherwise")

    def export() -> Any:
        ada.menu(re.compile("Account and more"), "Settings")
        with ada.page.expect_download() as download:
            ada.page.get_by_role("link", name="Export all chats").click()
        download.value.save_as(tmp_path / "chats.json")
        return json.loads((tmp_path / "chats.json").read_text())

    first = export()
    ada.page.locator("dialog input[type=file]").set_input_files(tmp_path / "chats.json")
    expect(ada.history).to_have_count(2)
    ada.history.first.click()
    expect(ada.questions.last).to_contain_text("2 / 2")
    second = export()
    assert "First question, otherwise" in json.dumps(first)
    assert [first["chats"][0]] * 2 == second["chats"]
    ada.page.get_by_role("dialog").get_by_role("button", name="Close").click()
    with ada.page.expect_download() as download:
        ada.menu("More about this chat", "Export as Markdown")
    download.value.save_as(tmp_path / "chat.md")
    assert "First question, otherwise" in (tmp_path / "chat.md").read_text()
    ada.menu(re.compile("Account and more"), "Settings")
    ada.page.locator("dialog input[type=file]").set_input_files(tmp_path / "chat.md")
    expect(ada.history).to_have_count(3)


@pytest.fixture
def titled(tokenizer: Tokenizer, tmp_path: Path) -> Generator[Site, None, None]:
    """A server whose model writes the titles."""
    engine: Any = {"options": {"titles": "model"}, "answer": " Soundings"}
    opened = contextlib.ExitStack()
    yield aside(lambda: opened.enter_context(website(tokenizer, tmp_path, **engine)))
    aside(opened.close)


def test_a_title_that_the_model_writes_appears_when_it_stands(browser: Browser, titled: Site) -> None:
    user = aside(lambda: titled.user(balance=MONEY))
    with visitor(browser, titled) as someone:
        someone.enter(aside(lambda: titled.email(user)))
        someone.ask("Hello there")
        expect(someone.history).to_have_text("Soundings")
        expect(someone.page.locator("h1")).to_have_text("Soundings")
        expect(someone.page).to_have_title("Soundings · leadline")
