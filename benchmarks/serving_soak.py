"""Whether the server's memory grows while paid answers come and go.

    python benchmarks/serving_soak.py --seconds 300                               # a first look
    python benchmarks/serving_soak.py --output benchmarks/results                 # half an hour, and the table

The server is the one of serving_load.py with accounts: leadline's own, over an engine that has no model and paces its
tokens. Its clients are a process of their own. Each of them asks one thing after another, as people and programs do:
answers of some hundred tokens, most of them streamed over the API, some sent whole, some left in the middle, some a
message on the website that its page watches. Every request is held for and billed. What is reported is the slope of
the server's resident memory, by least squares, after a warm-up in which caches fill.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from serving_load import RATE, STAMP, books, cpu_seconds, memory_mib, pacing, small_tokenizer

WARM_SECONDS = 300.0  # of a run of half an hour; a sixth of any
EVERY_SECONDS = 5.0
TOKENS = (100, 500)  # of an answer
REMEMBERED = 100  # of the fake engine's list of requests, which is for tests
WORDS = "deep water line lead sound fathom mark reef harbour tide keel anchor chart wind sail rope".split()
SHARES = {"stream": 0.7, "whole": 0.1, "leave": 0.1, "page": 0.1}  # of the requests


# ---- the server ----------------------------------------------------------------------------------------------------


def serve(folder: Path) -> None:
    """Print the URL, a key and a cookie, then serve until a signal comes."""
    from leadline.server.app import create_app
    from leadline.server.run import bind, serve_app, url

    with tempfile.TemporaryDirectory() as made:
        tokenizer = small_tokenizer(Path(made))
        platform, key = books(folder)
        cookie = asyncio.run(sign_in(folder))
        engine: Any = pacing(tokenizer)
        engine.requests = collections.deque(maxlen=REMEMBERED)
        sock = bind("127.0.0.1", 0)
        app = create_app(engine, tokenizer, None, platform)
        serve_app(app, sock, ready=lambda: print(url(sock), key, cookie, flush=True), grace=1)


async def sign_in(folder: Path) -> str:
    """The customer's session on the website."""
    from leadline.server import accounts, legal
    from leadline.server.store import open_store

    async with open_store(folder) as store, store.database.write() as connection:
        await legal.ensure_terms(connection, store.now())
        user = await accounts.find_user(connection, "load@example.org")
        assert user is not None
        await accounts.change_user(connection, user.id, terms=await legal.current_version(connection))
        _, token = await accounts.start_session(connection, store.secrets, user.id, now=store.now())
    return token


# ---- the clients ---------------------------------------------------------------------------------------------------


