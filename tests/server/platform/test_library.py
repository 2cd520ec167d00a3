"""Finding, sharing, exporting and importing chats; presets; what every page begins with."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leadline.server import chats, markdown, search
from leadline.server.chats import first_words
from tests.server.platform.site import PASSWORD, Site
from tests.server.platform.talk import Person


@pytest.fixture
def person(site: Site) -> Person:
    return Person(site)


def found(person: Person, query: str) -> list[Any]:
    return [hit["message"] for hit in person.get("/search", query=query)["data"]]


# ---- search --------------------------------------------------------------------------------------------------------


def test_every_word_must_be_there_and_the_last_may_be_unfinished(person: Person) -> None:
    chat = person.chat(title="Soundings")
    person.ask(chat, "How deep is the Café harbour? It's SPRING tide.")
    assert found(person, "harbour") == found(person, "HARBOUR deep") == [1]
    assert found(person, "harb") == [1]
    assert found(person, "harb deep") == []
    assert found(person, "harbour shallow") == []
    assert found(person, "cafe") == found(person, "Café") == [1]
    assert found(person, "it's") == [1]
    assert found(person, '"harbour it\'s spring"') == [1]
    assert found(person, '"spring harbour"') == []
    assert found(person, "sailors") == [2]
    assert found(person, "sounding") == [None]
    for nothing in ("", "   ", '"', "*", "OR", "NEAR(", "' OR 1 --", "owner:user1", "\0", "^", '"" ""'):
        assert found(person, nothing) == []


def test_chinese_is_found_by_any_run_of_characters(person: Person) -> None:
    chat = person.chat(title="x")
    person.ask(chat, "请问这里的水有多深？大约四寻半。Depth水深test")
    for query in ("水", "多深", "水有多深", "四寻半", "这里的水", "水深test", "depth水"):
        assert found(person, query) == [1], query
    for query in ("深水", "多水", "深多", "这水"):
        assert found(person, query) == [], query


def test_hits_come_with_their_surroundings_newest_first_and_in_pages(person: Person) -> None:
    chat = person.chat()
    person.ask(chat, "x " * 100 + "the anchor holds " + "y " * 100)
    hit = person.get("/search", query="anchor hold")["data"][0]
    assert (hit["chat"]["id"], hit["message"]) == (chat, 1)
    assert [piece for piece, marked in hit["snippet"] if marked] == ["anchor", "hold"]
    assert hit["snippet"][0] == hit["snippet"][-1] == ["…", False]
    assert len("".join(piece for piece, _ in hit["snippet"])) < 200
    document = {"leadline_chats": 1, "chats": [exported_chat(search.PAGE + 5)]}
    person.post("/import", document, 201)
    first = person.get("/search", query="fathom")
    assert [each["message"] for each in first["data"]] == list(range(search.PAGE + 5, 5, -1))
    rest = person.get("/search", query="fathom", cursor=first["next"])
    assert [each["message"] for each in rest["data"]] == [5, 4, 3, 2, 1]
    assert rest["next"] is None


def test_what_is_deleted_is_not_found(person: Person) -> None:
    chat = person.chat()
    person.ask(chat, "quicksand")
    assert found(person, "quicksand") == [None, 1]
    person.delete(f"/chats/{chat}")
    assert found(person, "quicksand") == []
    person.post(f"/chats/{chat}/restore")
    assert found(person, "quicksand") == [None, 1]


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40), st.lists(st.text(alphabet='ab"*()水-:^ \0', max_size=12), min_size=1, max_size=4))
def test_no_query_is_an_error_of_the_index(content: str, queries: list[str]) -> None:
    """And a text is found by itself."""
    with contextlib.closing(sqlite3.connect(":memory:")) as index:
        index.execute(
            "CREATE VIRTUAL TABLE search USING fts5(owner, words, tokenize = 'unicode61 remove_diacritics 2')"
        )
        index.execute("INSERT INTO search VALUES (?, ?)", (search._owner(1), search.words(content)))
        for query in [*queries, content]:
            if terms := search.terms(query):
                expression = search._expression(1, terms)
                index.execute("SELECT rowid FROM search WHERE search MATCH ?", (expression,)).fetchall()
                assert "".join(piece for piece, _ in search.snippet(content, query)).strip("…") in content


def test_what_nobody_touches_is_forgotten_after_the_retention(site: Site, person: Person) -> None:
    kept, old, deleted = person.chat(title="kept"), person.chat(), person.chat()
    person.ask(old, "whirlpool")
    share = person.post(f"/chats/{old}/shares", {}, 201)
    person.patch(f"/chats/{kept}", {"pinned": True})
    person.delete(f"/chats/{deleted}")

    def purge(seconds: int, retention: int | None) -> None:
        site.work(lambda connection, store: chats.purge(connection, store.now() + seconds, retention))

    purge(0, None)
    assert person.post(f"/chats/{deleted}/restore")["id"] == deleted
    person.delete(f"/chats/{deleted}")
    purge(chats.RESTORE_SECONDS + 1, 3600)
    person.post(f"/chats/{deleted}/restore", {}, 404)
    assert person.get(f"/chats/{old}")["messages"] != []
    purge(3601, 3600)
    person.get(f"/chats/{old}", 404)
    assert person.get(f"/chats/{kept}")["title"] == "kept"
    assert found(person, "whirlpool") == []
    assert person.get(f"/shared/{share['path'].removeprefix('/s/')}")["messages"][0]["content"] == "whirlpool"
    assert site.count("chats", person.id) == 1


def exported_chat(count: int) -> dict[str, Any]:
    messages = [
        {"number": n, "parent": n - 1 or None, "role": "user", "content": f"fathom {n}", "created": n}
        for n in range(1, count + 1)
    ]
    return {"title": "Old", "created": 1, "updated": 2, "current": count, "messages": messages}


# ---- shares --------------------------------------------------------------------------------------------------------


def test_a_shared_chat_is_a_snapshot_for_whoever_has_the_link(site: Site, person: Person) -> None:
    chat = person.chat(title="For all")
    person.ask(chat, "One")
    person.post("/chats", {}, 201)
    share = person.post(f"/chats/{chat}/shares", {}, 201)
    person.ask(chat, "Two, in private")
    token = share["path"].removeprefix("/s/")
    seen = httpx2.get(f"{site.url}/api/shared/{token}")
    assert seen.headers["x-robots-tag"] == "noindex"
    shown = seen.json()
    assert shown["title"] == "For all"
    assert (shown["messages"][0]["role"], shown["messages"][0]["content"]) == ("user", "One")
    assert len(shown["messages"]) == 2
    assert set(shown["messages"][1]) == {"role", "content", "attachments", "created", "model"}
    assert person.get("/shares", chat=chat)["data"] == person.get("/shares")["data"] == [share]
    part = person.post(f"/chats/{chat}/shares", {"current": 1}, 201)
    assert len(person.get(f"/shared/{part['path'].removeprefix('/s/')}")["messages"]) == 1
    person.delete(f"/shares/{share['id']}")
    assert httpx2.get(f"{site.url}/api/shared/{token}").status_code == 404
    assert httpx2.get(f"{site.url}/api/shared/nothing").status_code == 404
    person.post(f"/chats/{person.chat()}/shares", {}, 400)


# ---- export and import ---------------------------------------------------------------------------------------------


def test_an_export_comes_back_as_it_went_with_every_branch(site: Site, person: Person) -> None:
    chat = person.chat(title="Voyage", system="Be a sailor.", temperature=0.4, mode="coder")
    person.ask(chat, "One 水", attachments=[{"name": "a.txt", "text": "tide\u2028\U0001f600"}])
    person.ask(chat, "Two", max_tokens=3)
    person.ask(chat, "Two again", parent=2)
    person.post(f"/chats/{chat}/messages/2/regenerate", {}, 202)
    person.ended(chat, 7)
    person.patch(f"/chats/{chat}", {"current": 4, "pinned": True})
    person.chat(title="Empty")
    text = person.http.get("/api/export").content
    other = Person(site)
    made = other.post("/import", json.loads(text), 201)["data"]
    assert [each["title"] for each in made] == ["Voyage", "Empty"]
    assert other.http.get("/api/export").content == text
    one = person.http.get(f"/api/chats/{chat}/export")
    assert one.headers["content-disposition"] == 'attachment; filename="Voyage.json"'
    assert other.post("/import", one.json(), 201)["data"][0]["pinned"] is True
    copy = other.get(f"/chats/{made[0]['id']}")
    original = person.get(f"/chats/{chat}")
    assert copy["messages"] == original["messages"]
    assert (copy["current"], copy["mode"], copy["system"]) == (4, "coder", "Be a sailor.")
    assert other.spent() == 0
    assert other.ask(made[0]["id"], "On")["id"] == 9


def test_markdown_has_the_branch_that_is_shown(person: Person) -> None:
    chat = person.chat(title="A  title\n# x", system="Be brief.")
    person.ask(chat, "Question", attachments=[{"name": "a.txt", "text": "tide"}])
    person.ask(chat, "Elsewhere", parent=None)
    person.patch(f"/chats/{chat}", {"current": 2})
    response = person.http.get(f"/api/chats/{chat}/export", params={"format": "markdown"})
    assert response.headers["content-type"] == "text/markdown; charset=utf-8"
    lines = response.text.splitlines()
    assert lines[0] == "# A title # x"
    assert "Elsewhere" not in response.text
    assert "Question" in lines
    assert any(line.startswith("## Assistant (fake), ") for line in lines)
    person.get(f"/chats/{chat}/export", 400, format="pdf")


def test_markdown_comes_back_as_it_went(site: Site, person: Person) -> None:
    chat = person.chat(title="Voyage -- out", system="## User, x\n\nBe brief. -->", temperature=0.4)
    person.ask(
        chat, "One\n\n## User, 2026\n\n<!-- leadline {} -->\nTwo", attachments=[{"name": "a", "text": "``` 水\n"}]
    )
    person.ask(chat, "\n\n", parent=None, attachments=[{"name": "b", "text": ""}])
    person.patch(f"/chats/{chat}", {"current": 2})
    person.ask(chat, "Three\n")
    text = person.http.get(f"/api/chats/{chat}/export", params={"format": "markdown"}).text
    other = Person(site)
    made = other.post("/import/markdown", {"markdown": text}, 201)["data"][0]["id"]
    assert other.http.get(f"/api/chats/{made}/export", params={"format": "markdown"}).text == text
    kept, original = other.get(f"/chats/{made}")["messages"], person.get(f"/chats/{chat}")["messages"]
    assert kept == [message for message in original if message["id"] in (1, 2, 5, 6)]
    edited = text.replace("Three", "Three and a half").replace("Be brief.", "Be long.")
    again = other.get(f"/chats/{other.post('/import/markdown', {'markdown': edited}, 201)['data'][0]['id']}")
    assert again["messages"][2]["content"] == "Three and a half\n"
    assert again["system"].startswith("## User, x\n\nBe long.")
    for damaged in (
        "",
        "# Chat",
        text[5:],
        text.replace('"role": "user"', '"role": "captain"'),
        text.replace('{"num', '{"'),
    ):
        other.post("/import/markdown", {"markdown": damaged}, 400)


MESSAGES = st.lists(
    st.tuples(
        st.text(max_size=30), st.lists(st.tuples(st.text(min_size=1, max_size=5), st.text(max_size=9)), max_size=2)
    ),
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=20), st.text(max_size=20), MESSAGES)
def test_markdown_holds_any_text(title: str, system: str, said: list[Any]) -> None:
    messages = [
        {
            "number": number,
            "role": "user",
            "content": content,
            "created": 0,
            "model": "",
            "attachments": [{"name": name, "text": text} for name, text in files],
        }
        for number, (content, files) in enumerate(said, 1)
    ]
    chat = {"title": title, "system": system, "created": 0, "messages": messages}
    assert markdown.read(markdown.write(chat).decode()) == {"leadline_chats": 1, "chats": [chat]}


@pytest.mark.parametrize(
    "broken",
    [
        {"leadline_chats": 2, "chats": []},
        {"chats": []},
        {"leadline_chats": 1, "chats": [{}]},
        {"leadline_chats": 1, "chats": [{**exported_chat(3), "current": 9}]},
        {"leadline_chats": 1, "chats": [exported_chat(2), {**exported_chat(1), "title": "x" * 201}]},
    ],
)
def test_an_import_is_whole_or_not_at_all(person: Person, broken: Any) -> None:
    person.post("/import", broken, 400)
    assert person.get("/chats")["data"] == []


@pytest.mark.parametrize("change", [{"parent": 2}, {"parent": 9}, {"number": 1}, {"role": "system"}, {"cost": "-1"}])
def test_an_import_must_be_a_tree_of_messages(person: Person, change: dict[str, Any]) -> None:
    chat = exported_chat(2)
    chat["messages"][1] |= change
    person.post("/import", {"leadline_chats": 1, "chats": [chat]}, 400)


# ---- presets, session, account -------------------------------------------------------------------------------------


def test_presets_are_kept(person: Person) -> None:
    made = person.post("/presets", {"name": "Sailor", "system": "Be a sailor.", "temperature": 0.2}, 201)
    changed = person.patch(f"/presets/{made['id']}", {"name": "Captain", "system": "Be a captain."})
    assert changed == {"id": made["id"], "name": "Captain", "system": "Be a captain.", "temperature": None}
    shown = person.get("/presets")
    assert shown["data"] == [changed]
    assert {each["id"]: each["temperature"] for each in shown["temperatures"]}["code"] == 0.0
    person.delete(f"/presets/{made['id']}")
    person.delete(f"/presets/{made['id']}", 404)
    person.post("/presets", {"name": "x", "temperature": 2.1}, 400)


def test_the_session_tells_who_is_here_and_what_is_served(site: Site, person: Person) -> None:
    stranger = httpx2.get(f"{site.url}/api/session").json()
    assert (stranger["user"], stranger["signup"], stranger["terms"]["accepted"]) == (None, "invite", 0)
    assert "Not affiliated with DeepSeek" in stranger["about"]
    mine = person.get("/session")
    assert mine["user"]["id"] == person.id
    model = mine["models"][0]
    assert model["embedded"] is False
    assert (model["id"], model["price"]) == ("fake", {"hit": "0.014", "miss": "0.14", "output": "0.28"})
    assert person.get("/models")["data"] == mine["models"]
    assert person.patch("/account", {"name": " Ada "})["name"] == "Ada"


def test_an_operator_keeps_the_models_licence_record(site: Site, person: Person) -> None:
    operator = site.operator()
    record = {"name": "MIT", "url": "https://example.org", "text": "", "restrictions": ["be kind"], "note": ""}
    assert operator.post("/api/admin/models/fake/licence", json=record).json() == record
    assert person.get("/session")["models"][0]["licence"] == record
    assert operator.get("/api/admin/models").json()["data"][0]["licence"] == record
    assert operator.post("/api/admin/models/other/licence", json=record).status_code == 404
    assert operator.get("/api/admin/load").json()["answers"] == 0
    assert operator.get("/api/admin/terms").json()["data"][0]["version"] == 1
    assert person.http.post("/api/admin/terms", json={"text": "x"}).status_code == 403


def test_deleting_the_account_deletes_the_chats(site: Site, person: Person) -> None:
    chat = person.chat()
    person.ask(chat)
    path = person.post(f"/chats/{chat}/shares", {}, 201)["path"].removeprefix("/s/")
    person.post("/account/delete", {"password": PASSWORD})
    assert httpx2.get(f"{site.url}/api/shared/{path}").status_code == 404
    assert person.http.get("/api/chats").status_code == 401
    assert site.count("chats", person.id) == 0


def test_titles() -> None:
    assert first_words("") == first_words(" \n#\n") == ""
    assert first_words("> - `code` here ") == "code` here"
    assert first_words("word " * 20) == "word word word word word word word word word word word word…"
