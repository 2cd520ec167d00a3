"""The real engine behind the real server: a closed socket frees its sequences within two steps of the model.

Steps are counted, not seconds: each waits for a permit. The engine is the embedded model's, the client a bare socket.
"""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Generator

import pytest

from leadline.engine.aio import AsyncEngine
from leadline.engine.engine import Engine
from leadline.engine.load import load_engine
from leadline.engine.types import EngineOutput
from tests.fixtures_server import LiveServer, live_server, wait_until
from tests.server.test_cancel import ask

MOST_STEPS = 2


class Gate:
    """An engine's steps, let through one by one or freely."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.waiting = False  # a step is at the gate
        self._permits = math.inf
        self._changed = threading.Condition()
        self._step = engine.step
        engine.step = self.step  # type: ignore[method-assign]

    def step(self) -> list[EngineOutput]:
        with self._changed:
            self.waiting = True
            assert self._changed.wait_for(lambda: self._permits > 0, timeout=30)
            self.waiting = False
            self._permits -= 1
        return self._step()

    def let(self, permits: float) -> None:
        with self._changed:
            self._permits = permits
            self._changed.notify()

    def free(self) -> bool:
        stats = self.engine.stats()
        return stats.running == stats.waiting == 0 and stats.pages_free == stats.pages_total


@pytest.fixture(scope="module")
def gated() -> Generator[tuple[LiveServer, Gate], None, None]:
    loaded = load_engine(None, max_num_seqs=8, max_model_len=512)
    gate = Gate(loaded.engine)
    with live_server(loaded.tokenizer, made=AsyncEngine(loaded.engine)) as server:
        yield server, gate
        gate.let(math.inf)


def disconnects(server: LiveServer) -> float:
    lines = server.http.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("leadline_disconnects_total"))


def leave(server: LiveServer, sock: socket.socket) -> None:
    """Close it, and wait until the server knows."""
    before = disconnects(server)
    sock.close()
    wait_until(lambda: disconnects(server) == before + 1, seconds=20)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("steps_before", [0, 4], ids=["before the first token", "in the middle"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_closed_socket_frees_its_sequences_within_two_steps(
    gated: tuple[LiveServer, Gate], path: str, stream: bool, steps_before: int, n: int
) -> None:
    server, gate = gated
    assert gate.free()
    gate.let(0)
    sock = ask(server, path, stream=stream, n=n, max_tokens=400, ignore_eos=True)
    wait_until(lambda: gate.waiting, seconds=20)
    if steps_before:
        gate.let(steps_before)
        wait_until(lambda: gate.waiting and gate._permits == 0, seconds=20)
        assert gate.engine.stats().running >= n, "it is decoding"
    assert not gate.free()
    leave(server, sock)
    for _ in range(MOST_STEPS):
        if not gate.free():
            gate.let(1)
            wait_until(lambda: gate.free() or (gate.waiting and gate._permits == 0), seconds=20)
    assert gate.free()
    gate.let(math.inf)
    wait_until(lambda: not gate.engine.has_work, seconds=20)
