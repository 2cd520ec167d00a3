"""How many streams one server process holds: 20 tokens a second each, and how long a token waits on its way.

    python benchmarks/serving_load.py                             # steps up to the limit, and the table
    python benchmarks/serving_load.py --accounts                  # with keys, holds and bills
    python benchmarks/serving_load.py --ticks --accounts --streams 100 --seconds 1800     # memory over half an hour

The server is leadline's own, with an engine that has no model: its answers go through the checks, the streaming
decoder, the accounts and the events as any answer does, and each token is the moment, on the machine's clock, at which
it was due. The client is a process of its own that reads bare sockets and compares that moment with the one at which it
read the bytes. Two ways in which tokens come: `spread`, the fake engine, each stream in its own time; `ticks`, all
streams at the same moment from leadline's own engine thread, where the last of a tick has waited for all others.
"""

from __future__ import annotations

import argparse
import asyncio
import contextvars
import dataclasses
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from leadline.engine.checks import check_request
from leadline.engine.sequence import Sequence, make_sequences
from leadline.engine.types import EngineInfo, EngineOutput, EngineProtocol, EngineRequest, EngineStats
from leadline.tokenizer import Tokenizer, train_bpe

RATE = 20.0  # tokens a second and stream
LIMIT_MS = 50.0
CONTEXT = 1 << 20
WARM_SECONDS = 3.0
STEPS = (100, 300, 500, 700)
STAMP = re.compile(rb'"content":"(\d+) "')
RESULTS = Path(__file__).parent / "results"


# ---- the server ----------------------------------------------------------------------------------------------------


def serve(ticks: bool, accounts: str | None) -> None:
    """Print the URL and the key, then serve until a signal comes."""
    from leadline.server.app import create_app
    from leadline.server.run import bind, serve_app, url

    with tempfile.TemporaryDirectory() as folder:
        tokenizer = small_tokenizer(Path(folder))
        platform, key = books(Path(accounts)) if accounts else (None, "")
        engine = batching(tokenizer) if ticks else pacing(tokenizer)
        sock = bind("127.0.0.1", 0)
        app = create_app(engine, tokenizer, None, platform)
        serve_app(app, sock, ready=lambda: print(url(sock), key, flush=True), grace=1)


def pacing(tokenizer: Tokenizer) -> EngineProtocol:
    """The fake engine, each stream in its own time. Its tokens tell when they were due: what the event loop is late is
    counted."""
    from leadline.engine.fake import FakeEngine

    due_at: contextvars.ContextVar[float] = contextvars.ContextVar("due")

    class Pacing(FakeEngine):
        def _advance(self, sequence: Sequence, script: list[int]) -> EngineOutput:
            return stamped(super()._advance(sequence, script), due_at.get(time.monotonic()))

        async def _pause(self, due: float) -> None:
            await super()._pause(due)
            due_at.set(due)

    return Pacing(tokenizer, answer=" deep" * 50, tokens_per_second=RATE, context_length=CONTEXT, max_requests=1 << 14)


def batching(tokenizer: Tokenizer) -> EngineProtocol:
    """leadline's own engine thread over a model that takes no time: 20 steps a second, one token a stream and step."""
    from leadline.engine.aio import AsyncEngine

    engine: Any = Stepping(tokenizer)
    return AsyncEngine(engine)


