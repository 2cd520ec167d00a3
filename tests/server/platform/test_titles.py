"""Titles that the model makes: beside everything else, for nothing, and never over one of the user's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from leadline.engine.fake import ANSWER
from leadline.engine.types import EngineRequest
from leadline.server.titles import EACH, PRIORITY, TOKENS, Titler, clean
from leadline.tokenizer import Tokenizer
from tests.fixtures_server import wait_until
from tests.server.platform.site import Site, live_site
from tests.server.platform.talk import Person

TITLE = "Fog at sea"


def scripted(request: EngineRequest, index: int) -> str:
    return f' "{TITLE}."\n' if request.priority == PRIORITY else ANSWER


@pytest.fixture(scope="module")
def titled(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Generator[Site, None, None]:
    options = {"titles": "model"}
    with live_site(tokenizer, tmp_path_factory.mktemp("titled"), answer=scripted, options=options) as live:
        yield live


def settled(person: Person, chat: str) -> str:
    """The title when none is in the making."""
    wait_until(lambda: not person.get(f"/chats/{chat}")["titling"])
    return str(person.get(f"/chats/{chat}")["title"])


def asked_for_titles(site: Site) -> list[EngineRequest]:
    return [request for request in site.live.engine.requests if request.priority == PRIORITY]


def test_the_first_answer_gets_a_title_that_nobody_pays_for(titled: Site) -> None:
    person = Person(titled)
    chat = person.chat()
    said = person.say(chat, "How deep is it here, captain?")
    assert said["chat"]["title_by"] == "auto"
    *_, done = person.watch(chat, said["answer"]["id"])
    assert done["chat"]["titling"] or done["chat"]["title"] == TITLE
    assert settled(person, chat) == TITLE
    assert person.get(f"/chats/{chat}")["title_by"] == "auto"
    (bill,) = titled.bills(person.id)
    assert person.spent() == bill.amount
    request = asked_for_titles(titled)[-1]
    assert (request.params.max_tokens, request.params.temperature) == (TOKENS, 0.0)
    answered = titled.live.engine.requests[-2]
    assert request.cache_salt == answered.cache_salt
    assert request.prompt_ids[: len(answered.prompt_ids)] == answered.prompt_ids, "it goes on from what is cached"
    person.ask(chat, "And there?")
    assert settled(person, chat) == TITLE
    assert asked_for_titles(titled)[-1] is request, "one title a chat"


def test_a_chat_with_a_name_of_the_users_is_left_alone(titled: Site) -> None:
    person = Person(titled)
    before = len(asked_for_titles(titled))
    chat = person.chat(title="Mine")
    person.ask(chat)
    assert settled(person, chat) == "Mine"
    assert len(asked_for_titles(titled)) == before
    shown = person.patch(f"/chats/{chat}", {"title": ""})
    assert (shown["title"], shown["title_by"], shown["titling"]) == ("Hello", "auto", True)
    assert settled(person, chat) == TITLE


def test_the_instruction_is_in_the_conversations_language(titled: Site, tokenizer: Tokenizer) -> None:
    person = Person(titled)
    for question, words in (("水有多深？四寻半。", "标题"), ("How deep?", "title"), ("水はどれくらい深い？", "title")):
        settled(person, asked(person, question))
        prompt = tokenizer.decode(list(asked_for_titles(titled)[-1].prompt_ids))
        assert words in prompt.rpartition("User:")[2]


def asked(person: Person, question: str) -> str:
    chat = person.chat()
    person.ask(chat, question)
    return chat


def test_of_a_long_conversation_the_beginnings_are_shown(titled: Site) -> None:
    person = Person(titled)
    assert settled(person, asked(person, "The quick brown fox jumps over the lazy dog. " * 100)) == TITLE
    prompt_ids = asked_for_titles(titled)[-1].prompt_ids
    assert len(prompt_ids) < len(titled.live.engine.requests[-2].prompt_ids) / 2


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Titles come when it is set."""
    event = threading.Event()

    async def held(self: Titler, request: EngineRequest) -> tuple[str, str | None]:
        await asyncio.to_thread(event.wait, 20)
        return TITLE, "stop"

    monkeypatch.setattr(Titler, "_answer", held)
    return event


