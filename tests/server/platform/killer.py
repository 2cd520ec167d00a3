"""Kill a server with streams in flight, at random moments, and look at what is left. ROUNDS SEED FOLDER LAG.

Every round forks a child: a server with accounts over a fake engine, and eight clients that stream from it over
sockets, one answer after the other, half of them with a key and half of them on the site, and log what they have read.
It is killed with SIGKILL; the clock is moved past the lease; a sweep runs. Then all that was settled is still billed as
it was, what was cut off is billed within LAG seconds of what its client had read, a message of the site holds exactly
the tokens that its bill has, no hold is left, and the books add up.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from sqlalchemy import select

from leadline.engine.fake import ANSWER, FakeEngine
from leadline.server import accounts, keys, ledger, wallet
from leadline.server.answers import Answers
from leadline.server.app import create_app
from leadline.server.billing import LEASE_SECONDS, Billing
from leadline.server.completion import CompletionService
from leadline.server.db import Database, chats, holds, messages, usage
from leadline.server.platform import COOKIE, Platform, PlatformSettings
from leadline.server.run import Server, bind
from leadline.server.store import open_store
from leadline.server.titles import Titler
from leadline.tokenizer import Tokenizer
from tests.fixtures_server import small_tokenizer

STREAMS = 8
RATE = 100  # tokens a second of each stream
START = 30.0

Log = Callable[[str], None]


class Steady(FakeEngine):
    """One that never makes up for lost time: on a machine that stood still a second has no more tokens than elsewhere,
    as with a model."""

    async def _pause(self, due: float) -> None:
        await asyncio.sleep(self.seconds_per_token)


async def serve(folder: Path, tokenizer: Tokenizer, customer: Customer, log: Log) -> None:
    engine = Steady(tokenizer, tokens_per_second=RATE, context_length=4096)
    platform = Platform(PlatformSettings(folder, durable=False, requests_per_minute=10**6))
    with bind("127.0.0.1", 0) as sock:
        ready = asyncio.Event()
        server = Server(create_app(engine, tokenizer, None, platform), ready=ready.set, grace=1)
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        await ready.wait()
        port = sock.getsockname()[1]
        clients = [asyncio.create_task(client(port, customer.key, n, log)) for n in range(0, STREAMS, 2)]
        clients += [asyncio.create_task(visitor(port, customer.cookie, n, log)) for n in range(1, STREAMS, 2)]
        await asyncio.gather(serving, *clients)


async def client(port: int, key: str, number: int, log: Log) -> None:
    """Short answers from some, long ones from others."""
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        fields = {"messages": [{"role": "user", "content": "Hello"}], "stream": True, "ignore_eos": True}
        body = json.dumps({**fields, "max_tokens": 5 + 12 * number**2}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await read(reader, log)
        writer.close()


async def visitor(port: int, cookie: str, number: int, log: Log) -> None:
    """One chat, question after question; each answer is watched to its end."""
    chat = (await site(port, cookie, "POST", "/api/chats", {"max_tokens": 5 + 12 * number**2}))["id"]
    while True:
        path = f"/api/chats/{chat}/messages"
        answer = (await site(port, cookie, "POST", path, {"content": "Hello", "parent": None}))["answer"]["id"]
        reader, writer = await ask(port, cookie, "GET", f"{path}/{answer}/stream", None)
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                tokens = event["completion_tokens"] if event["type"] == "text" else "done"
                log(f"{chat}/{answer} {tokens}")
        writer.close()


async def site(port: int, cookie: str, method: str, path: str, body: Any) -> Any:
    reader, writer = await ask(port, cookie, method, path, body)
    answer = await reader.read()
    writer.close()
    return json.loads(answer.partition(b"\r\n\r\n")[2])


async def ask(
    port: int, cookie: str, method: str, path: str, body: Any
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncookie: {COOKIE}={cookie}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    return reader, writer


async def read(reader: asyncio.StreamReader, log: Log) -> None:
    request_id, count = "", 0
    while line := await reader.readline():
        if line.startswith(b"data: {"):
            chunk = json.loads(line[6:])
            request_id, choice = chunk["id"], chunk["choices"][0]
            count += bool(choice["delta"].get("content"))
            log(f"{request_id} {count}")
        elif line.startswith(b"data: [DONE]"):
            log(f"{request_id} done")
            return


def killed(folder: Path, tokenizer: Tokenizer, customer: Customer, seconds: float) -> dict[str, str]:
    """What the clients had read of each answer when the server was killed: a number of pieces, or `done`."""
    path = folder / "log"
    path.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        asyncio.run(serve(folder, tokenizer, customer, lambda line: void(os.write(out, f"{line}\n".encode()))))
        os._exit(1)
    try:
        deadline = time.monotonic() + START
        while not path.exists() or len(read_log(path)) < STREAMS:
            assert time.monotonic() < deadline, "the server has not started"
            time.sleep(0.01)
        time.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return read_log(path)


def read_log(path: Path) -> dict[str, str]:
    """The last word on each answer; the log's own last line may be cut off."""
    lines = [line.split() for line in path.read_text().splitlines()[:-1]]
    return {line[0]: line[1] for line in lines}