class Stepping:
    """What `AsyncEngine` asks of an engine."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.info = EngineInfo("fake", CONTEXT, tokenizer.vocab_size, 31104, CONTEXT * 16, "float32", "cpu")
        self.script = tokenizer.encode(" deep" * 50)
        self.sequences: dict[str, Sequence] = {}
        self.due = time.monotonic()

    def check(self, request: EngineRequest) -> None:
        check_request(request, self.info)

    def add(self, request: EngineRequest) -> None:
        (self.sequences[request.request_id],) = make_sequences(
            request, self.tokenizer, limit=CONTEXT, eos_ids=frozenset()
        )

    def cancel(self, request_id: str) -> None:
        self.sequences.pop(request_id, None)

    def knows(self, request_id: str) -> bool:
        return request_id in self.sequences

    @property
    def has_work(self) -> bool:
        return bool(self.sequences)

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self.sequences))

    def step(self) -> list[EngineOutput]:
        self.due = max(self.due + 1 / RATE, time.monotonic() - 1 / RATE)
        time.sleep(max(self.due - time.monotonic(), 0.0))
        return [stamped(self._advance(sequence), self.due) for sequence in self.sequences.values()]

    def _advance(self, sequence: Sequence) -> EngineOutput:
        token = self.script[sequence.generated % len(self.script)]
        return sequence.output(sequence.append(token), (token,))


def stamped(output: EngineOutput, due: float) -> EngineOutput:
    return dataclasses.replace(output, text=f"{int(due * 1e9)} ")


def small_tokenizer(folder: Path) -> Tokenizer:
    train_bpe(["A lead line is what sailors let down to find the depth of the water. deep deep"] * 2, 300, folder)
    return Tokenizer.from_folder(folder)


def books(folder: Path) -> tuple[Any, str]:
    """A platform with one rich customer, and the customer's key."""
    from leadline.server import accounts, keys, wallet
    from leadline.server.platform import Platform, PlatformSettings
    from leadline.server.store import open_store

    settings = PlatformSettings(folder, requests_per_minute=10**6, concurrency=10**6)

    async def make() -> str:
        async with open_store(folder) as store, store.database.write() as connection:
            user = await accounts.create_user(connection, "load@example.org", "", now=store.now(), role="user")
            await wallet.grant(connection, user.id, 10**15, ref="load", now=store.now(), kind="topped_up")
            _, key = await keys.create_key(connection, store.secrets, user.id, keys.KeySpec(), store.now())
            return key

    return Platform(settings), asyncio.run(make())


# ---- the client ----------------------------------------------------------------------------------------------------


class Reader(asyncio.Protocol):
    """One stream: sends its request, and takes the time of what comes."""

    def __init__(self, request: bytes, seen: list[int]) -> None:
        self.request = request
        self.seen = seen
        self.rest = b""
        self.status = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        self.status = self.status or data[:12]
        for stamp in STAMP.findall(self.rest + data):
            self.seen.append(now - int(stamp))
        self.rest = b"" if data.endswith(b"\n\r\n") else data[-60:]


