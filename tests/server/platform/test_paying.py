"""The API with accounts: who gets in, what an answer costs, how it ends when the money does, what a left one costs."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import json
import re
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncConnection

from leadline.server import accounts, db, meter
from leadline.server.erase import erase_user
from leadline.server.money import Price
from leadline.server.platform import COOKIE
from leadline.server.store import Store
from leadline.tokenizer import Tokenizer
from tests.fixtures_server import wait_until
from tests.server.platform.books import HIT, MISS, OUTPUT
from tests.server.platform.site import Site, chat, live_site

NEVER_ENDS: dict[str, Any] = {"ignore_eos": True}


def cost(usage: dict[str, Any]) -> int:
    hits, misses = usage["prompt_cache_hit_tokens"], usage["prompt_cache_miss_tokens"]
    return int(hits * HIT + misses * MISS + usage["completion_tokens"] * OUTPUT)


def events(response: httpx2.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


# ---- where nobody pays ---------------------------------------------------------------------------------------------


def test_where_all_prices_are_zero_nobody_needs_money(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with live_site(tokenizer, tmp_path, options={"price": Price(0, "", 0, 0, 0, 0)}) as site:
        user, client = site.customer(balance=0)
        assert client.get("/user/balance").json()["is_available"] is True
        assert chat(client, max_tokens=300, **NEVER_ENDS).json()["usage"]["completion_tokens"] == 300
        assert [(bill.amount, bill.outcome) for bill in site.bills(user)] == [(0, "finished")]
        assert site.faults() == []


# ---- who is put out while an answer runs ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["disabled", "deleted", "revoked"])
def test_who_is_put_out_gets_no_more_of_a_running_answer(site: Site, how: str) -> None:
    """What was covered is delivered and billed; the next hold is not granted."""
    user, client = site.customer()
    asked = {"prompt": "Hi", "max_tokens": 900, "stream": True, **NEVER_ENDS}

    async def put_out(connection: AsyncConnection, store: Store) -> None:
        if how == "disabled":
            await accounts.change_user(connection, user, state="disabled")
        elif how == "deleted":
            await erase_user(connection, user, store.now())
        else:
            await connection.execute(update(db.api_keys).where(db.api_keys.c.user_id == user).values(revoked=1))

    with client.stream("POST", "/v1/completions", json=asked) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        site.work(put_out)
        rest = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert rest[-1]["error"]["code"] == "invalid_api_key"
    wait_until(lambda: len(site.bills(user)) == 1)
    assert site.bills(user)[0].completion_tokens < 900
    assert client.get("/v1/models").status_code == 401


# ---- books that cannot be written in ---------------------------------------------------------------------------------


def test_books_that_are_locked_refuse_what_costs_and_nothing_else(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk looks the same. What was running is told, is billed later, and nobody's key stops working."""
    monkeypatch.setattr(db, "BUSY_MILLISECONDS", 20)
    monkeypatch.setattr(meter, "PATIENCE_SECONDS", 0.5)
    with live_site(tokenizer, tmp_path, tokens_per_second=50, answer=" deep" * 500) as site:
        user, client = site.customer()
        with contextlib.closing(sqlite3.connect(tmp_path / "leadline.db", isolation_level=None)) as other:
            with client.stream(
                "POST", "/v1/completions", json={"prompt": "Hi", "max_tokens": 400, "stream": True}
            ) as r:
                lines = r.iter_lines()
                assert next(lines).startswith("data: ")
                other.execute("BEGIN IMMEDIATE")
                assert client.get("/v1/models").status_code == 200
                refused = [chat(client), client.get("/ready")]
                assert site.platform.meters.behind_seconds > 0.02
                error = next(json.loads(line[6:])["error"] for line in lines if "error" in line)
            other.execute("ROLLBACK")
        for response in refused:
            assert response.status_code == 503
            assert response.headers["retry-after"] == "5"
            assert response.json()["error"]["code"] == error["code"] == "books_unavailable"
        assert "Traceback" not in caplog.text
        wait_until(lambda: client.get("/ready").status_code == 200)
        wait_until(lambda: site.platform.meters.behind_seconds < meter.BEHIND_SECONDS)
        assert chat(client, max_tokens=1).status_code == 200
        site.platform.meters.billing.clock = lambda: time.time() + 60
        wait_until(lambda: site.open_holds() == 0, seconds=20)
        assert {bill.outcome for bill in site.bills(user)} == {"finished", "swept"}
        assert site.faults() == []


