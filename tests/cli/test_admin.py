"""`leadline admin` on a database of its own, backup and restore, and what `leadline serve` refuses and prints."""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from leadline.cli import run
from leadline.server import ledger, legal, owner, wallet
from leadline.server.accounts import find_user
from leadline.server.keys import find_key, list_keys
from leadline.server.store import open_store
from tests.source import ROOT


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


def test_what_a_user_asks_an_operator_for(admin: Admin) -> None:
    admin.out("user", "ada@example.org")
    admin.out("grant", "ada@example.org", "5")
    admin.out("correct", "ada@example.org", "1.5")
    assert admin.out("users") == ["1\tada@example.org\tuser\tactive\t3.50"]
    assert admin.out("usage", "--by", "day,user") == [
        "day,user,email,requests,cached_tokens,miss_tokens,completion_tokens,amount"
    ]
    assert [line.split("\t")[1:] for line in admin.out("ledger", "ada@example.org")] == [
        ["correction", "command line", "-1.50"],
        ["grant", "command line", "5.00"],
    ]
    assert len(admin.out("ledger", "ada@example.org", "--limit", "1")) == 1
    first, leaked = (admin.out("key", "ada@example.org", "--name", name)[0] for name in ("laptop", "leaked"))
    listed = [line.split("\t") for line in admin.out("keys", "ada@example.org")]
    assert [line[1:] for line in listed] == [
        ["laptop", f"{first[:6]}...{first[-4:]}", "never", "0.00"],
        ["leaked", f"{leaked[:6]}...{leaked[-4:]}", "never", "0.00"],
    ]
    admin.out("revoke", leaked)
    assert "no such key" in admin.error("revoke", leaked)
    admin.out("revoke", listed[0][0])
    assert admin.out("keys", "ada@example.org") == []
    assert "--yes" in admin.error("delete", "ada@example.org")
    admin.out("delete", "ada@example.org", "--yes")
    assert admin.out("users", "ada") == []
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
        (["correct", "ada@example.org", "0"], "above 0"),
        (["delete", "ada@example.org", "--yes"], "there is no user"),
        (["usage", "--by", "colour"], "day, user, model, key"),
        (["usage", "--since", "yesterday"], "2026-01-31"),
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
                await legal.check_accepted(connection, user.id)  # their own terms
                assert (await ledger.balance(connection, user.id, store.now())).granted == owner.STARTING_GRANT
                assert len(await list_keys(connection, user.id)) == 1
                assert await find_key(connection, store.secrets, first.key, store.now()) is None
                assert await find_key(connection, store.secrets, second.key, store.now()) is not None
            assert first.link != second.link

    asyncio.run(work())


def test_a_backup_brings_everything_back(admin: Admin, tmp_path: Path) -> None:
    admin.out("user", "ada@example.org")
    admin.out("grant", "ada@example.org", "5")
    code = admin.out("voucher", "2")[0]
    target = tmp_path / "backup.tar"
    admin.out("backup", str(target))
    assert target.stat().st_mode & 0o777 == 0o600
    assert "is there already" in admin.error("backup", str(target))
    assert "has an installation" in admin.error("restore", str(target))
    admin.folder = tmp_path / "elsewhere"
    admin.out("restore", str(target))
    assert admin.out("users") == ["1\tada@example.org\tuser\tactive\t5.00"]
    assert admin.out("check") == ["the books add up"]
    assert (admin.folder / "secrets.json").stat().st_mode & 0o777 == 0o600

    async def redeem() -> None:  # the secrets came along
        async with open_store(admin.folder, durable=False) as store, store.database.write() as connection:
            assert (await wallet.redeem(connection, store.secrets, 1, code, store.now())).amount == 2 * 10**9

    asyncio.run(redeem())


@pytest.mark.parametrize("damage", ["", "nonsense", "cut"])
def test_what_is_no_backup_restores_nothing(admin: Admin, tmp_path: Path, damage: str) -> None:
    admin.out("user", "ada@example.org")
    target = tmp_path / "backup.tar"
    admin.out("backup", str(target))
    whole = target.read_bytes()
    target.write_bytes(whole[: len(whole) // 2] if damage == "cut" else damage.encode())
    admin.folder = tmp_path / "elsewhere"
    assert "backup" in admin.error("restore", str(target))
    assert not (admin.folder / "leadline.db").exists()
    assert "no installation" in admin.error("backup", str(tmp_path / "other.tar"))


def test_terms_and_links_at_the_command_line(admin: Admin, tmp_path: Path) -> None:
    assert admin.out("terms")[0] == "# Terms of use"
    (tmp_path / "terms.md").write_text("# Ours", encoding="utf-8")
    assert admin.out("terms", str(tmp_path / "terms.md")) == ["version 2"]
    assert admin.out("terms") == ["# Ours"]
    assert "cannot read" in admin.error("terms", str(tmp_path / "no.md"))
    admin.out("user", "ada@example.org")
    assert len(admin.out("link", "ada@example.org")[0]) == 32


def test_the_systemd_unit_verifies() -> None:
    unit = ROOT / "deploy/leadline.service"
    assert "ExecStart=" in unit.read_text(encoding="utf-8")
    if verify := shutil.which("systemd-analyze"):
        done = subprocess.run([verify, "verify", str(unit)], capture_output=True, text=True, check=False)
        complaints = [line for line in done.stderr.splitlines() if unit.name in line]  # not of the machine's own units
        assert (done.returncode, complaints) == (0, [])


def test_the_example_of_a_configuration_is_understood(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LEADLINE_SERVE_CONFIG", str(ROOT / "deploy/leadline.toml"))
    assert run(["serve", "--port", "0", "--data", "/proc/nowhere"]) == 2
    assert "cannot use the folder /proc/nowhere" in capsys.readouterr().err, "all else is well"


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
    assert run(["serve", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_serving_with_accounts_prints_a_key_that_works(tiny_lite_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "leadline", "serve", "--port", "0", "--data", str(tmp_path / "data")]
    command += ["--log-level", "info", "--log-format", "json"]
    options = ["--model", str(tiny_lite_folder), "--max-model-len", "256", "--max-memory", "1GiB"]
    log = tmp_path / "log"
    with (
        log.open("w") as stderr,
        subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
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
            link = process.stdout.readline().split(": ")[1].strip()
            assert link.startswith(f"{url}/signin#")
            assert httpx2.get(f"{url}/ready").json() == {"status": "ready"}
            with httpx2.Client(base_url=url) as browser:
                owner_card = browser.post("/api/signin", json={"token": link.partition("#")[2]}).json()
                assert owner_card["role"] == "admin"
                assert browser.get("/api/session").json()["user"] == owner_card
                assert browser.post("/api/signin", json={"token": link.partition("#")[2]}).status_code == 401
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    requests = [line for line in lines if line["logger"] == "leadline.access"]
    assert [(line["message"], line["status"]) for line in requests][:2] == [
        ("GET /v1/models", 401),
        ("POST /v1/chat/completions", 200),
    ]
    assert requests[1]["account"] == owner_card["id"]
    assert "who are you" not in json.dumps(lines), "no prompt is written down"
    assert link.partition("#")[2] not in json.dumps(lines)
