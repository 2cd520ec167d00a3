"""Chats on the site: messages and their tree, answers as jobs that survive a reload and end at Stop, their bills."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from leadline.engine.fake import ANSWER
from leadline.server.money import format_money
from leadline.tokenizer import Tokenizer
from tests.fixtures_server import wait_until
from tests.server.platform.books import HIT, MISS, OUTPUT
from tests.server.platform.site import PASSWORD, Site, live_site
from tests.server.platform.talk import Person, events

TEXT = ANSWER.strip()


@pytest.fixture
def person(site: Site) -> Person:
    return Person(site)


@pytest.fixture(scope="module")
def slow(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Generator[Site, None, None]:
    """Fifty tokens a second, answers that say little at a time."""
    folder = tmp_path_factory.mktemp("slow")
    with live_site(tokenizer, folder, context_length=2048, tokens_per_second=50, answer=ANSWER * 40) as live:
        yield live
        assert live.faults() == []
        assert live.open_holds() == 0


def cost(message: Any) -> str:
    usage = message["usage"]
    misses = usage["prompt_tokens"] - usage["cached_tokens"]
    return format_money(usage["cached_tokens"] * HIT + misses * MISS + usage["completion_tokens"] * OUTPUT)


# ---- chats and their tree ------------------------------------------------------------------------------------------


def test_a_message_is_answered_billed_and_stored(person: Person) -> None:
    chat = person.chat()
    posted = person.say(chat, "How deep is it here, captain?")
    assert (posted["message"]["id"], posted["answer"]["id"], posted["answer"]["parent"]) == (1, 2, 1)
    assert posted["chat"]["title"] == "How deep is it here, captain?"
    seen = list(person.watch(chat, 2))
    done = seen[-1]["message"]
    assert "".join(event["text"] for event in seen[:-1]) == done["content"] == TEXT
    assert [event["offset"] for event in seen[:-1]] == sorted(event["offset"] for event in seen[:-1])
    assert (done["status"], done["finish_reason"], done["stop_reason"], done["error"]) == ("done", "stop", None, None)
    assert done["cost"] == cost(done)
    assert person.spent() == sum(bill.amount for bill in person.site.bills(person.id)) > 0
    assert format_money(person.spent()) == done["cost"]
    shown = person.get(f"/chats/{chat}")
    assert [each["id"] for each in shown["messages"]] == [1, 2]
    assert shown["messages"][1] == done
    assert (shown["current"], shown["running"]) == (2, None)
    assert seen[-1]["chat"] == {name: value for name, value in shown.items() if name != "messages"}


def test_what_was_said_before_goes_into_the_prompt(person: Person) -> None:
    chat = person.chat(system="Be a sailor.")
    first, second = person.ask(chat, "One"), person.ask(chat, "Two")
    assert second["parent"] == 3
    assert second["usage"]["prompt_tokens"] > first["usage"]["prompt_tokens"] + first["usage"]["completion_tokens"]
    ids = person.site.live.engine.requests[-1].prompt_ids
    assert person.site.live.engine.tokenizer.decode(list(ids)) == (  # type: ignore[attr-defined]
        f"Be a sailor.\n\nUser: One\n\nAssistant: {TEXT}User: Two\n\nAssistant:"
    )


def test_an_edit_is_a_new_branch_and_branches_are_switched(person: Person) -> None:
    chat = person.chat()
    person.ask(chat, "First")
    person.ask(chat, "Second")
    edited = person.say(chat, "Second, but better", parent=2)
    assert edited["message"]["parent"] == 2
    person.ended(chat, edited["answer"]["id"])
    root = person.say(chat, "Another beginning", parent=None)
    assert root["message"]["parent"] is None
    person.ended(chat, root["answer"]["id"])
    parents = {each["id"]: each["parent"] for each in person.get(f"/chats/{chat}")["messages"]}
    assert parents == {1: None, 2: 1, 3: 2, 4: 3, 5: 2, 6: 5, 7: None, 8: 7}
    assert person.patch(f"/chats/{chat}", {"current": 4})["current"] == 4
    assert person.ask(chat, "Third")["parent"] == 9
    assert person.message(chat, 9)["parent"] == 4
    person.patch(f"/chats/{chat}", {"current": 99}, 404)
    assert person.post(f"/chats/{chat}/messages", {"content": "x", "parent": 99}, 404)


def test_regenerate_gives_a_sibling(person: Person) -> None:
    chat = person.chat()
    person.ask(chat)
    again = person.post(f"/chats/{chat}/messages/2/regenerate", {"temperature": 0.5}, 202)["answer"]
    assert (again["id"], again["parent"], again["temperature"]) == (3, 1, 0.5)
    person.ended(chat, 3)
    assert person.post(f"/chats/{chat}/messages/1/regenerate", {}, 202)["answer"]["parent"] == 1


def test_a_cut_answer_is_continued_in_place(person: Person) -> None:
    chat = person.chat()
    cut = person.ask(chat, max_tokens=5)
    assert (cut["finish_reason"], cut["usage"]["completion_tokens"]) == ("length", 5)
    person.post(f"/chats/{chat}/messages/1/continue", {}, 400)
    answer = person.post(f"/chats/{chat}/messages/2/continue", {}, 202)["answer"]
    assert (answer["id"], answer["content"][: len(cut["content"])]) == (2, cut["content"])
    whole = list(person.watch(chat, 2, cut["offset"]))
    assert "".join(event["text"] for event in whole[:-1]) == ANSWER
    done = whole[-1]["message"]
    assert done["content"] == cut["content"] + ANSWER
    assert done["usage"]["completion_tokens"] > 5
    assert done["cost"] == cost(done) == format_money(person.spent())
    assert len(person.site.bills(person.id)) == 2
    person.post(f"/chats/{chat}/messages/2/continue", {}, 400)


def test_chats_are_listed_renamed_pinned_deleted_and_restored(person: Person) -> None:
    names = [person.chat(title=f"Chat {number}") for number in range(5)]
    first = person.get("/chats", limit=2)
    assert first["pinned"] == []
    rest = person.get("/chats", limit=2, cursor=first["next"])
    last = person.get("/chats", limit=2, cursor=rest["next"])
    listed = [chat["id"] for page in (first, rest, last) for chat in page["data"]]
    assert sorted(listed) == sorted(names)
    assert last["next"] is None
    assert "pinned" not in rest
    person.patch(f"/chats/{names[0]}", {"title": " Soundings ", "pinned": True, "temperature": 0.3})
    pinned = person.get("/chats")["pinned"]
    assert [(chat["title"], chat["title_by"], chat["temperature"]) for chat in pinned] == [("Soundings", "user", 0.3)]
    assert person.patch(f"/chats/{names[0]}", {"temperature": None})["temperature"] is None
    assert person.delete(f"/chats/{names[1]}")["until"] > 0
    person.get(f"/chats/{names[1]}", 404)
    assert person.post(f"/chats/{names[1]}/restore")["id"] == names[1]
    assert person.delete("/chats")["count"] == 5
    assert person.get("/chats") == {"data": [], "next": None, "pinned": []}
    person.post(f"/chats/{names[4]}/restore")
    assert [chat["id"] for chat in person.get("/chats")["data"]] == [names[4]]


def test_titles_come_from_the_first_words_until_the_user_says_otherwise(person: Person) -> None:
    chat = person.chat()
    person.ask(chat, "\n## **Sound** the depth of the harbour before the tide turns and the wind freshens again\nNow")
    title = person.get(f"/chats/{chat}")["title"]
    assert title == "Sound** the depth of the harbour before the tide turns and…"
    person.patch(f"/chats/{chat}", {"title": "Mine"})
    person.ask(chat, "More")
    assert person.get(f"/chats/{chat}")["title"] == "Mine"
    assert person.patch(f"/chats/{chat}", {"title": ""})["title"] == title
    other = person.chat()
    person.ask(other, "水" * 200)
    assert person.get(f"/chats/{other}")["title"] == "水" * 30 + "…"


def test_a_branch_is_copied_into_a_new_chat(person: Person) -> None:
    chat = person.chat(system="Be brief.")
    person.ask(chat, "One")
    person.ask(chat, "Two", parent=None)
    copy = person.post(f"/chats/{chat}/copy", {"current": 2}, 201)
    shown = person.get(f"/chats/{copy['id']}")
    assert (shown["system"], shown["current"]) == ("Be brief.", 2)
    assert [(each["id"], each["parent"], each["content"]) for each in shown["messages"]] == [
        (1, None, "One"),
        (2, 1, TEXT),
    ]
    assert {each["cost"] for each in shown["messages"]} == {"0.00"}


def test_attached_text_files_stand_before_the_question(person: Person) -> None:
    chat = person.chat()
    files = [{"name": "a.py", "text": "print(1)\n```\n"}, {"name": "b.txt", "text": "水"}]
    person.ask(chat, "What is it?", attachments=files)
    assert person.message(chat, 1)["attachments"] == files
    ids = person.site.live.engine.requests[-1].prompt_ids
    prompt = person.site.live.engine.tokenizer.decode(list(ids))  # type: ignore[attr-defined]
    assert prompt == ("User: a.py:\n````\nprint(1)\n```\n\n````\n\nb.txt:\n```\n水\n```\n\nWhat is it?\n\nAssistant:")
    person.post(f"/chats/{chat}/messages", {"content": "x", "attachments": [files[0]] * 9}, 400)
    large = {"name": "c", "text": "x" * ((1 << 20) + 1)}
    assert person.post(f"/chats/{chat}/messages", {"content": "x", "attachments": [large]}, 400)


def test_the_coder_is_cold_and_the_chat_as_the_model_says(person: Person) -> None:
    person.ask(person.chat(mode="coder"))
    assert person.site.live.engine.requests[-1].params.temperature == 0.0
    person.ask(person.chat())
    assert person.site.live.engine.requests[-1].params.temperature == 1.0
    person.ask(person.chat(temperature=0.7))
    assert person.site.live.engine.requests[-1].params.temperature == 0.7


# ---- what is refused is refused at once, and leaves nothing --------------------------------------------------------


def test_without_money_nothing_is_stored(site: Site) -> None:
    poor = Person(site, balance=0)
    chat = poor.chat()
    assert poor.post(f"/chats/{chat}/messages", {"content": "Hello"}, 402)["error"]["code"] == "insufficient_balance"
    assert poor.get(f"/chats/{chat}")["messages"] == []
    error = poor.post("/temporary", {"messages": [{"role": "user", "content": "Hello"}]}, 402)["error"]
    assert error["code"] == "insufficient_balance"


def test_what_does_not_fit_is_told_and_nothing_is_stored(person: Person) -> None:
    chat = person.chat()
    error = person.post(f"/chats/{chat}/messages", {"content": "deep water " * 5000}, 400)["error"]
    assert error["code"] == "context_length_exceeded"
    for content in ("", "  \n"):
        person.post(f"/chats/{chat}/messages", {"content": content}, 400)
    for bad in ({"temperature": 3}, {"temperature": -1}, {"max_tokens": 0}):
        person.post(f"/chats/{chat}/messages", {"content": "x", **bad}, 400)
        person.post("/chats", bad, 400)
    assert person.get(f"/chats/{chat}")["messages"] == []
    assert person.ask(chat)["id"] == 2


def test_the_terms_come_first(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with live_site(tokenizer, tmp_path, context_length=512) as site:
        _terms_come_first(site)


def _terms_come_first(site: Site) -> None:
    person = Person(site)
    chat = person.chat()
    before = person.get("/session")["terms"]["version"]
    assert person.get("/terms")["text"].startswith("# ")
    operator = site.operator()
    key, token = site.client(site.key(person.id)), site.client(person.post("/tokens")["token"])
    assert operator.post("/api/admin/terms", json={"text": "# New terms"}).json() == {"version": before + 1}
    said = {"messages": [{"role": "user", "content": "x"}]}
    answers = ((f"/chats/{chat}/messages", {"content": "x"}), ("/temporary", said))
    for path, body in (*answers, ("/keys", {}), ("/tokens", {})):
        assert person.post(path, body, 403)["error"]["code"] == "terms_not_accepted"
    again = site.browser(site.email(person.id)).get("/api/session").json()
    assert again["terms"] == {"version": before + 1, "accepted": before}, "whoever signs in again is asked"
    assert key.post("/v1/chat/completions", json=said).status_code == 200, "programs that had a key go on"
    assert token.post("/api/v0/chat/completions", json={"message": "x"}).status_code == 403
    person.post("/terms", {"version": before}, 400)
    person.post("/terms", {"version": before + 1})
    assert person.get("/session")["terms"] == {"version": before + 1, "accepted": before + 1}
    person.ask(chat)


def test_anothers_chats_are_not_there(site: Site, person: Person) -> None:
    stranger = Person(site)
    chat = person.chat()
    person.ask(chat)
    share = person.post(f"/chats/{chat}/shares", {}, 201)
    preset = person.post("/presets", {"name": "x"}, 201)["id"]
    for path in ("", "/messages/2", "/messages/2/stream", "/export"):
        stranger.get(f"/chats/{chat}{path}", 404)
    for path, body in (
        ("/messages", {"content": "x"}),
        ("/messages/2/regenerate", {}),
        ("/messages/2/continue", {}),
        ("/messages/2/stop", {}),
        ("/restore", {}),
        ("/copy", {}),
        ("/shares", {}),
    ):
        stranger.post(f"/chats/{chat}{path}", body, 404)
    stranger.patch(f"/chats/{chat}", {"title": "Mine now"}, 404)
    stranger.delete(f"/chats/{chat}", 404)
    stranger.delete(f"/shares/{share['id']}", 404)
    stranger.delete(f"/presets/{preset}", 404)
    stranger.patch(f"/presets/{preset}", {"name": "y"}, 404)
    assert stranger.get("/shares")["data"] == stranger.get("/chats")["data"] == []
    assert stranger.get("/search", query="lead")["data"] == []
    assert person.get(f"/chats/{chat}")["title"] == "Hello"


def test_other_sites_cannot_post(person: Person) -> None:
    for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
        refused = person.http.post("/api/chats", json={}, headers=headers)
        assert refused.status_code == 403
    assert httpx2.get(f"{person.site.url}/api/chats").status_code == 401


# ---- answers are jobs ----------------------------------------------------------------------------------------------


def test_an_answer_survives_a_reload_and_is_read_on_from_where_it_was(slow: Site) -> None:
    person = Person(slow)
    chat = person.chat()
    person.say(chat, max_tokens=60)
    seen: list[Any] = []
    for event in person.watch(chat, 2):
        seen.append(event)
        if len(seen) == 5:
            break
    shown = person.get(f"/chats/{chat}")
    running = shown["messages"][1]
    assert (shown["running"], running["status"]) == (2, "running")
    assert running["content"].startswith("".join(event["text"] for event in seen))
    rest = list(person.watch(chat, 2, running["offset"]))
    done = rest[-1]["message"]
    assert running["content"] + "".join(event["text"] for event in rest[:-1]) == done["content"]
    assert done["usage"]["completion_tokens"] == 60
    headers = {"last-event-id": str(seen[2]["offset"])}
    with person.http.stream("GET", f"/api/chats/{chat}/messages/2/stream", headers=headers) as again:
        assert next(events(again))["text"] == done["content"][seen[2]["offset"] :]


def test_stop_ends_it_and_what_is_stored_is_what_is_billed(slow: Site) -> None:
    person = Person(slow)
    chat = person.chat()
    person.say(chat)
    for number, _ in enumerate(person.watch(chat, 2)):
        if number == 8:
            break
    stopped = person.stop(chat, 2)
    assert not slow.live.engine.running
    assert slow.balance(person.id).held == 0
    assert (stopped["status"], stopped["stop_reason"], stopped["finish_reason"]) == ("stopped", "stopped", None)
    assert stopped["cost"] == cost(stopped) == format_money(person.spent())
    tokenizer: Any = slow.live.engine.tokenizer
    tokens = len(tokenizer.encode(ANSWER * 40))
    assert 8 <= stopped["usage"]["completion_tokens"] < tokens
    assert tokenizer.decode(tokenizer.encode(ANSWER * 40)[: stopped["usage"]["completion_tokens"]]).startswith(
        f" {stopped['content']}"
    )
    assert [bill.outcome for bill in slow.bills(person.id)] == ["aborted"]
    assert person.stop(chat, 2) == person.message(chat, 2) == stopped
    assert list(person.watch(chat, 2))[-1]["message"] == stopped


def test_stop_before_the_first_token_and_after_a_reload(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with live_site(tokenizer, tmp_path, context_length=512, first_token_seconds=60) as waiting:
        person = Person(waiting)
        chat = person.chat()
        person.say(chat)
        again = waiting.browser(waiting.email(person.id))
        assert again.get(f"/api/chats/{chat}").json()["running"] == 2
        stopped = again.post(f"/api/chats/{chat}/messages/2/stop", json={}).json()
        assert (stopped["status"], stopped["content"], stopped["cost"]) == ("stopped", "", "0.00")
        assert not waiting.live.engine.running
        assert person.spent() == 0
        assert person.say(chat, "Again")["message"]["parent"] == 2


def test_an_answer_ends_when_its_last_viewer_has_been_gone_a_while(tokenizer: Tokenizer, tmp_path: Path) -> None:
    options = {"linger_seconds": 0.3}
    with live_site(
        tokenizer, tmp_path, options=options, context_length=2048, tokens_per_second=50, answer=ANSWER * 40
    ) as lonely:
        person = Person(lonely)
        chat = person.chat()
        person.say(chat)
        for number, _ in enumerate(person.watch(chat, 2)):
            if number == 40:
                break
        assert person.message(chat, 2)["status"] == "running", "it outlived the time that nobody may be gone"
        wait_until(lambda: person.message(chat, 2)["status"] == "stopped", 20)
        ended = person.message(chat, 2)
        assert ended["stop_reason"] == "left"
        assert ended["cost"] == cost(ended) == format_money(person.spent())


def test_a_chat_has_one_running_answer(slow: Site) -> None:
    person = Person(slow)
    chat = person.chat()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        posts = [
            pool.submit(person.http.post, f"/api/chats/{chat}/messages", json={"content": str(number)})
            for number in range(8)
        ]
        statuses = sorted(each.result().status_code for each in posts)
    assert statuses == [202] + [409] * 7
    person.post(f"/chats/{chat}/messages/2/regenerate", {}, 409)
    person.say(person.chat(), "another chat")
    person.delete(f"/chats/{chat}")
    person.delete("/chats")
    person.idle()
    assert slow.balance(person.id).held == 0


@pytest.mark.parametrize("how", ["deleted", "disabled"])
def test_the_answers_of_an_account_end_with_it(slow: Site, how: str) -> None:
    person = Person(slow)
    for _ in range(3):
        person.say(person.chat())
    if how == "deleted":
        person.post("/account/delete", {"password": PASSWORD})
    else:
        slow.operator().post(f"/api/admin/users/{person.id}", json={"state": "disabled"}).raise_for_status()
    assert not slow.live.engine.running
    assert slow.balance(person.id).held == 0
    assert {bill.outcome for bill in slow.bills(person.id)} == {"aborted"}


def test_an_answer_that_fails_says_why_and_costs_what_was_shown(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with live_site(tokenizer, tmp_path, context_length=512, error_after=3) as failing:
        person = Person(failing)
        chat = person.chat()
        failed = person.ask(chat)
        assert (failed["status"], failed["usage"]["completion_tokens"]) == ("failed", 3)
        assert failed["error"]["code"] == "engine_error"
        assert failed["cost"] == cost(failed) == format_money(person.spent())
        assert person.message(chat, 2) == failed
        failing.live.engine.error_after = None
        assert person.post(f"/chats/{chat}/messages/2/continue", {}, 202)["answer"]["error"] is None
        assert person.ended(chat, 2)["status"] == "done"
        failing.live.engine.kill()
        person.post(f"/chats/{chat}/messages", {"content": "dead"}, 202)
        assert person.ended(chat, 4)["error"]["code"] == "engine_dead"


def test_an_answer_ends_with_the_balance_and_says_so(site: Site) -> None:
    person = Person(site, balance=0)
    chat = person.chat()
    rich = Person(site)
    prompt = rich.ask(rich.chat())["usage"]["prompt_tokens"]
    poor = Person(site, balance=prompt * MISS + 10 * OUTPUT)
    chat = poor.chat(max_tokens=10)
    ended = poor.ask(chat)
    assert (ended["finish_reason"], ended["usage"]["completion_tokens"]) == ("length", 10)
    assert poor.post(f"/chats/{chat}/messages", {"content": "more"}, 402)
    assert site.balance(poor.id).total == 0


def test_when_the_server_stops_answers_are_stored_and_settled(tokenizer: Tokenizer, tmp_path: Path) -> None:
    options: dict[str, Any] = {"context_length": 2048, "tokens_per_second": 50, "answer": ANSWER * 40}
    with live_site(tokenizer, tmp_path, **options) as first:
        person = Person(first)
        email = first.email(person.id)
        chat = person.chat()
        person.say(chat)
        for number, _ in enumerate(person.watch(chat, 2)):
            if number == 5:
                break
    with live_site(tokenizer, tmp_path, fresh=False, **options) as second:
        again = second.browser(email, PASSWORD)
        kept = again.get(f"/api/chats/{chat}").json()["messages"][1]
        assert (kept["status"], kept["stop_reason"]) == ("stopped", "restart")
        assert kept["cost"] == cost(kept)
        assert second.open_holds() == 0
        bills = second.bills(person.id)
        assert [format_money(bill.amount) for bill in bills] == [kept["cost"]]
        assert second.faults() == []


def test_a_stopping_server_lets_the_answers_that_are_watched_finish(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with live_site(
            tokenizer, tmp_path, grace=20, context_length=2048, tokens_per_second=50, answer=ANSWER * 40
        ) as site:
            person = Person(site)
            chat = person.chat(max_tokens=60)
            person.say(chat)
            url, cookies = f"{site.url}/api/chats/{chat}/messages/2/stream", dict(person.http.cookies)
            watching = threading.Event()

            def watch() -> Any:
                with (
                    httpx2.Client(cookies=cookies, timeout=20) as browser,
                    browser.stream("GET", url) as response,
                ):
                    watching.set()
                    return list(events(response))

            seen = pool.submit(watch)
            assert watching.wait(20)
            wait_until(lambda: person.message(chat, 2)["usage"]["completion_tokens"] > 5, 20)
        done = seen.result()[-1]["message"]
    assert (done["status"], done["usage"]["completion_tokens"]) == ("done", 60)


# ---- temporary chats -----------------------------------------------------------------------------------------------


def test_a_temporary_chat_is_answered_billed_and_stored_nowhere(person: Person) -> None:
    said = [{"role": "user", "content": "Hello"}]
    body = {"messages": said, "system": "Be brief."}
    with person.http.stream("POST", "/api/temporary", json=body) as response:
        seen = list(events(response))
    done = seen[-1]["message"]
    assert "".join(event["text"] for event in seen[:-1]) == done["content"] == TEXT
    assert done["cost"] == cost(done) == format_money(person.spent())
    assert person.get("/chats")["data"] == []
    assert person.get("/search", query="sailors")["data"] == []
    said.append({"role": "assistant", "content": "A lead"})
    with person.http.stream("POST", "/api/temporary", json=body) as response:
        assert list(events(response))[-1]["message"]["content"] == ANSWER


def test_leaving_a_temporary_chat_stops_it(slow: Site) -> None:
    person = Person(slow)
    body = {"messages": [{"role": "user", "content": "Hello"}]}
    with person.http.stream("POST", "/api/temporary", json=body) as response:
        next(events(response))
    person.idle()
    assert person.spent() > 0
    assert [bill.outcome for bill in slow.bills(person.id)] == ["aborted"]


@pytest.mark.parametrize(
    ("count", "seconds"), [(10, 20.0), pytest.param(50, 1.0, marks=pytest.mark.slow)], ids=["busy machine", "quiet one"]
)
def test_answers_that_are_stopped_together_are_soon_settled(
    tokenizer: Tokenizer, tmp_path: Path, count: int, seconds: float
) -> None:
    """From the first Stop to the last answer of one: all are stored and billed, nothing runs, nothing is held."""
    with (
        live_site(tokenizer, tmp_path, context_length=2048, tokens_per_second=50, answer=ANSWER * 40) as crowded,
        concurrent.futures.ThreadPoolExecutor(count) as pool,
    ):
        person = Person(crowded, balance=10**12)
        chats = [person.chat() for _ in range(count)]
        for chat in chats:
            person.say(chat)
        wait_until(lambda: len(crowded.live.engine.running) == count, 20)
        begun = time.monotonic()
        stopped = list(pool.map(lambda chat: person.stop(chat, 2), chats))
        assert time.monotonic() - begun < seconds
        assert not crowded.live.engine.running
        assert crowded.balance(person.id).held == 0
        assert {message["status"] for message in stopped} == {"stopped"}
        assert sum(bill.amount for bill in crowded.bills(person.id)) == 10**12 - crowded.balance(person.id).total