def request(url: str, key: str) -> tuple[str, int, bytes]:
    host, port = url.removeprefix("http://").split(":")
    fields = {"messages": [{"role": "user", "content": "How deep?"}], "stream": True, "ignore_eos": True}
    body = json.dumps(fields).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    head += f"Authorization: Bearer {key}\r\n" if key else ""
    return host, int(port), f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def load(url: str, key: str, streams: int, seconds: float) -> dict[str, float]:
    """Open the streams, wait until they run, and measure for `seconds`."""
    host, port, asked = request(url, key)
    loop, seen = asyncio.get_running_loop(), []
    readers = []
    for number in range(streams):
        _, reader = await loop.create_connection(lambda: Reader(asked, seen), host, port)
        readers.append(reader)
        if number % 50 == 49:
            await asyncio.sleep(0.05)
    for _ in range(60):
        await asyncio.sleep(WARM_SECONDS)
        if all(reader.status for reader in readers):
            break
    assert all(reader.status == b"HTTP/1.1 200" for reader in readers), {reader.status for reader in readers}
    seen.clear()
    cpu, start = time.process_time(), time.monotonic()
    await asyncio.sleep(seconds)
    passed = time.monotonic() - start
    share = (time.process_time() - cpu) / passed
    waits = sorted(seen)
    return {
        "tokens_per_second": len(waits) / passed,
        "p50_ms": waits[len(waits) // 2] / 1e6,
        "p99_ms": waits[int(len(waits) * 0.99)] / 1e6,
        "max_ms": waits[-1] / 1e6,
        "client_cpu": share,
    }


# ---- measuring -----------------------------------------------------------------------------------------------------


def measure(streams: int, seconds: float, *, ticks: bool, accounts: bool) -> dict[str, Any]:
    """A server of its own for each step; the client is started anew too, so that neither carries anything over."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "serve", *(["--ticks"] if ticks else [])]
        command += ["--folder", folder] if accounts else []
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            url, _, key = server.stdout.readline().strip().partition(" ")
            client = [sys.executable, __file__, "load", url, "--key", key, "--streams", str(streams)]
            client += ["--seconds", str(seconds)]
            with subprocess.Popen(client, stdout=subprocess.PIPE, text=True) as running:
                time.sleep(WARM_SECONDS + streams / 50 * 0.05 + 1)
                before, start = cpu_seconds(server.pid), time.monotonic()
                memory = watch_memory(server.pid, running)
                used = cpu_seconds(server.pid) - before
                passed = time.monotonic() - start
                assert running.stdout is not None
                result = json.loads(running.stdout.read())
        finally:
            server.terminate()
            server.wait(20)
    return {"streams": streams, **result, "server_cpu": used / passed, "memory": memory}


def watch_memory(pid: int, client: subprocess.Popen[str]) -> list[tuple[float, float]]:
    """MiB of the server, by seconds, while the client runs."""
    start, samples = time.monotonic(), []
    while client.poll() is None:
        samples.append((time.monotonic() - start, memory_mib(pid)))
        time.sleep(1 if samples[-1][0] < 60 else 10)
    return samples


def memory_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def growth(samples: list[tuple[float, float]]) -> str:
    """MiB a minute: the slope of the least squares line through all but the first quarter; of a short run nothing."""
    if samples[-1][0] < 120:
        return ""
    slope, _ = statistics.linear_regression(*zip(*samples[len(samples) // 4 :], strict=True))
    return f"{slope * 60:+.2f}"


def row(result: dict[str, Any]) -> str:
    return (
        f"| {result['way']} | {result['streams']} | {result['tokens_per_second']:,.0f} | {result['p50_ms']:.1f} "
        f"| {result['p99_ms']:.1f} | {result['max_ms']:.1f} | {result['server_cpu']:.0%} | {result['client_cpu']:.0%} "
        f"| {result['memory'][-1][1]:.0f} | {growth(result['memory'])} |"
    )


def table(results: list[dict[str, Any]], machine: str) -> str:
    lines = [
        "# Streams that one server process holds",
        "",
        f"{RATE:.0f} tokens a second and stream; milliseconds from the engine's emission to the client's read.",
        machine,
        "",
        "| tokens come | streams | tokens/s | p50 | p99 | max | server CPU | client CPU | MiB | MiB a minute |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        *map(row, results),
        "",
        *(f"The most with p99 under {LIMIT_MS:.0f} ms, {way}: **{best}**." for way, best in held(results).items()),
        "",
        "`python benchmarks/serving_load.py` makes this table.",
        "",
    ]
    return "\n".join(lines)


def held(results: list[dict[str, Any]]) -> dict[str, int]:
    """By way: the most streams that were held at their full rate."""
    best: dict[str, int] = {}
    for each in results:
        whole = each["tokens_per_second"] > 0.97 * RATE * each["streams"]
        if each["p99_ms"] < LIMIT_MS and whole:
            best[each["way"]] = max(best.get(each["way"], 0), each["streams"])
    return best


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    results = []
    for ticks in (True,) if arguments.ticks else (False, True):
        way = ("ticks" if ticks else "spread") + (", accounts" if arguments.accounts else "")
        for streams in [arguments.streams] if arguments.streams else STEPS:
            result = measure(streams, arguments.seconds, ticks=ticks, accounts=arguments.accounts) | {"way": way}
            print(row(result), flush=True)
            results.append(result)
            if result["p99_ms"] > 2 * LIMIT_MS:
                break
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("part", nargs="?", default="run", choices=["run", "serve", "load"])
    parser.add_argument("url", nargs="?")
    parser.add_argument("--key", default="")
    parser.add_argument("--streams", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--ticks", action="store_true")
    parser.add_argument("--accounts", action="store_true")
    parser.add_argument("--folder")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.part == "serve":
        serve(arguments.ticks, arguments.folder)
    elif arguments.part == "load":
        print(json.dumps(asyncio.run(load(arguments.url, arguments.key, arguments.streams, arguments.seconds))))
    else:
        write(run(arguments), arguments)


def write(results: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    from machine import describe

    found = describe()
    machine = f"{found['cpu']}, {found['cores']} cores, Python {found['python']}; server and client share the machine."
    if arguments.output is None:
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    name = "serving_load" + ("_accounts" if arguments.accounts else "")
    (arguments.output / f"{name}.json").write_text(json.dumps({"machine": found, "results": results}, indent=1) + "\n")
    (arguments.output / f"{name}.md").write_text(table(results, machine))


if __name__ == "__main__":
    main()