def void(_: int) -> None:
    pass


class Customer(NamedTuple):
    key: str
    cookie: str


async def start(folder: Path) -> Customer:
    async with open_store(folder, durable=False) as store, store.database.write() as connection:
        now = store.now()
        user = await accounts.create_user(connection, "ada@example.org", "", now=now)
        await wallet.grant(connection, user.id, 10**15, ref="test", now=now)
        await accounts.change_user(connection, user.id, terms=1)
        _, key = await keys.create_key(connection, store.secrets, user.id, keys.KeySpec(), now)
        _, cookie = await accounts.start_session(connection, store.secrets, user.id, now=now)
        return Customer(key, cookie)


async def check(folder: Path, tokenizer: Tokenizer, seen: dict[str, str], done: dict[str, int], lag: float) -> int:
    """The number of holds that were swept. `lag` is in tokens."""
    async with open_store(folder, durable=False) as store:
        nobody = cast("CompletionService", None)
        titler = Titler(nobody, lambda: store.database, "words")
        witness = Answers(nobody, lambda: store.database, 0, titler)  # as the next start has it
        billing = Billing(store.database, clock=lambda: time.time() + LEASE_SECONDS + 1, witness=witness)
        await must_add_up(store.database)
        swept = await billing.sweep()
        await must_add_up(store.database)
        async with store.database.read() as connection:
            bills = {bill.request_id: bill for bill in await connection.execute(usage.select())}
            assert (await connection.execute(holds.select())).all() == []
            query = select(messages, chats.c.token).join(chats, chats.c.id == messages.c.chat_id)
            answers = (await connection.execute(query.where(messages.c.role == "assistant"))).all()
    seen = check_messages(tokenizer, answers, bills, seen)
    assert done.items() <= {name: bill.amount for name, bill in bills.items()}.items(), "a bill never changes"
    for request_id, state in seen.items():
        bill = bills[request_id]
        if state == "done":
            assert bill.outcome == "finished"
        elif bill.outcome == "swept":
            assert abs(bill.completion_tokens - int(state)) <= lag, f"billed {bill.completion_tokens}, read {state}"
    done.update({name: bill.amount for name, bill in bills.items()})
    return swept


def check_messages(
    tokenizer: Tokenizer, answers: Sequence[Any], bills: dict[str, Any], seen: dict[str, str]
) -> dict[str, str]:
    """What was seen, by requests: messages are known by theirs."""
    script = tokenizer.encode(ANSWER)
    names = {}
    for answer in answers:
        bill = bills[answer.request_id]
        assert answer.status in ("done", "stopped"), (answer, bill)
        assert (answer.cost, answer.completion_tokens) == (bill.amount, bill.completion_tokens)
        said = tokenizer.decode([*script, tokenizer.eos_id][: answer.completion_tokens], skip_special_tokens=True)
        assert said.removeprefix(" ") == answer.content, "the tokens stored are the tokens billed"
        names[f"{answer.token}/{answer.number}"] = answer.request_id
    return {names.get(name, name): state for name, state in seen.items()}


async def must_add_up(database: Database) -> None:
    async with database.read() as connection:
        assert await ledger.faults(connection) == []


def main(rounds: int, seed: int, folder: Path, seconds: float) -> None:
    tokenizer = small_tokenizer(folder / "tokenizer")
    customer = asyncio.run(start(folder))
    chance = random.Random(seed)
    done: dict[str, int] = {}
    swept = 0
    for _ in range(rounds):
        seen = killed(folder, tokenizer, customer, chance.uniform(0.0, 1.2))
        swept += asyncio.run(check(folder, tokenizer, seen, done, seconds * RATE))
    print(f"{rounds} kills, {len(done) - swept} settled before, {swept} swept after")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4]))
