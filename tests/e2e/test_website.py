"""The website as people use it: a real Chromium, a real server, an engine without a model."""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import openai
import pytest
from playwright.sync_api import Browser, expect

from leadline.server.money import format_money
from leadline.tokenizer import Tokenizer
from tests.e2e.browser import DESK, PHONE, Visitor, aside, chromium, sign_in_link, visitor, website
from tests.fixtures_server import small_tokenizer, wait_until
from tests.server.platform.books import HIT, MISS, OUTPUT
from tests.server.platform.site import PASSWORD, Site

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

MONEY = 10**9
PLACES = (
    "/ /platform /platform/keys /platform/usage /platform/billing /platform/pricing /platform/access /platform/account "
    "/admin /admin/users /admin/invites /admin/vouchers /admin/prices /admin/models /admin/terms /admin/usage "
    "/admin/books /admin/audit /terms /login /signup /signin /reset /s/nothing /c/nothing"
).split()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def site(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Generator[Site, None, None]:
    with website(tokenizer, tmp_path_factory.mktemp("site")) as live:
        yield live
        assert live.faults() == []
        assert live.open_holds() == 0


@pytest.fixture(scope="module")
def browser(site: Site) -> Generator[Browser, None, None]:
    with chromium() as running:
        yield running


@pytest.fixture
def ada(browser: Browser, site: Site) -> Generator[Visitor, None, None]:
    """Signed in, with money."""
    user = aside(lambda: site.user(balance=MONEY))
    with visitor(browser, site) as someone:
        someone.sign_in(aside(lambda: site.email(user)))
        yield someone


@pytest.fixture
def operator(browser: Browser, site: Site) -> Generator[Visitor, None, None]:
    user = aside(lambda: site.user(balance=MONEY, role="admin"))
    with visitor(browser, site) as someone:
        someone.open(sign_in_link(site, user).removeprefix(site.url))
        someone.button("Sign me in").click()
        expect(someone.composer).to_be_visible()
        yield someone


# ---- coming in --------------------------------------------------------------------------------------------------


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


# ---- chatting ---------------------------------------------------------------------------------------------------


def test_an_answer_streams_survives_a_reload_and_stops(ada: Visitor, site: Site) -> None:
    ada.say("a long answer, please")
    expect(ada.answers.last).to_contain_text("3 fathoms")
    ada.page.reload()
    expect(ada.button("Stop")).to_be_visible()
    expect(ada.answers.last).to_contain_text("0 fathoms")
    length = len(ada.answers.last.inner_text())
    ada.page.wait_for_function(
        "(length) => document.querySelector('article.assistant').innerText.length > length", arg=length
    )
    ada.page.keyboard.press("Escape")
    ada.ended()
    wait_until(lambda: not site.live.engine.running)
    expect(ada.answers.last).to_contain_text("Stopped.")
    stopped = ada.answers.last.locator(".prose").inner_text()
    numbers = [int(number) for number in re.findall(r"(\d+) fathoms,", stopped)]
    assert numbers == list(range(len(numbers))), "nothing was lost or doubled on the way"
    ada.page.reload()
    expect(ada.answers.last.locator(".prose")).to_have_text(stopped)


def test_a_stopped_answer_is_continued(ada: Visitor) -> None:
    ada.say("a long answer, please")
    expect(ada.answers.last).to_contain_text("3 fathoms")
    ada.button("Stop").click()
    ada.ended()
    before = ada.answers.last.locator(".prose").inner_text()
    ada.button("Continue", exact=True).click()
    expect(ada.button("Stop")).to_be_visible()
    ada.page.wait_for_function(
        "(before) => document.querySelector('.prose').innerText.length > before + 30", arg=len(before)
    )
    ada.page.keyboard.press("Escape")
    ada.ended()
    assert ada.answers.last.locator(".prose").inner_text().startswith(before)
    expect(ada.answers).to_have_count(1)


def test_editing_makes_a_branch_and_arrows_switch(ada: Visitor) -> None:
    ada.ask("How deep is it here?")
    ada.edit_last("How deep is it there?")
    expect(ada.questions.last).to_contain_text("there")
    ada.button("Previous version").first.click()
    expect(ada.questions.last).to_contain_text("here")
    ada.page.reload()
    expect(ada.questions.last).to_contain_text("How deep is it here?")
    expect(ada.questions.last).to_contain_text("1 / 2")


def test_an_answer_is_given_anew_beside_the_first(ada: Visitor) -> None:
    ada.ask("Hello")
    ada.button("Answer anew").click()
    expect(ada.answers.last).to_contain_text("2 / 2")
    ada.ended()
    expect(ada.answers).to_have_count(1)


def test_rich_answers_are_drawn_and_nothing_moves(ada: Visitor) -> None:
    ada.page.evaluate(
        "() => { window.moved = 0; new PerformanceObserver((list) => { for (const entry of list.getEntries()) "
        "if (!entry.hadRecentInput) window.moved += entry.value }).observe({ type: 'layout-shift' }) }"
    )
    answer = ada.ask("something rich")
    expect(answer.get_by_role("heading", name="How it works")).to_be_visible()
    expect(answer.locator(".hljs-keyword").first).to_have_text("def")
    expect(answer.locator("math")).to_have_count(3)
    expect(answer.locator("mfrac")).to_have_count(1)
    expect(answer.locator("td.align-right").first).to_have_text("2")
    answer.locator(".code-copy").click()
    assert ada.page.evaluate("navigator.clipboard.readText()").startswith("def depth(marks")
    assert ada.page.evaluate("window.moved") < 0.1  # what Core Web Vitals call good; 0 but for the first line


def test_hostile_answers_do_nothing(ada: Visitor) -> None:
    answer = ada.ask("something hostile")
    expect(answer).to_contain_text("<script>")
    assert answer.locator("img, script, iframe, [onclick], [onerror]").count() == 0
    links = answer.locator("a").evaluate_all("(all) => all.map((each) => each.getAttribute('href'))")
    assert "https://elsewhere.example/pixel.png" in links
    assert [link for link in links if not link.startswith("https://elsewhere.example/")] == []
    assert answer.locator("a").first.get_attribute("rel") == "noopener noreferrer nofollow"
    assert ada.page.evaluate("window.hurt") is None


def test_a_hostile_question_and_title_are_text(ada: Visitor) -> None:
    ada.ask("<img src=x onerror=window.hurt=1>**not bold**")
    expect(ada.questions.last).to_contain_text("<img src=x onerror=window.hurt=1>**not bold**")
    assert ada.page.evaluate("window.hurt") is None


def test_text_files_are_attached_and_others_refused(ada: Visitor, site: Site) -> None:
    picker = ada.page.locator(".composer input[type=file]")
    picker.set_input_files({"name": "picture.png", "mimeType": "image/png", "buffer": b"\x89PNG\x00\xff"})
    expect(ada.page.get_by_role("status").filter(has_text="picture.png")).to_be_visible()
    picker.set_input_files({"name": "notes.txt", "mimeType": "text/plain", "buffer": "By the mark, five! 水".encode()})
    expect(ada.page.get_by_role("list", name="Attached files")).to_contain_text("notes.txt")
    ada.ask("What does the file say?")
    ada.questions.last.get_by_text("notes.txt").click()
    expect(ada.questions.last).to_contain_text("By the mark, five! 水")
    prompt = site.live.engine.tokenizer.decode(site.live.engine.requests[-1].prompt_ids)  # type: ignore[attr-defined]
    assert "By the mark, five! 水" in prompt


def test_how_it_answers_is_the_chats_own(ada: Visitor, site: Site) -> None:
    ada.button("How it answers").click()
    ada.page.get_by_label("System prompt").fill("You are a pilot.")
    ada.button(re.compile("^Fiction")).click()
    ada.button("Apply").click()
    ada.ask("Hello")
    request = site.live.engine.requests[-1]
    assert request.params.temperature == 1.5
    assert "You are a pilot." in site.live.engine.tokenizer.decode(request.prompt_ids)  # type: ignore[attr-defined]
    ada.page.reload()
    ada.button("How it answers").click()
    expect(ada.page.get_by_label("System prompt")).to_have_value("You are a pilot.")


def test_a_temporary_chat_leaves_nothing(ada: Visitor) -> None:
    ada.button("Temporary chat").click()
    assert "fathoms" in ada.ask("a secret").inner_text()
    ada.ask("another secret")
    expect(ada.answers).to_have_count(2)
    expect(ada.page.get_by_text("Your chats will be listed here.")).to_be_visible()
    ada.say("a long answer")
    expect(ada.answers.last).to_contain_text("2 fathoms")
    ada.button("Stop").click()
    expect(ada.answers.last).to_contain_text("Stopped.")
    ada.page.reload()
    expect(ada.answers).to_have_count(0)
    assert ada.page.evaluate("fetch('/api/chats').then((answer) => answer.json())")["data"] == []


# ---- keeping order ----------------------------------------------------------------------------------------------


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


# ---- the platform -----------------------------------------------------------------------------------------------


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


# ---- when something is wrong ------------------------------------------------------------------------------------


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
    ada.page.evaluate("window.stop()")
    expect(ada.page.get_by_text("The connection was lost")).to_be_visible()
    ada.context.set_offline(False)
    expect(ada.page.get_by_text("The connection was lost")).to_have_count(0)
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


def test_a_full_chat_offers_a_new_one_that_carries_on(ada: Visitor) -> None:
    ada.ask("Hello " * 20)
    ada.composer.fill("water " * 1200)
    expect(ada.page.get_by_text("This chat is almost full")).to_be_visible()
    ada.button("Continue in a new chat").click()
    expect(ada.page.get_by_role("list", name="Attached files")).to_contain_text(".txt")
    expect(ada.answers).to_have_count(0)


# ---- for everyone -----------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(("screen", "theme"), [(DESK, "light"), (PHONE, "dark")], ids=["desk-light", "phone-dark"])
def test_every_page_fits_and_axe_finds_nothing_serious(browser: Browser, site: Site, screen: Any, theme: str) -> None:
    user = aside(lambda: site.user(balance=MONEY, role="admin"))
    with visitor(browser, site, viewport=screen, color_scheme=theme, reduced_motion="reduce") as someone:
        someone.sign_in(aside(lambda: site.email(user)))
        someone.composer.fill("something rich, and a_word_" + "x" * 200)
        someone.button("Send", exact=True).click()
        someone.ended()
        expect(someone.answers.last.locator("math").first).to_be_visible()
        assert (someone.serious(), someone.overflow()) == ([], 0)
        for place in PLACES:
            someone.open(place)
            expect(someone.page.locator("h1, h2").first).to_be_attached()
            expect(someone.page.locator(".skeleton")).to_have_count(0)
            expect(someone.page.get_by_text("Not affiliated with DeepSeek").first).to_be_visible()
            assert (place, someone.serious(), someone.overflow()) == (place, [], 0)


def test_dialogs_are_sound_too(ada: Visitor) -> None:
    ada.page.emulate_media(reduced_motion="reduce")  # what is still fading in has not its colours yet
    ada.ask("Hello")
    ada.page.keyboard.press("Control+k")
    ada.page.get_by_role("combobox", name="Search").fill("hello")
    expect(ada.page.get_by_role("option").first).to_be_visible()
    assert ada.serious() == []
    ada.page.keyboard.press("Escape")
    for name in ("Settings", "Keyboard shortcuts"):
        ada.menu(re.compile("Account and more"), name)
        expect(ada.page.get_by_role("dialog")).to_be_visible()
        assert ada.serious() == []
        ada.page.keyboard.press("Escape")
    ada.button("How it answers").click()
    expect(ada.button(re.compile("^Fiction"))).to_be_visible()
    assert ada.serious() == []
