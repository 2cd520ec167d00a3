"""`leadline admin` on a database of its own, and what `leadline serve --accounts` refuses and prints at its start."""

from __future__ import annotations

import asyncio
import shlex
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from leadline.cli import run
from leadline.server import ledger, owner
from leadline.server.accounts import find_user
from leadline.server.keys import find_key, list_keys
from leadline.server.store import open_store


@pytest.fixture
def admin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Admin:
    return Admin(tmp_path / "data", capsys)


class Admin:
    """Runs a command line; `out` is what it printed, `error` the one line of a failure."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.capsys = capsys

    def out(self, *arguments: str) -> list[str]:
        assert run(["admin", *arguments, "--data", str(self.folder)]) == 0
        return self.capsys.readouterr().out.splitlines()

    def error(self, *arguments: str) -> str:
        assert run(["admin", *arguments, "--data", str(self.folder)]) == 2
        lines = self.capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        return lines[0]


def test_an_installation_by_hand(admin: Admin) -> None:
    assert len(admin.out("user", "Ada@example.org", "--role", "admin")[0]) == 32
    admin.out("grant", "ada@example.org", "12.5", "--days", "30")
    admin.out("grant", "ada@example.org", "0.000000001", "--topped-up")
    assert admin.out("users", "ada") == ["1\tada@example.org\tadmin\tactive\t12.500000001"]
    assert admin.out("users", "nobody") == []
    assert admin.out("price", "m", "--hit", "0.1", "--miss", "1", "--output", "2") == ["m\t1\t0.10\t1.00\t2.00"]
    assert len(admin.out("voucher", "5", "--count", "3")) == 3
    assert len(admin.out("invite", "--grant", "1", "--uses", "2")[0]) == 32
    assert admin.out("key", "ada@example.org", "--name", "laptop")[0].startswith("sk-")
    assert len(admin.out("reset", "ada@example.org")[0]) == 32
    admin.out("change", "ada@example.org", "--state", "disabled")
    assert admin.out("users")[0].split("\t")[3] == "disabled"
    assert admin.out("check") == ["the books add up"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["grant", "ada@example.org", "1"], "there is no user"),
        (["user", "nobody"], "no email address"),
        (["grant", "ada@example.org", "-1"], ""),
        (["grant", "ada@example.org", "0"], "above 0"),
        (["price", "m", "--hit", "1"], "needs --hit, --miss and --output"),
        (["price", "m", "--hit", "1e5", "--miss", "1", "--output", "1"], "decimal number"),
        (["voucher", "1", "--count", "0"], "count must lie in"),
        (["invite", "--uses", "0"], "above 0"),
        (["change", "ada@example.org"], "--role or --state"),
    ],
)
def test_mistakes_are_one_line(admin: Admin, arguments: list[str], words: str) -> None:
    assert words in admin.error(*arguments)


def test_books_that_do_not_add_up_are_told(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    admin.out("user", "ada@example.org")
    admin.out("grant", "ada@example.org", "1")
    with sqlite3.connect(admin.folder / "leadline.db") as connection:
        connection.execute("UPDATE buckets SET balance = balance + 1")
    connection.close()
    assert run(["admin", "check", "--data", str(admin.folder)]) == 1
    assert "bucket 1 is not the sum of its entries" in capsys.readouterr().out


def test_the_first_steps_of_an_owner(tmp_path: Path) -> None:
    async def work() -> None:
        async with open_store(tmp_path, durable=False) as store:
            first = await owner.first_steps(store)
            second = await owner.first_steps(store)
            async with store.database.read() as connection:
                user = await find_user(connection, owner.OWNER)
                assert user is not None
                assert user.role == "admin"
                assert (await ledger.balance(connection, user.id, store.now())).granted == owner.STARTING_GRANT
                assert len(await list_keys(connection, user.id)) == 1
                assert await find_key(connection, store.secrets, first.key, store.now()) is None
                assert await find_key(connection, store.secrets, second.key, store.now()) is not None
            assert first.link != second.link

    asyncio.run(work())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "in the clear"),
        (["--host", "example.org", "--allowed-host", "example.org"], "in the clear"),
        (["--tls-cert", "a"], "belong together"),
        (["--tls-cert", "a", "--tls-key", "b"], "cannot be used for TLS"),
        (["--database", "nonsense", "--port", "0"], "database URL"),
        (["--data", "/proc/nowhere", "--port", "0"], "cannot use the folder"),
    ],
)
def test_serving_with_accounts_refuses(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--accounts", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_serving_with_accounts_prints_a_key_that_works(tiny_lite_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "leadline", "serve", "--accounts", "--port", "0", "--data", str(tmp_path / "data")]
    options = ["--model", str(tiny_lite_folder), "--max-model-len", "256", "--max-memory", "1GiB"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().split(" is served at ")[1].split()[0]
            words = shlex.split(process.stdout.readline())
            headers = dict(words[place + 1].split(": ") for place, word in enumerate(words) if word == "-H")
            assert httpx2.get(f"{url}/v1/models").status_code == 401
            answer = httpx2.post(words[1], content=words[-1], headers=headers, timeout=60)
            assert answer.status_code == 200, answer.text
            balance = httpx2.get(f"{url}/user/balance", headers=headers).json()["balance_infos"][0]
            usage = answer.json()["usage"]
            spent = usage["prompt_tokens"] * 140 + usage["completion_tokens"] * 280
            assert balance["granted_balance"] == f"{100 - spent / 10**9:.9f}".rstrip("0")
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