# ---- who -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (None, "auth header format"),
        ("Basic abc", "auth header format"),
        ("Bearer", "auth header format"),
        ("Bearer sk-wrong-0123456789", r"\*\*\*\*6789 is invalid"),
        ("Bearer sk-" + "0" * 48, r"\*\*\*\*0000 is invalid"),
        ("Bearer not.a.token", "invalid or has expired"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/user/balance", "/v1/chat/completions"])
def test_without_a_good_key_nobody_gets_in(site: Site, header: str | None, words: str, path: str) -> None:
    headers = {} if header is None else {"authorization": header}
    method = "POST" if "chat" in path else "GET"
    response = httpx2.request(method, site.url + path, headers=headers)
    assert response.status_code == 401
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    assert re.search(words, error["message"])


def test_a_cookie_means_nothing_on_the_api(site: Site) -> None:
    site.user(email="cookie@example.org", balance=10**9)
    browser = site.browser("cookie@example.org")
    token = browser.cookies[COOKIE]
    assert chat(browser).status_code == 401
    forced = httpx2.get(f"{site.url}/v1/models", headers={"cookie": f"{COOKIE}={token}"})
    assert forced.status_code == 401
    as_bearer = httpx2.get(f"{site.url}/v1/models", headers={"authorization": f"Bearer {token}"})
    assert as_bearer.status_code == 401


def test_header_forms_that_clients_send(site: Site) -> None:
    secret = site.key(site.user())
    for header in (f"bearer {secret}", f"BEARER   {secret}"):
        assert httpx2.get(f"{site.url}/models", headers={"authorization": header}).status_code == 200


def test_keys_end_with_their_time_their_revocation_and_their_user(site: Site) -> None:
    expired = site.client(site.key(site.user(), expires=1))
    assert expired.get("/v1/models").status_code == 401
    site.user(email="leaver@example.org")
    browser = site.browser("leaver@example.org")
    made = browser.post("/api/keys", json={"name": "mine"}).json()
    client = site.client(made["secret"])
    assert client.get("/v1/models").status_code == 200
    assert browser.delete(f"/api/keys/{made['id']}").status_code == 200
    assert client.get("/v1/models").status_code == 401


def test_a_key_is_for_its_models(site: Site) -> None:
    _, client = site.customer(models=("other",))
    response = chat(client)
    assert response.status_code == 403
    assert response.headers["x-should-retry"] == "false"
    _, client = site.customer(models=("fake",))
    assert chat(client).status_code == 200
    _, client = site.customer(models=("deepseek-chat",))
    assert [chat(client, model=name).status_code for name in ("deepseek-chat", "deepseek-coder", "fake")] == [
        200,
        403,
        403,
    ]


def test_control_ids_need_a_permission(site: Site, tokenizer: Tokenizer) -> None:
    _, plain = site.customer()
    body = {"model": "fake", "prompt": [tokenizer.eos_id, 5], "max_tokens": 1}
    assert plain.post("/v1/completions", json=body).status_code == 403
    assert plain.post("/v1/completions", json={**body, "prompt": "x", "parse_special": True}).status_code == 403
    assert plain.post("/v1/completions", json={**body, "prompt": [5, 6]}).status_code == 200
    _, trusted = site.customer(control_tokens=True)
    assert trusted.post("/v1/completions", json=body).status_code == 200


def test_requests_a_minute_and_requests_at_once(site: Site) -> None:
    _, client = site.customer(requests_per_minute=2)
    statuses = [client.get("/v1/models") for _ in range(3)]
    assert [each.status_code for each in statuses] == [200, 200, 429]
    assert 1 <= int(statuses[2].headers["retry-after"]) <= 30
    _, client = site.customer(concurrency=0)
    refused = chat(client)
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"


def test_accounts_share_no_cached_prefix_and_user_id_divides_one(site: Site) -> None:
    _, one = site.customer()
    _, other = site.customer()
    prompt = "The depth of the water is what we are here to find. " * 20

    def hits(client: httpx2.Client, **fields: Any) -> int:
        return int(chat(client, prompt, **fields).json()["usage"]["prompt_cache_hit_tokens"])

    assert hits(one) == 0
    assert hits(one) > 0
    assert hits(other) == 0
    assert hits(one, user_id="a") == 0
    assert hits(one, user_id="a") > 0


# ---- what it costs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_the_bill_is_tokens_times_price_to_the_unit(site: Site, stream: bool) -> None:
    user_id, client = site.customer(balance=10**9)
    prompt = "How deep is the water under the ship of the captain? " * 15
    spent = 0
    for _ in range(2):
        options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        response = chat(client, prompt, **options)
        usage = events(response)[-1]["usage"] if stream else response.json()["usage"]
        spent += cost(usage)
        assert site.balance(user_id).total == 10**9 - spent, "it is settled when the answer has ended"
    assert usage["prompt_cache_hit_tokens"] > 0
    assert [bill.outcome for bill in site.bills(user_id)] == ["finished", "finished"]
    shown = client.get("/user/balance").json()
    whole, decimals = divmod(10**9 - spent, 10**9)
    total = f"{whole}.{decimals:09d}".rstrip("0")
    assert shown == {
        "is_available": True,
        "balance_infos": [
            {"currency": "USD", "total_balance": total, "granted_balance": "0.00", "topped_up_balance": total}
        ],
    }


def test_several_answers_and_prompts_on_one_bill(site: Site) -> None:
    user_id, client = site.customer()
    body = {"model": "fake", "prompt": ["one", "two"], "n": 2, "max_tokens": 7, **NEVER_ENDS}
    usage = client.post("/v1/completions", json=body).json()["usage"]
    assert usage["completion_tokens"] == 28
    assert 10**9 - site.balance(user_id).total == cost(usage)


def test_an_echo_alone_costs_its_prompt(site: Site) -> None:
    user_id, client = site.customer()
    body = {"model": "fake", "prompt": "Hello there", "echo": True, "max_tokens": 0, "logprobs": 0}
    usage = client.post("/v1/completions", json=body).json()["usage"]
    assert usage["completion_tokens"] == 0
    assert 10**9 - site.balance(user_id).total == cost(usage)


def test_an_account_without_money_gets_402_and_nothing_runs(site: Site) -> None:
    _, client = site.customer(balance=0)
    before = len(site.live.engine.requests)
    for stream in (False, True):
        response = chat(client, stream=stream)
        assert response.status_code == 402
        assert response.headers["x-should-retry"] == "false"
        error = response.json()["error"]
        assert (error["code"], error["type"]) == ("insufficient_balance", "insufficient_balance")
        assert error["message"].startswith("Insufficient Balance")
    assert len(site.live.engine.requests) == before
    assert client.get("/user/balance").json()["is_available"] is False


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_with_length_when_the_balance_does_and_says_why(site: Site, stream: bool) -> None:
    afforded = 300
    probe_id, probe = site.customer()
    prompt_tokens = chat(probe, max_tokens=1).json()["usage"]["prompt_tokens"]
    user_id, client = site.customer(balance=prompt_tokens * MISS + afforded * OUTPUT)
    response = chat(client, stream=stream, max_tokens=900, **NEVER_ENDS, stream_options={"include_usage": True})
    assert response.status_code == 200
    last = [event["choices"][0] for event in events(response) if event["choices"]][-1] if stream else None
    choice = last or response.json()["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "insufficient_balance")
    usage = events(response)[-1]["usage"] if stream else response.json()["usage"]
    assert usage["completion_tokens"] == afforded
    assert site.balance(user_id).total == 0
    assert [bill.outcome for bill in site.bills(user_id)] == ["balance"]
    assert probe_id != user_id


def test_a_long_answer_is_extended_to_its_end(site: Site) -> None:
    user_id, client = site.customer()
    answer = chat(client, max_tokens=900, **NEVER_ENDS).json()
    assert answer["usage"]["completion_tokens"] == 900
    assert answer["choices"][0]["finish_reason"] == "length"
    assert "stop_reason" not in answer["choices"][0]
    assert 10**9 - site.balance(user_id).total == cost(answer["usage"])


def test_a_keys_cap_answers_402_in_its_own_words(site: Site) -> None:
    _, client = site.customer(spend_cap=1000)
    error = chat(client).json()["error"]
    assert error["code"] == "budget_exceeded"


def test_the_official_client_sees_its_own_errors(site: Site) -> None:
    user_id, _ = site.customer(balance=0)
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key=site.key(user_id), max_retries=0) as official:
        with pytest.raises(openai.APIStatusError) as refused:
            official.chat.completions.create(model="fake", messages=[{"role": "user", "content": "Hello"}])
        assert refused.value.status_code == 402
    wrong = openai.OpenAI(base_url=f"{site.url}/v1", api_key="sk-wrong", max_retries=0)
    with wrong, pytest.raises(openai.AuthenticationError):
        wrong.models.list()


# ---- many at once, and those that leave ----------------------------------------------------------------------------


def test_two_hundred_at_once_on_a_balance_for_twenty(site: Site) -> None:
    _, probe = site.customer()
    tokens = chat(probe, max_tokens=8, **NEVER_ENDS).json()["usage"]
    user_id, client = site.customer(balance=20 * cost(tokens))
    key = client.headers["authorization"]
    body = {"model": "fake", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, **NEVER_ENDS}
    limits = httpx2.Limits(max_connections=40)
    many = httpx2.Client(base_url=site.url, headers={"authorization": key}, timeout=60, limits=limits)
    with many, concurrent.futures.ThreadPoolExecutor(40) as pool:
        statuses = list(pool.map(lambda _: many.post("/v1/chat/completions", json=body).status_code, range(200)))
    assert statuses.count(200) == 20
    assert statuses.count(402) == 180
    assert site.balance(user_id).total == 0


@pytest.mark.parametrize(
    ("count", "seconds"), [(20, 20.0), pytest.param(50, 1.0, marks=pytest.mark.slow)], ids=["busy machine", "quiet one"]
)
def test_stopped_streams_soon_hold_nothing(tokenizer: Tokenizer, tmp_path: Path, count: int, seconds: float) -> None:
    with live_site(tokenizer, tmp_path, context_length=2000, tokens_per_second=50) as slow:
        user_id, client = slow.customer(balance=10**12)
        headers = {"authorization": client.headers["authorization"]}
        body = {"messages": [{"role": "user", "content": "Hello"}], "stream": True, **NEVER_ENDS}
        stop = threading.Barrier(count + 1, timeout=30)

        def stream() -> int:
            with httpx2.stream("POST", f"{slow.url}/v1/chat/completions", json=body, headers=headers, timeout=30) as r:
                read = sum(1 for _ in itertools.islice(r.iter_raw(), 4))
                stop.wait()
            return read

        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            streams = [pool.submit(stream) for _ in range(count)]
            stop.wait()
            stopped = time.monotonic()
            assert all(each.result() for each in streams)
        left = stopped + seconds - time.monotonic()
        wait_until(lambda: not slow.live.engine.running and not slow.platform.meters.live, left)
        balance = slow.balance(user_id)
        assert balance.held == 0
        bills = slow.bills(user_id)
        assert {bill.outcome for bill in bills} == {"aborted"}
        assert sum(bill.amount for bill in bills) == 10**12 - balance.total > 0
        assert slow.faults() == []


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_before_the_first_token_costs_nothing(tokenizer: Tokenizer, tmp_path: Path, stream: bool) -> None:
    with live_site(tokenizer, tmp_path, context_length=512, first_token_seconds=30) as slow:
        user_id, client = slow.customer()
        body = {"messages": [{"role": "user", "content": "Hello"}], "stream": stream}
        with pytest.raises(httpx2.ReadTimeout):
            client.post("/v1/chat/completions", json=body, timeout=0.3)
        wait_until(lambda: not slow.live.engine.running and not slow.platform.meters.live)
        wait_until(lambda: slow.balance(user_id).held == 0)
        assert slow.balance(user_id).total == 10**9


def test_leaving_a_whole_answer_costs_the_prompt_and_a_failure_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with live_site(tokenizer, tmp_path, context_length=512, tokens_per_second=20) as slow:
        user_id, client = slow.customer()
        body = {"messages": [{"role": "user", "content": "Hello"}], **NEVER_ENDS}
        with pytest.raises(httpx2.ReadTimeout):
            client.post("/v1/chat/completions", json=body, timeout=0.5)
        wait_until(lambda: len(slow.bills(user_id)) == 1)
        bill = slow.bills(user_id)[0]
        assert (bill.outcome, bill.completion_tokens, bill.amount) == ("aborted", 0, bill.miss_tokens * MISS)
        assert bill.miss_tokens > 0
        slow.live.engine.error_after = 3
        other_id, other = slow.customer()
        assert chat(other).status_code == 500
        assert slow.balance(other_id).total == 10**9
        chat(other, stream=True)
        streamed = slow.bills(other_id)[-1]
        assert (streamed.outcome, streamed.completion_tokens) == ("failed", 3)


def test_the_metrics_tell_what_is_held_and_settled(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with live_site(tokenizer, tmp_path, context_length=512) as site:
        user_id, client = site.customer()
        usage = chat(client, max_tokens=5).json()["usage"]
        operator = site.client(site.key(site.user(role="admin")))
        assert client.get("/metrics").status_code == 403
        text = operator.get("/metrics").text
        samples = dict(line.split() for line in text.splitlines() if line.startswith("leadline_") and "{" not in line)
        assert float(samples["leadline_money_settled_total"]) == cost(usage) / 10**9
        assert (samples["leadline_money_held"], samples["leadline_holds"]) == ("0.0", "0.0")
        assert site.balance(user_id).held == 0