class Client:
    """One after another, each request on a connection of its own."""

    def __init__(self, url: str, key: str, cookie: str, seed: int, waits: collections.Counter[int]) -> None:
        self.host, _, port = url.removeprefix("http://").partition(":")
        self.port = int(port)
        self.key, self.cookie = key, cookie
        self.chance = random.Random(seed)
        self.waits = waits  # by tenths of a millisecond from the engine to here
        self.done: collections.Counter[str] = collections.Counter()

    async def run(self) -> None:
        await asyncio.sleep(self.chance.random() * TOKENS[1] / RATE)
        while True:
            kind = self.chance.choices(list(SHARES), list(SHARES.values()))[0]
            await getattr(self, kind)()
            self.done[kind] += 1

    async def stream(self) -> None:
        await self._exchange(*self._completion(stream=True))

    async def whole(self) -> None:
        await self._exchange(*self._completion(stream=False))

    async def leave(self) -> None:
        """In the middle of a stream."""
        seconds = self.chance.random() * TOKENS[0] / RATE
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._exchange(*self._completion(stream=True)), seconds)

    async def page(self) -> None:
        """A chat on the website, a message in it, and its answer watched to the end."""
        chat = json.loads(await self._exchange("POST", "/api/chats", {}))["id"]
        asked = {"content": self._words(), "max_tokens": self._tokens()}
        said = json.loads(await self._exchange("POST", f"/api/chats/{chat}/messages", asked))
        await self._exchange("GET", f"/api/chats/{chat}/messages/{said['answer']['id']}/stream", None)

    def _completion(self, *, stream: bool) -> tuple[str, str, Any]:
        asked = {"messages": [{"role": "user", "content": self._words()}], "stream": stream, "ignore_eos": True}
        return "POST", "/v1/chat/completions", {**asked, "max_tokens": self._tokens()}

    def _words(self) -> str:
        return " ".join(self.chance.choices(WORDS, k=12))

    def _tokens(self) -> int:
        return self.chance.randint(*TOKENS)

    async def _exchange(self, method: str, path: str, body: Any) -> bytes:
        """The answer's body, if it is in one piece."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            content = b"" if body is None else json.dumps(body).encode()
            proof = (
                f"Cookie: leadline_session={self.cookie}"
                if path.startswith("/api")
                else f"Authorization: Bearer {self.key}"
            )
            lines = [f"{method} {path} HTTP/1.1", f"Host: {self.host}:{self.port}", proof, "Connection: close"]
            lines += [f"Content-Type: application/json\r\nContent-Length: {len(content)}"] if content else []
            writer.write("\r\n".join([*lines, "", ""]).encode() + content)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.split(b" ", 2)[1] in (b"200", b"201", b"202"), head
            return await self._rest(reader)
        finally:
            writer.close()

    async def _rest(self, reader: asyncio.StreamReader) -> bytes:
        last = b""
        while received := await reader.read(1 << 16):
            now = time.monotonic_ns()
            for stamp in STAMP.findall(received):
                self.waits[(now - int(stamp)) // 100_000] += 1
            last = received
        return last


async def load(url: str, key: str, cookie: str, clients: int, seconds: float) -> dict[str, Any]:
    waits: collections.Counter[int] = collections.Counter()
    people = [Client(url, key, cookie, number, waits) for number in range(clients)]
    cpu, start = time.process_time(), time.monotonic()
    tasks = [asyncio.create_task(each.run()) for each in people]
    ended, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in ended:
        task.result()
    passed = time.monotonic() - start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    done = sum((each.done for each in people), collections.Counter())
    return {
        "requests": dict(done),
        "tokens_per_second": waits.total() / passed,
        "p50_ms": quantile(waits, 0.5),
        "p99_ms": quantile(waits, 0.99),
        "client_cpu": (time.process_time() - cpu) / passed,
    }


def quantile(waits: collections.Counter[int], share: float) -> float:
    left = share * waits.total()
    for tenths in sorted(waits):
        left -= waits[tenths]
        if left <= 0:
            return tenths / 10
    return 0.0


# ---- measuring -----------------------------------------------------------------------------------------------------


def measure(clients: int, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "serve", "--folder", folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                told = server.stdout.readline().split()
                asked = [sys.executable, __file__, "load", *told, "--clients", str(clients), "--seconds", str(seconds)]
                with subprocess.Popen(asked, stdout=subprocess.PIPE, text=True) as running:
                    before = cpu_seconds(server.pid)
                    samples = watch(server.pid, running)
                    used = cpu_seconds(server.pid) - before
                    assert running.stdout is not None
                    result = json.loads(running.stdout.read())
            finally:
                server.terminate()
    return {"clients": clients, "seconds": seconds, **result, "server_cpu": used / samples[-1][0], "memory": samples}


def watch(pid: int, client: subprocess.Popen[str]) -> list[tuple[float, float]]:
    """MiB of the server, by seconds, while its clients run."""
    start, samples = time.monotonic(), []
    while client.poll() is None:
        samples.append((round(time.monotonic() - start, 1), memory_mib(pid)))
        time.sleep(EVERY_SECONDS)
    return samples


def after_warm_up(result: dict[str, Any]) -> list[tuple[float, float]]:
    warm = min(WARM_SECONDS, result["seconds"] / 6)
    return [(when, mib) for when, mib in result["memory"] if when >= warm]


def slope(samples: list[tuple[float, float]]) -> float:
    """MiB a minute."""
    return 60 * statistics.linear_regression(*zip(*samples, strict=True))[0]


def table(result: dict[str, Any], machine: str) -> str:
    samples = after_warm_up(result)
    half = len(samples) // 2
    facts = [
        ("clients, each with one request at a time", f"{result['clients']}"),
        ("minutes", f"{result['seconds'] / 60:.0f}, of which {samples[0][0] / 60:.0f} are the warm-up"),
        *((f"requests: {kind}", f"{count:,}") for kind, count in sorted(result["requests"].items())),
        ("tokens a second, streamed over the API", f"{result['tokens_per_second']:,.0f}"),
        ("from the engine to the client, p50 and p99", f"{result['p50_ms']:.1f} and {result['p99_ms']:.1f} ms"),
        ("CPU of the server, of the clients", f"{result['server_cpu']:.0%}, {result['client_cpu']:.0%} of a core"),
        (
            "memory at the start, after the warm-up, at the end",
            " ".join(f"{mib:.1f}" for mib in points(result)) + " MiB",
        ),
        ("growth after the warm-up", f"**{slope(samples):+.3f} MiB a minute**"),
        (
            "growth in its first and second half",
            f"{slope(samples[:half]):+.3f}, {slope(samples[half:]):+.3f} MiB a minute",
        ),
    ]
    lines = ["# Memory while paid answers come and go", "", machine, "", "| | |", "|---|---:|"]
    lines += [f"| {name} | {value} |" for name, value in facts]
    return "\n".join(
        [*lines, "", "`python benchmarks/serving_soak.py` makes this table; the samples are beside it.", ""]
    )


def about(found: dict[str, Any]) -> str:
    """The machine, and whether it had other work: then the milliseconds are its own, the memory is not."""
    machine = f"{found['cpu']}, {found['cores']} cores, Python {found['python']}; server and clients share the machine"
    busy = f", which had other work too (load {found['load']:.0f} at the end): its waits are in the milliseconds."
    return machine + (busy if found["load"] > found["cores"] else ".")


def points(result: dict[str, Any]) -> list[float]:
    return [result["memory"][0][1], after_warm_up(result)[0][1], result["memory"][-1][1]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("part", nargs="?", default="run", choices=["run", "serve", "load"])
    parser.add_argument("told", nargs="*")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.part == "serve":
        serve(arguments.folder)
    elif arguments.part == "load":
        print(json.dumps(asyncio.run(load(*arguments.told, arguments.clients, arguments.seconds))))
    else:
        report(measure(arguments.clients, arguments.seconds), arguments.output)


def report(result: dict[str, Any], output: Path | None) -> None:
    from machine import describe

    found = describe()
    machine = about(found)
    print(table(result, machine))
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        whole = json.dumps({"machine": found, "result": result}, indent=1) + "\n"
        (output / "serving_soak.json").write_text(whole)
        (output / "serving_soak.md").write_text(table(result, machine))


if __name__ == "__main__":
    main()
