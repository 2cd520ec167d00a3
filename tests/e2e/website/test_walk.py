"""The walk: what `make serve` starts, the model that ships, and two people in a Chromium from the first link on.

It says nothing of what the model answers, which is small and says what it likes; and nothing of how fast it does.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.browser import DESK, PHONE, Visitor, aside, visitor
from tests.server.platform.site import PASSWORD
from tests.source import ROOT

pytestmark = [pytest.mark.browser, pytest.mark.e2e, pytest.mark.timeout(900)]

STARTED = re.compile(r"(?P<url>http://127\.0\.0\.1:\d+)/signin#(?P<token>[\w-]+)")
LONG = "Tell me a very long story about a ship, a lighthouse and the sea, with many chapters."
TRIES = 8  # the model may end before Stop is pressed; hardly ever so often


class Started:
    """A server, and the token of its owner's first link."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self.token = token


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Generator[Started, None, None]:
    """`make serve` of this checkout, with this Python in the place of the one that it would install."""
    folder = tmp_path_factory.mktemp("walk")
    stamp = f"{sys.prefix}/.leadline-app"
    options = f"ARGS=--no-browser --data {folder}/data"
    command = ["make", "--no-print-directory", "-o", stamp, "serve", f"VENV={sys.prefix}", "PORT=0", options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder), "PYTHONUNBUFFERED": "1"}
    said = folder / "log"
    with said.open("w") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield _started(server, said)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGINT)
        server.wait(60)


def _started(server: subprocess.Popen[bytes], said: Path) -> Started:
    """When it has printed its first link, however long that takes."""
    while not (found := STARTED.search(said.read_text())):
        assert server.poll() is None, said.read_text()
        time.sleep(0.2)
    return Started(found["url"], found["token"])


def test_the_walk(served: Started, browser: Browser, tmp_path: Path) -> None:
    with visitor(browser, served, viewport=DESK) as owner, visitor(browser, served, viewport=DESK) as guest:
        comes_in_by_the_link(owner, served)
        comes_in_by_invitation(guest, invites(owner))
        chats(guest)
        stops(guest)
        stays_after_a_reload(guest)
        branches(guest)
        finds(guest, "lighthouse")
        shares(guest, browser, served)
        takes_out_and_brings_in(guest, tmp_path)
        pays_to_the_unit(guest, served)
        redeems(guest, makes_a_voucher(owner))
        fits_in_every_look(guest)


# ---- the steps ---------------------------------------------------------------------------------------------------


def comes_in_by_the_link(owner: Visitor, served: Started) -> None:
    owner.open(f"/signin#{served.token}")
    owner.button("Sign me in").click()
    expect(owner.composer).to_be_visible()
    expect(owner.page.get_by_text("the very small model that comes with leadline")).to_be_visible()
    owner.open("/nowhere")
    owner.page.get_by_role("link", name="To the chats").click()
    expect(owner.composer).to_be_visible()


def invites(owner: Visitor) -> str:
    owner.open("/admin/invites")
    owner.page.get_by_label("Starting credit").fill("1.00")
    owner.button("Make a link").click()
    return owner.page.get_by_label("Invitation link").input_value()


def comes_in_by_invitation(guest: Visitor, link: str) -> None:
    guest.page.goto(link)
    guest.page.get_by_label("Email").fill("bob@example.org")
    guest.page.get_by_label("Password").fill(PASSWORD)
    guest.page.get_by_role("checkbox").check()
    guest.button("Create an account").click()
    expect(guest.composer).to_be_visible()


def chats(guest: Visitor) -> None:
    assert guest.ask("What is a lead line?").locator(".prose").inner_text().strip()
    expect(guest.answers.last).to_contain_text(re.compile(r"\d tokens/s.*\d tokens", re.DOTALL))


def stops(guest: Visitor) -> None:
    guest.page.keyboard.press("Control+Shift+O")
    expect(guest.answers).to_have_count(0)
    guest.button("How it answers").click()
    guest.page.get_by_role("slider").fill("2")  # so hot it hardly ever comes to an end
    guest.button("Apply").click()
    guest.say(LONG)
    for attempt in range(2, TRIES):
        guest.page.keyboard.press("Escape")
        guest.ended()
        if "Stopped." in guest.answers.last.inner_text():
            return
        guest.button("Answer anew").last.click()
        expect(guest.answers.last).to_contain_text(f"{attempt} / {attempt}")
    raise AssertionError("the answers ended before they could be stopped")


def stays_after_a_reload(guest: Visitor) -> None:
    before = guest.answers.last.inner_text()
    guest.page.reload()
    expect(guest.answers.last).to_have_text(before, use_inner_text=True)


def branches(guest: Visitor) -> None:
    guest.composer.press("ArrowUp")
    edit = guest.page.get_by_label("Edit your message")
    edit.fill("Say hello to the lighthouse.")
    edit.press("Control+Enter")
    expect(guest.questions.last).to_contain_text("2 / 2")
    guest.ended()
    guest.button("Previous version").first.click()
    expect(guest.questions.last).to_contain_text("1 / 2")
    expect(guest.answers.last).to_contain_text("Stopped.")
    guest.button("Next version").first.click()
    expect(guest.questions.last).to_contain_text("Say hello")


