"""The client of the chat protocol of 2024, and `main.py` with a token, against a server with accounts."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Generator
from decimal import Decimal

import jwt
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from leadline import errors
from leadline.client.backends import ChatOptions
from leadline.client.http import AsyncClient, Client
from leadline.client.legacy import LegacyBackend, check_token, legacy_url
from leadline.engine.fake import ANSWER
from leadline.server.accounts import end_session
from leadline.server.store import Store
from leadline.tokenizer import Tokenizer
from tests.fixtures_server import live_server
from tests.server.platform.site import Site, live_site
from tests.source import ROOT

TEXT = ANSWER.removeprefix(" ")


@pytest.fixture(scope="module")
def site(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Generator[Site, None, None]:
    with live_site(tokenizer, tmp_path_factory.mktemp("site"), context_length=512) as live:
        yield live
        assert live.faults() == []


@pytest.fixture
def token(site: Site) -> str:
    email = f"sailor{site.user()}@example.org"
    site.user(balance=10**9, email=email)
    return str(site.browser(email).post("/api/tokens", json={"name": ".env"}).json()["token"])


def run_main(url: str, secret: str, typed: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "DEEPSEEK": secret, "DEEPSEEK_BASE_URL": url}
    command = [sys.executable, str(ROOT / "main.py")]
    return subprocess.run(command, input=typed, capture_output=True, text=True, env=env, check=False)


def say(backend: LegacyBackend, text: str, temperature: float | None = None) -> str:
    return "".join(backend.stream([{"role": "user", "content": text}], ChatOptions(temperature)))


def test_the_server_keeps_the_conversation(site: Site, token: str) -> None:
    backend = LegacyBackend(f"{site.url}/v1", token)
    assert say(backend, "How deep?", temperature=0.5) == TEXT
    assert site.live.engine.requests[-1].params.temperature == 0.5
    first = len(site.live.engine.requests[-1].prompt_ids)
    say(backend, "How deep?")
    assert len(site.live.engine.requests[-1].prompt_ids) > first
    backend.forget()
    backend.choose("deepseek-coder")
    say(backend, "How deep?")
    assert len(site.live.engine.requests[-1].prompt_ids) == first
    assert backend.models() == ["deepseek-coder", "deepseek-chat"]
    with pytest.raises(errors.ModelNotFound):
        backend.choose("gpt")
    with pytest.raises(errors.UserError, match="system"):
        list(backend.stream([{"role": "system", "content": "x"}, {"role": "user", "content": "x"}], ChatOptions()))
    with pytest.raises(errors.InvalidRequest):
        say(backend, " ")
    backend.close()


def test_main_py_with_a_token(site: Site, token: str) -> None:
    done = run_main(site.url, token, "Hello\n/model\n/model deepseek-coder\nHello\n/clear\n/bye\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(TEXT) == 2
    assert "signed in as" in done.stderr
    assert "model: deepseek-coder" in done.stderr


def test_main_py_with_a_key(site: Site) -> None:
    key = site.key(site.user(balance=10**9))
    done = run_main(site.url, key, "Hello\n/bye\n")
    assert (done.returncode, TEXT in done.stdout) == (0, True)


def test_main_py_says_what_is_wrong_with_a_token(site: Site, token: str) -> None:
    claims = jwt.decode(token, options={"verify_signature": False})
    expired = jwt.encode({**claims, "exp": 1_700_000_000}, "0" * 32)
    forged = jwt.encode(claims, "0" * 32)
    for secret, words in ((expired, "expired on 2023-11-14"), (forged, "invalid"), ("nonsense", "neither a key")):
        done = run_main(site.url, secret, "Hello\n")
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert words in line
        assert "copy a new one" in line


def test_a_token_that_ends_on_the_way_is_said_in_words(site: Site, token: str) -> None:
    backend = LegacyBackend(site.url, token)
    claims = jwt.decode(token, options={"verify_signature": False})

    async def end(connection: AsyncConnection, _: Store) -> None:
        await end_session(connection, int(claims["sub"]), claims["sid"])

    site.work(end)
    with pytest.raises(errors.AuthenticationError, match="sign in again"):
        say(backend, "Hello")
    backend.close()


def test_a_server_without_accounts_needs_no_token(tokenizer: Tokenizer, token: str) -> None:
    with live_server(tokenizer) as server:
        done = run_main(server.url, token, "Hello\n/bye\n")
        assert done.returncode == 0, done.stderr
        assert "has no accounts" in done.stderr
        assert TEXT in done.stdout


def test_what_can_be_told_of_a_token_alone() -> None:
    check_token(jwt.encode({"exp": time.time() + 60}, "0" * 32), time.time())
    for text in ("", "a.b.c", "a", jwt.encode({}, "0" * 32), "a.bnVsbA.c"):
        with pytest.raises(errors.AuthenticationError):
            check_token(text, time.time())


@pytest.mark.parametrize("given", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/beta/"])
def test_where_the_protocol_is(given: str) -> None:
    assert legacy_url(given) == "http://h:1/api/v0"


def test_a_path_of_another_kind() -> None:
    with pytest.raises(errors.ConfigError):
        legacy_url("http://h/some/api")


def test_balance(site: Site) -> None:
    key = site.key(site.user(balance=25 * 10**8))
    with Client(site.url, api_key=key) as client:
        balance = client.balance()

    async def ask() -> object:
        async with AsyncClient(site.url, api_key=key) as asking:
            return await asking.balance()

    assert asyncio.run(ask()) == balance
    assert (balance.available, balance.currency, balance.total) == (True, "USD", Decimal("2.5"))
    assert balance.granted + balance.topped_up == balance.total
