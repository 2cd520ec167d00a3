"""The chat protocol of 2024, read as the programs of its time read it: two ways, each with its own carelessness."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx2
import pytest

from leadline.engine.fake import ANSWER
from leadline.server.settings import ServerSettings
from leadline.tokenizer import Tokenizer
from tests.fixtures_server import LiveServer, wait_until
from tests.server.platform.site import PASSWORD, Site, live_site

TEXT = ANSWER.removeprefix(" ")
AGENT = {"Origin": "https://elsewhere.example", "Referer": "https://elsewhere.example/", "x-app-version": "20240126.0"}
NASTY = (
    ' def f():\n          return 1\n\n\tdata: here\u2028and data:there 水👍🏽 "quoted" \\ and'
    "\n        \n          \n data: end"
)


class Program:
    """What both have in common: sign in, say a message, begin anew. Written from a description of the protocol."""

    def __init__(self, url: str) -> None:
        self.http = httpx2.Client(base_url=url, headers=AGENT, timeout=20)
        self.model_class = "deepseek_chat"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def login(self, email: str, password: str = PASSWORD) -> Self:
        body = {"email": email, "mobile": "", "password": password, "area_code": ""}
        answer = self.http.post("/api/v0/users/login", json=body)
        answer.raise_for_status()
        self.use(answer.json()["data"]["user"]["token"])
        return self

    def use(self, token: str) -> None:
        self.http.headers["authorization"] = f"Bearer {token}"

    def open(self, message: str, **fields: Any) -> Any:
        body = {
            "message": message,
            "stream": True,
            "model_preference": None,
            "model_class": self.model_class,
            "temperature": 0,
            **fields,
        }
        return self.http.stream("POST", "/api/v0/chat/completions", json=body)

    def say(self, message: str, **fields: Any) -> str:
        with self.open(message, **fields) as answer:
            answer.raise_for_status()
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            return "".join(self.read(answer.iter_lines()))

    def read(self, lines: Iterator[str]) -> Iterator[str]:
        raise NotImplementedError

    def clear(self) -> Any:
        body = {"model_class": self.model_class, "append_welcome_message": False}
        return self.http.post("/api/v0/chat/clear_context?session_id=1", json=body).json()


class Hasty(Program):
    """Takes the mark away wherever it stands, and shows no run of five blanks."""

    def read(self, lines: Iterator[str]) -> Iterator[str]:
        for line in lines:
            if line:
                content = json.loads(line.replace("data:", ""))["choices"][0]["delta"]["content"]
                if not content.isspace() or len(content) < 5:
                    yield content


class Thorough(Program):
    """Cuts the line at its mark, and shows the payload's text where there is no content."""

    def read(self, lines: Iterator[str]) -> Iterator[str]:
        for line in lines:
            if not line.strip():
                continue
            event = json.loads(line.split("data: ")[1])
            choice = event["choices"][0]
            yield choice["delta"].get("content", "") + event["payload"]


@pytest.fixture(params=[Hasty, Thorough])
def program(request: pytest.FixtureRequest, site: Site) -> Iterator[Program]:
    email = f"{request.param.__name__}{site.user()}@example.org".lower()
    site.user(balance=10**9, email=email)
    with request.param(site.url) as made:
        yield made.login(email)


def token_of(site: Site) -> tuple[int, str, str]:
    email = f"legacy{site.user()}@example.org"
    user = site.user(balance=10**9, email=email)
    with Hasty(site.url) as made:
        made.login(email)
    return user, email, made.http.headers["authorization"].removeprefix("Bearer ")