def finds(guest: Visitor, word: str) -> None:
    guest.open("/")
    expect(guest.composer).to_be_visible()
    guest.page.keyboard.press("Control+k")
    guest.page.get_by_role("combobox", name="Search").fill(word)
    guest.page.get_by_role("option").filter(has_text="Say hello").first.click()
    expect(guest.questions.last).to_contain_text("Say hello")


def shares(guest: Visitor, browser: Browser, served: Started) -> None:
    guest.menu("More about this chat", "Share")
    guest.button("Make a link").click()
    link = guest.page.get_by_label("Link", exact=True).input_value()
    with visitor(browser, served, viewport=PHONE) as stranger:
        stranger.page.goto(link)
        expect(stranger.page.get_by_text("Say hello to the lighthouse.").first).to_be_visible()
        assert (stranger.serious(), stranger.overflow()) == ([], 0)
    guest.button("Close").click()


def takes_out_and_brings_in(guest: Visitor, folder: Path) -> None:
    def export(name: str) -> Any:
        guest.menu(re.compile("Account and more"), "Settings")
        with guest.page.expect_download() as download:
            guest.page.get_by_role("link", name="Export all chats").click()
        download.value.save_as(folder / name)
        return json.loads((folder / name).read_text())["chats"]

    first = export("before.json")
    guest.page.locator("dialog input[type=file]").set_input_files(folder / "before.json")
    expect(guest.page.get_by_role("dialog")).to_have_count(0)
    again = export("after.json")
    guest.page.get_by_role("dialog").get_by_role("button", name="Close").click()
    assert len(first) == 2
    assert sorted(map(json.dumps, again)) == sorted(map(json.dumps, 2 * first))


def pays_to_the_unit(guest: Visitor, served: Started) -> None:
    guest.open("/platform/keys")
    guest.button("New key").click()
    guest.page.get_by_label("Name").fill("walk")
    guest.page.locator("dialog").get_by_role("button", name="New key").click()
    secret = guest.page.get_by_label("walk").input_value()
    before = balance(guest)
    usage, model = aside(asking(served, secret))
    cached = usage.prompt_tokens_details.cached_tokens
    price = next(each for each in ask(guest, "/api/prices")["data"] if each["model"] == model)
    tokens = {"hit": cached, "miss": usage.prompt_tokens - cached, "output": usage.completion_tokens}
    cost = sum((Decimal(price[kind]) * count / 10**6 for kind, count in tokens.items()), Decimal(0))
    assert cost > 0
    assert balance(guest) == before - cost
    guest.open("/platform/usage")
    row = guest.page.get_by_role("row").filter(has_text="walk")
    expect(row).to_contain_text(str(usage.completion_tokens))


def asking(served: Started, secret: str) -> Callable[[], tuple[Any, str]]:
    def call() -> tuple[Any, str]:
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key=secret, max_retries=0) as client:
            model = next(iter(client.models.list())).id
            messages: Any = [{"role": "user", "content": "How deep is the sea?"}]
            return client.chat.completions.create(model=model, messages=messages, max_tokens=40).usage, model

    return call


def ask(guest: Visitor, path: str) -> Any:
    return guest.page.evaluate("(path) => fetch(path).then((answer) => answer.json())", path)


def balance(guest: Visitor) -> Decimal:
    """As the page of the balance says it."""
    guest.open("/platform/billing")
    return Decimal(guest.page.locator("#balance").get_attribute("data-amount") or "")


def makes_a_voucher(owner: Visitor) -> str:
    owner.open("/admin/vouchers")
    owner.button("Make vouchers").click()
    return owner.page.locator("#codes").input_value()


def redeems(guest: Visitor, code: str) -> None:
    before = balance(guest)
    guest.page.get_by_label("Voucher code").fill(code)
    guest.button("Redeem a voucher").click()
    expect(guest.page.locator("#balance")).not_to_have_attribute("data-amount", str(before))
    assert balance(guest) == before + 5


def fits_in_every_look(guest: Visitor) -> None:
    guest.open("/")
    guest.history.first.click()
    expect(guest.answers.last).to_be_visible()
    guest.menu(re.compile("Account and more"), "Settings")
    guest.button("Dark", exact=True).click()
    guest.page.get_by_label("Language").select_option("zh-CN")
    guest.page.reload()
    expect(guest.composer).to_have_attribute("placeholder", "想问什么？")
    assert guest.page.evaluate("document.documentElement.dataset.theme") == "dark"
    for screen in (DESK, PHONE):
        guest.page.set_viewport_size(screen)  # type: ignore[arg-type]
        for language in ("zh-CN", "en"):
            guest.look(language, "dark")
            assert (guest.serious(), guest.overflow()) == ([], 0)
