"""A live server for tests: uvicorn in a thread, real sockets, a fake engine behind it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import httpx2

from leadline.engine.fake import FakeEngine
from leadline.engine.grammar import GrammarProvider
from leadline.server.app import create_app
from leadline.server.platform import Platform
from leadline.server.run import Server, bind, url
from leadline.server.settings import ServerSettings
from leadline.tokenizer import Tokenizer, train_bpe

TEXTS = (
    "A lead line is what sailors let down to find the depth of the water.\n",
    "User: Hello, how deep is it?\n\nAssistant: Four fathoms and a half, captain.\n",
    "The quick brown fox jumps over the lazy dog. 水有多深？四寻半。\n",
)


def small_tokenizer(folder: Path, *, fim: bool = True) -> Tokenizer:
    train_bpe(TEXTS, 400, folder, fim=fim)
    return Tokenizer.from_folder(folder)


class LiveServer:
    """`engine` is what answers; `http` a client with the server's base URL."""

    def __init__(self, engine: FakeEngine, base_url: str) -> None:
        self.engine = engine
        self.url = base_url
        self.http = httpx2.Client(base_url=base_url, timeout=20)

    def post(self, path: str, body: Any = None, **options: Any) -> httpx2.Response:
        return self.http.post(path, json=body, **options)

    def chat(self, content: str = "Hello", **fields: Any) -> httpx2.Response:
        body = {"model": "fake", "messages": [{"role": "user", "content": content}], **fields}
        return self.post("/v1/chat/completions", body)

    def complete(self, prompt: Any = "Hello", **fields: Any) -> httpx2.Response:
        return self.post("/v1/completions", {"model": "fake", "prompt": prompt, **fields})


@contextlib.contextmanager
def live_server(
    tokenizer: Tokenizer,
    settings: ServerSettings | None = None,
    *,
    grace: int = 1,
    platform: Platform | None = None,
    made: Any = None,
    **engine_options: Any,
) -> Generator[LiveServer, None, None]:
    """Serve a fake engine made with `engine_options`, which knows grammars, or the one that was `made`."""
    engine = made or FakeEngine(tokenizer, **{"constraints": GrammarProvider(tokenizer), **engine_options})
    sock = bind("127.0.0.1", 0)
    ready = threading.Event()
    server = Server(create_app(engine, tokenizer, settings, platform), ready=ready.set, grace=grace)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    assert ready.wait(20)
    live = LiveServer(engine, url(sock))
    try:
        yield live
    finally:
        live.http.close()
        server.should_exit = True
        thread.join(20)
        sock.close()
    assert not thread.is_alive()


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)
