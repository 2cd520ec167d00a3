"""What an operator finds in the log and in the metrics about one request, and what nobody finds there."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from typing import Any

import pytest

from leadline.server.logs import ACCESS, ANSWERS, JsonLines, TextLines
from tests.fixtures_server import wait_until
from tests.server.platform.site import Site, chat
from tests.source import ROOT

Lines = Callable[[str], list[dict[str, Any]]]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    caplog.set_level(logging.INFO)

    def of(logger: str) -> list[dict[str, Any]]:
        records = [record for record in caplog.records if record.name == logger]
        return [json.loads(JsonLines().format(record)) for record in records]

    return of


def test_an_answer_can_be_followed_from_the_client_to_its_bill(site: Site, lines: Lines) -> None:
    user, client = site.customer()
    response = chat(client)
    answer = response.json()
    wait_until(lambda: bool(lines(ACCESS)))
    (request,), (made,) = lines(ACCESS), lines(ANSWERS)
    assert request["request"] == response.headers["x-request-id"]
    assert request["answer"] == made["answer"] == answer["id"] == site.bills(user)[0].request_id
    assert (made["message"], made["account"]) == ("finished", user)
    for name in ("prompt_tokens", "completion_tokens"):
        assert made[name] == answer["usage"][name]


def test_how_an_answer_ended_is_written_and_counted(site: Site, lines: Lines) -> None:
    _, client = site.customer()
    scraper = site.client(site.key(site.user(role="admin")))

    def aborted() -> float:
        text = scraper.get("/metrics").text
        return next(float(line.split()[1]) for line in text.splitlines() if 'answers_total{outcome="aborted"' in line)

    before = aborted()
    asked = {"prompt": "Hi", "max_tokens": 900, "stream": True, "ignore_eos": True}
    with client.stream("POST", "/v1/completions", json=asked) as response:
        next(response.iter_lines())
    wait_until(lambda: aborted() == before + 1)
    assert [made["message"] for made in lines(ANSWERS)] == ["aborted"]


def test_what_the_alerts_watch_is_there(site: Site) -> None:
    text = site.client(site.key(site.user(role="admin"))).get("/metrics").text
    watched = set(re.findall(r"leadline_\w+", (ROOT / "deploy/alerts.yml").read_text(encoding="utf-8")))
    assert len(watched) > 5
    assert [name for name in watched if f"\n{name}" not in text] == []


def test_why_a_request_was_refused(site: Site, lines: Lines) -> None:
    _, poor = site.customer(balance=1)
    assert chat(poor).status_code == 402
    assert site.client("sk-wrong").get("/v1/models").status_code == 401
    wait_until(lambda: len(lines(ACCESS)) == 2)
    assert [line["code"] for line in lines(ACCESS)] == ["insufficient_balance", "invalid_api_key"]
    assert lines(ANSWERS) == []


def test_nothing_that_was_said_and_no_secret_is_written_down(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    user = site.user(balance=10**9)
    secret = site.key(user)
    browser = site.browser(site.email(user))
    assert chat(site.client(secret), "xyzzy plugh").status_code == 200
    assert chat(site.client(secret), "xyzzy plugh", temperature="plugh").status_code == 400
    made = browser.post("/api/chats", json={"title": "xyzzy"}).json()
    browser.post(f"/api/chats/{made['id']}/messages", json={"content": "plugh"}).raise_for_status()
    browser.get("/api/search", params={"query": "xyzzy"})
    site.client().post("/api/reset", json={"token": "xyzzy", "password": "plugh plugh"})
    wait_until(lambda: len(site.bills(user)) == 2)
    chatty = ("aiosqlite", "httpx2", "httpcore2")  # silenced by `set_up`, and of this test's clients
    records = [record for record in caplog.records if record.name.partition(".")[0] not in chatty]
    ours = "\n".join(form.format(record) for record in records for form in (TextLines(), JsonLines()))
    assert "/api/search" in ours
    for private in ("xyzzy", "plugh", "lead line is what", secret, browser.cookies["leadline_session"]):
        assert private not in ours