def events(site: Site, token: str, **fields: Any) -> list[Any]:
    body = {"message": "Hello", "stream": True, "model_class": "deepseek_chat", "temperature": 0, **fields}
    answer = site.client(token).post("/api/v0/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]


def test_a_conversation(program: Program, site: Site) -> None:
    """The server remembers; a message alone is sent."""
    assert program.say("How deep is it?") == TEXT
    prompt = site.live.engine.requests[-1].prompt_ids
    assert program.say("And here?") == TEXT
    assert site.live.engine.requests[-1].prompt_ids[: len(prompt)] == prompt
    assert program.clear() == {"code": 0, "msg": "", "data": {}}
    assert program.say("How deep is it?") == TEXT
    assert site.live.engine.requests[-1].prompt_ids == prompt


def test_text_that_is_hard_to_carry(program: Program, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site.live.engine, "answer", NASTY)
    assert program.say("Code, please") == NASTY.removeprefix(" ")


def test_each_model_class_has_its_own_conversation(program: Program, site: Site) -> None:
    program.say("one")
    one = len(site.live.engine.requests[-1].prompt_ids)
    program.model_class = "deepseek_code"
    program.say("one")
    assert len(site.live.engine.requests[-1].prompt_ids) == one
    assert site.live.engine.requests[-1].params.temperature == 0


def test_the_form_of_an_event(site: Site) -> None:
    _, _, token = token_of(site)
    seen = events(site, token)
    for event in seen:
        assert set(event) == {
            *("choices", "model", "prompt_token_usage", "chunk_token_usage", "created", "message_id", "parent_id"),
            "payload",
        }
        (choice,) = event["choices"]
        assert set(choice) == {"index", "delta", "finish_reason"}
        assert set(choice["delta"]) == {"content", "role"}
        assert (event["model"], event["message_id"], event["parent_id"], event["payload"]) == (
            "deepseek_chat",
            2,
            1,
            "",
        )
    assert [event["choices"][0]["finish_reason"] for event in seen] == [None] * (len(seen) - 1) + ["stop"]
    assert sum(event["chunk_token_usage"] for event in seen) == len(site.live.engine.tokenizer.encode(ANSWER)) + 1


def test_nothing_in_a_stream_trips_a_careless_program(tokenizer: Tokenizer, tmp_path: Path) -> None:
    settings = ServerSettings(keep_alive_seconds=0.02)
    with live_site(tokenizer, tmp_path, server=settings, answer=NASTY, first_token_seconds=0.1) as site:
        _, email, token = token_of(site)
        body = {"message": "x", "model_class": "deepseek_chat", "stream": True}
        text = site.client(token).post("/api/v0/chat/completions", json=body).text
        assert text.startswith("\n\n")  # signs of life are empty lines
        assert text.isascii()
        lines = [line for line in text.split("\n") if line]
        assert all(line.startswith("data: {") and line.count("data:") == 1 for line in lines)
        assert "[DONE]" not in text
        for kind in (Hasty, Thorough):
            with kind(site.url) as program:
                assert program.login(email).say("again") == NASTY.removeprefix(" ")


def test_the_site_shows_the_conversation(site: Site) -> None:
    _, email, token = token_of(site)
    browser = site.browser(email)
    events(site, token, message="How deep is it?")
    (card,) = browser.get("/api/chats").json()["data"]
    assert card["title"] == "API (legacy)"
    shown = browser.get(f"/api/chats/{card['id']}").json()["messages"]
    assert [(each["role"], each["content"]) for each in shown] == [("user", "How deep is it?"), ("assistant", TEXT)]
    site.client(token).post("/api/v0/chat/clear_context", json={"model_class": "deepseek_chat"})
    (card,) = browser.get("/api/chats").json()["data"]
    assert card["title"] == "How deep is it?"
    events(site, token)
    assert len(browser.get("/api/chats").json()["data"]) == 2


@pytest.mark.parametrize("change", ["rename", "delete"])
def test_a_conversation_that_the_site_changed_is_left_alone(site: Site, change: str) -> None:
    _, email, token = token_of(site)
    browser = site.browser(email)
    events(site, token)
    chat = browser.get("/api/chats").json()["data"][0]["id"]
    if change == "rename":
        browser.patch(f"/api/chats/{chat}", json={"title": "Mine"})
    else:
        browser.delete(f"/api/chats/{chat}")
    assert events(site, token)[0]["message_id"] == 2  # a new one


def test_tokens_live_long_and_end_at_once(site: Site) -> None:
    import jwt

    _, email, token = token_of(site)
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] > 7 * 24 * 3600
    browser = site.browser(email)
    (session,) = browser.get("/api/tokens").json()["data"]
    assert site.client(token).get("/api/v0/users/current").json()["data"]["email"] == email
    browser.delete(f"/api/tokens/{session['id']}")
    assert site.client(token).get("/api/v0/users/current").status_code == 401


def test_answers_cost_what_they_cost(site: Site) -> None:
    user, _, token = token_of(site)
    before = site.balance(user).total
    events(site, token)
    (bill,) = site.bills(user)
    assert before - site.balance(user).total == bill.amount > 0


def refusal(answer: httpx2.Response, status: int) -> Any:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"code", "msg", "data", "error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["code"]  # a program takes any number but zero for a failure
    assert body["msg"] == body["error"]["message"]
    return body


def test_refusals_are_real_statuses(site: Site) -> None:
    _, email, token = token_of(site)
    client, nobody = site.client(token), site.client()
    poor = site.user(email=f"poor{site.user()}@example.org")
    message = {"message": "x", "model_class": "deepseek_chat", "stream": True}
    refusal(nobody.post("/api/v0/users/login", json={"email": email, "password": "wrong password"}), 401)
    refusal(nobody.post("/api/v0/users/login", json={"email": "", "mobile": "1", "password": "x"}), 400)
    refusal(nobody.post("/api/v0/chat/completions", json=message), 401)
    refusal(site.client("not.a.token").post("/api/v0/chat/completions", json=message), 401)
    refusal(nobody.post("/api/v0/chat/clear_context", json={}), 401)
    for wrong in ({"message": ""}, {"message": 5}, {"model_class": "gpt"}, {"temperature": 3}, {"message": "x" * 9000}):
        refusal(client.post("/api/v0/chat/completions", json={**message, **wrong}), 400)
    key = site.key(poor)
    assert "alance" in refusal(site.client(key).post("/api/v0/chat/completions", json=message), 402)["msg"]


def test_a_server_without_accounts_has_none_of_it(server: LiveServer) -> None:
    for path in ("users/login", "chat/completions", "chat/clear_context"):
        assert server.post(f"/api/v0/{path}", {}).status_code == 404


def test_the_cookie_opens_nothing_here(site: Site) -> None:
    _, email, _ = token_of(site)
    refusal(site.browser(email).get("/api/v0/users/current"), 401)


def test_a_failure_on_the_way_is_an_event_like_the_others(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with live_site(tokenizer, tmp_path, error_after=3) as site:
        _, email, token = token_of(site)
        last = events(site, token)[-1]
        assert last["choices"][0]["finish_reason"] == "error"
        assert last["error"]["code"] == "engine_error"
        for kind in (Hasty, Thorough):
            with kind(site.url) as program:
                program.login(email).say("again")  # and no program stumbles


def test_who_leaves_ends_the_answer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with live_site(tokenizer, tmp_path, answer=" deep" * 300, tokens_per_second=50) as site:
        _, _, token = token_of(site)
        body = json.dumps({"message": "x", "model_class": "deepseek_chat"}).encode()
        address = urlsplit(site.url)
        with socket.create_connection((address.hostname or "", address.port or 0)) as sock:
            head = (
                f"POST /api/v0/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {token}\r\n"
            )
            sock.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            assert sock.recv(4096)
            wait_until(lambda: bool(site.live.engine.running))
        wait_until(lambda: not site.live.engine.running)
        wait_until(lambda: site.open_holds() == 0)
