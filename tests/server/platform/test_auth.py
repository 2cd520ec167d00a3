"""Secrets, passwords, keys and limits by themselves."""

from __future__ import annotations

import asyncio
import stat
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadline.errors import AuthenticationError, ConfigError, InvalidRequest, RateLimited
from leadline.server.auth import Claims, Passwords, check_password, is_key, issue_token, masked, new_key, read_token
from leadline.server.limits import Rates, Slots, Throttle, network
from leadline.server.secret_file import load_secrets, new_secrets
from leadline.server.store import open_store
from tests.server.platform.books import Clock
from tests.server.platform.site import HASHER


def test_secrets_are_made_once_and_only_their_user_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    made = load_secrets(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_secrets(path) == made
    assert [each.name for each in tmp_path.iterdir()] == ["secrets.json"]
    assert made.jwt not in repr(made)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="others can read"):
        load_secrets(path)


@pytest.mark.parametrize("text", ["", "{}", '{"jwt": "00", "pepper": "00"}', '{"jwt": 1, "pepper": 2}', "[]"])
def test_what_are_no_secrets_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "secrets.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="does not hold"):
        load_secrets(path)


def test_a_digest_is_of_one_purpose_and_one_installation() -> None:
    one, other = new_secrets(), new_secrets()
    assert len({one.digest("key", "x"), one.digest("voucher", "x"), other.digest("key", "x")}) == 3


def test_a_clock_that_is_set_back_a_little_signs_nobody_out() -> None:
    secret, claims, now = new_secrets().jwt, Claims(1, "session", "web"), int(time.time())
    token = issue_token(secret, claims, now=now + 30, expires=now + 1000)
    assert read_token(secret, token, "web") == claims
    for issued, expires in ((now + 3600, now + 7200), (now - 7200, now - 3600)):
        with pytest.raises(AuthenticationError):
            read_token(secret, issue_token(secret, claims, now=issued, expires=expires), "web")


def test_passwords() -> None:
    async def run() -> None:
        passwords = Passwords(HASHER)
        stored = await passwords.hash("correct horse")
        assert stored.startswith("$argon2id$")
        assert await passwords.verify(stored, "correct horse")
        assert not await passwords.verify(stored, "wrong horse")
        assert not await passwords.verify("", "")
        assert not await passwords.verify("broken", "x")
        assert Passwords().is_old(stored), "cheaper than today's"

    asyncio.run(run())


def test_password_rules() -> None:
    check_password("x" * 64 + "水" * 100)
    for bad in ("1234567", "x" * 257, "PASSWORD1"):
        with pytest.raises(InvalidRequest):
            check_password(bad)
    with pytest.raises(InvalidRequest):
        check_password("captain1", "Captain1@example.org")


def test_keys_have_a_checksum() -> None:
    key = new_key()
    assert is_key(key)
    assert len({new_key() for _ in range(100)}) == 100
    for place in range(3, len(key)):
        other = "0" if key[place] != "0" else "1"
        assert not is_key(key[:place] + other + key[place + 1 :])


@given(st.text())
def test_no_text_is_a_key_by_accident_and_masks_show_four_letters(text: str) -> None:
    assert not is_key(text)
    assert masked(text) in ("****", f"****{text[-4:]}")


def test_rates_let_a_minute_through_at_once_and_then_their_rate() -> None:
    clock = Clock()
    rates = Rates(clock)
    for _ in range(6):
        rates.take("a", 6)
    with pytest.raises(RateLimited) as refused:
        rates.take("a", 6)
    assert refused.value.retry_after == 10
    rates.take("b", 6)
    clock.now += 10
    rates.take("a", 6)
    with pytest.raises(RateLimited):
        rates.take("a", 6)
    with pytest.raises(RateLimited):
        rates.take("c", 0)


def test_slots_are_given_back() -> None:
    slots = Slots()
    slots.take("a", 1)
    with pytest.raises(RateLimited):
        slots.take("a", 1)
    slots.take("b", 1)
    slots.give("a")
    slots.take("a", 1)


def test_a_throttle_blocks_after_failures_and_forgets() -> None:
    clock = Clock()
    throttle = Throttle(3, 300, clock)
    for _ in range(10):
        throttle.begin("good")
        throttle.succeed("good")
    for _ in range(3):
        throttle.begin("bad")
    with pytest.raises(RateLimited) as refused:
        throttle.begin("bad")
    assert refused.value.retry_after == 300
    clock.now += 299
    with pytest.raises(RateLimited):
        throttle.begin("bad")
    clock.now += 2
    throttle.begin("bad")
    throttle.begin("good")


def test_limits_forget_who_was_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leadline.server.limits.FORGET_ABOVE", 10)
    clock = Clock()
    rates, throttle = Rates(clock), Throttle(3, 300, clock)
    for number in range(100):
        rates.take(number, 5)
        throttle.begin(number)
        clock.now += 30
    assert len(rates._buckets) <= 12
    assert len(throttle._attempts) <= 12


@pytest.mark.parametrize(
    ("address", "source"),
    [("192.0.2.1", "192.0.2.1"), ("2001:db8::1", "2001:db8::/64"), ("2001:db8::ffff", "2001:db8::/64"), ("x", "x")],
)
def test_one_source_is_an_address_or_a_customers_network(address: str, source: str) -> None:
    assert network(address) == source


def test_the_first_start_decides_the_currency(tmp_path: Path) -> None:
    async def run() -> None:
        async with open_store(tmp_path / "new" / "place", durable=False) as store:
            await store.set_currency("CNY")
            price = await store.ensure_price("model")
            assert (await store.ensure_price("model")) == price
        async with open_store(tmp_path / "new" / "place", durable=False) as store:
            with pytest.raises(ConfigError, match="kept in CNY"):
                await store.set_currency("USD")

    asyncio.run(run())
    assert stat.S_IMODE((tmp_path / "new" / "place").stat().st_mode) == 0o700


def test_a_folder_that_others_may_read_gives_them_no_chats(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)

    def check() -> None:
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        assert set(modes) >= {"leadline.db", "leadline.db-wal"}
        assert set(modes.values()) == {0o600}

    async def write() -> None:
        async with open_store(tmp_path) as store:
            await store.set_currency("USD")
            check()

    asyncio.run(write())
    (tmp_path / "leadline.db").chmod(0o644)  # as an earlier version left it
    asyncio.run(write())


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    async def run() -> None:
        async with open_store(tmp_path / "file" / "folder"):
            raise AssertionError("it cannot be")

    with pytest.raises(ConfigError, match="cannot use the folder"):
        asyncio.run(run())