def test_a_rename_on_the_way_wins(tokenizer: Tokenizer, tmp_path: Path, released: threading.Event) -> None:
    with live_site(tokenizer, tmp_path, options={"titles": "model"}) as site:
        person = Person(site)
        renamed, deleted = asked(person, "Hello"), asked(person, "Hello")
        assert person.patch(f"/chats/{renamed}", {"title": "Mine"})["titling"]
        person.delete(f"/chats/{deleted}")
        released.set()
        assert settled(person, renamed) == "Mine"
        person.post(f"/chats/{deleted}/restore")
        assert settled(person, deleted) == TITLE


@pytest.mark.parametrize("wrong", ["fails", "hangs", "says nothing"])
def test_where_it_goes_wrong_the_first_words_stay(tokenizer: Tokenizer, tmp_path: Path, wrong: str) -> None:
    said = {"fails": " a" * 40, "hangs": " deep" * 200, "says nothing": ' "..."\n'}[wrong]

    def answer(request: EngineRequest, index: int) -> str:
        return said if request.priority == PRIORITY else " deep"

    engine: dict[str, Any] = (
        {"error_after": 5} if wrong == "fails" else {"tokens_per_second": 20} if wrong == "hangs" else {}
    )
    with live_site(tokenizer, tmp_path, answer=answer, options={"titles": "model"}, **engine) as site:
        assert site.platform.answers is not None
        site.platform.answers.titler.seconds = 0.1 if wrong == "hangs" else 10.0
        person = Person(site)
        assert settled(person, asked(person, "Hello")) == "Hello"
        person.idle()
        assert len(asked_for_titles(site)) == 1


def test_one_account_has_a_few_at_a_time(tokenizer: Tokenizer, tmp_path: Path, released: threading.Event) -> None:
    with live_site(tokenizer, tmp_path, options={"titles": "model"}) as site:
        person, other = Person(site), Person(site)
        mine = [asked(person, "Hello") for _ in range(EACH + 2)]
        theirs = asked(other, "Hello")
        assert [person.get(f"/chats/{chat}")["titling"] for chat in mine] == [True] * EACH + [False] * 2
        assert other.get(f"/chats/{theirs}")["titling"]
        released.set()
        assert [settled(person, chat) for chat in mine] == [TITLE] * EACH + ["Hello"] * 2
        assert settled(other, theirs) == TITLE
        assert settled(person, asked(person, "Hello")) == TITLE, "those that have ended do not count"


def test_words_are_the_default_and_ask_nobody(site: Site) -> None:
    person = Person(site)
    chat = asked(person, "Hello")
    assert not person.get(f"/chats/{chat}")["titling"]
    assert person.patch(f"/chats/{chat}", {"title": ""})["titling"] is False
    assert asked_for_titles(site) == []


def test_a_stopping_server_does_not_wait_for_a_title(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def answer(request: EngineRequest, index: int) -> str:
        return " deep" * 400 if request.priority == PRIORITY else " deep"

    options = {"titles": "model"}
    with live_site(tokenizer, tmp_path, answer=answer, tokens_per_second=5, options=options) as site:
        person = Person(site)
        assert person.get(f"/chats/{asked(person, 'Hello')}")["titling"]
        engine = site.live.engine
    assert not engine.running


@pytest.mark.parametrize(
    ("said", "title"),
    [
        (' "Fog at sea."', TITLE),
        ("\n\n**Title:** Fog at sea\nIt is about", TITLE),
        ("# Fog   at `sea`", TITLE),
        ("标题：《雾中测深》。", "雾中测深"),
        ("“Fog at sea”", TITLE),
        ("C++ or Rust?", "C++ or Rust?"),
        ("The title: Fog at sea", TITLE),
        ("Fog\u202e at sea\0", TITLE),
        (' "..." \n\n', ""),
        ("", ""),
        ("\n", ""),
        ("<script>alert(1)</script>", "<script>alert(1)</script"),  # text, as every title
    ],
)
def test_a_title_is_one_plain_line(said: str, title: str) -> None:
    assert clean(said, cut=False) == title


def test_a_cut_title_ends_with_a_whole_word() -> None:
    assert clean(" Fog at sea and", cut=True) == TITLE
    assert clean(" Fog at sea\nand mo", cut=True) == TITLE
    assert clean("雾中测深", cut=True) == "雾中测深"
    assert len(clean("deep " * 40, cut=False)) <= 61
