"""Chatting: streams, branches, what an answer looks like, files, settings, temporary chats."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.e2e.browser import Visitor
from tests.fixtures_server import wait_until
from tests.server.platform.site import Site

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


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
    with ada.page.expect_response(lambda answer: answer.request.method == "PATCH"):
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


def test_what_grew_is_what_a_whole_answer_is(ada: Visitor) -> None:
    """Drawn piece by piece and changed where it differed, it is the same as drawn at once."""
    grown = ada.ask("something rich").locator(".prose").inner_html()
    assert "<math" in grown
    ada.page.reload()
    expect(ada.answers.last.locator("math")).to_have_count(3)
    expect(ada.answers.last.locator(".hljs-keyword").first).to_be_visible()
    assert ada.answers.last.locator(".prose").inner_html() == grown


def test_a_selection_stays_while_the_answer_grows(ada: Visitor) -> None:
    ada.say("a long answer, please")
    expect(ada.answers.last).to_contain_text("5 fathoms")
    ada.page.evaluate(
        "() => { const text = document.querySelector('.prose p').firstChild; "
        "getSelection().setBaseAndExtent(text, 0, text, 21) }"
    )
    expect(ada.answers.last).to_contain_text("25 fathoms")
    assert ada.page.evaluate("getSelection().toString()") == "0 fathoms, 1 fathoms,"
    ada.button("Stop").click()
    ada.ended()


def test_whoever_scrolls_up_stays_there_until_the_end_is_asked_for(ada: Visitor) -> None:
    ada.page.set_viewport_size({"width": 360, "height": 420})
    ada.say("a long answer, please")
    place = ada.page.get_by_role("region", name="Conversation")
    beyond = "(box) => box.scrollHeight - box.scrollTop - box.clientHeight"
    ada.page.wait_for_function("() => document.querySelector('.scroller').scrollTop > 60")
    place.hover()
    ada.page.mouse.wheel(0, -30)  # a line is enough
    expect(ada.button("To the end")).to_be_visible()
    top = place.evaluate("(box) => box.scrollTop")
    length = len(ada.answers.last.inner_text())
    ada.page.wait_for_function("(l) => document.querySelector('.prose').innerText.length > l + 200", arg=length)
    assert place.evaluate("(box) => box.scrollTop") == top
    ada.button("To the end").click()
    expect(ada.button("To the end")).to_have_count(0)
    ada.button("Stop").click()
    ada.ended()
    assert place.evaluate(beyond) < 40


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


def test_words_that_were_not_sent_are_kept(ada: Visitor) -> None:
    ada.ask("Hello")
    ada.composer.fill("half a thought")
    ada.page.keyboard.press("Control+Shift+O")
    expect(ada.composer).to_have_value("")
    ada.composer.fill("another")
    ada.page.reload()
    expect(ada.composer).to_have_value("another")
    ada.history.first.click()
    expect(ada.composer).to_have_value("half a thought")
    expect(ada.answers).to_have_count(1)
    ada.composer.press("Enter")
    expect(ada.answers).to_have_count(2)
    ada.ended()
    ada.page.reload()
    expect(ada.answers).to_have_count(2)
    expect(ada.composer).to_have_value("")
    ada.open("/")
    expect(ada.composer).to_have_value("another")
    ada.button("Temporary chat").click()
    ada.composer.fill("a secret")
    assert "secret" not in ada.page.evaluate("JSON.stringify({ ...sessionStorage, ...localStorage })")
    ada.menu(re.compile("Account and more"), "Sign out")
    expect(ada.page.get_by_label("Email")).to_be_visible()
    assert ada.page.evaluate("sessionStorage.length") == 0


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
