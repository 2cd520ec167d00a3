"""`Client` and `AsyncClient`: any OpenAI-compatible server, without torch.

    with Client("http://127.0.0.1:8000") as client:
        print(client.chat([{"role": "user", "content": "Hello"}]).text)
        for chunk in client.chat_stream([{"role": "user", "content": "Hello"}]):
            print(chunk.text, end="", flush=True)

A body's error is raised as the class that the server meant (`leadline.errors`). Requests that may succeed a little
later (no connection, 408, 409, 429, 5xx) are sent again, with growing pauses and as the server's Retry-After says; a
stream only until its first byte. Leaving a stream early closes its connection, which tells the server to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import email.utils
import json
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Self

import httpx2

from leadline import __version__
from leadline.client.sse import EventDecoder
from leadline.engine.types import Usage
from leadline.errors import ConfigError, ConnectionFailed, EngineError, LeadlineError, from_code

DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT = 600.0  # seconds without a byte
CONNECT_TIMEOUT = 5.0
MAX_RETRIES = 2
MAX_PAUSE = 60.0  # a server that asks for more patience gets none

Messages = Sequence[Mapping[str, Any]]
Prompt = str | Sequence[str] | Sequence[int]


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer: its first choice, and everything else in `raw`."""

    text: str
    finish_reason: str | None
    model: str
    usage: Usage
    raw: Mapping[str, Any] = dataclasses.field(repr=False, default_factory=dict)

    @property
    def tool_calls(self) -> Sequence[Mapping[str, Any]]:
        """The calls of a chat's answer, as the API has them."""
        calls: Sequence[Mapping[str, Any]] = self.raw["choices"][0].get("message", {}).get("tool_calls") or ()
        return calls


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed answer. `usage` comes last, where the server sends it."""

    text: str
    finish_reason: str | None = None
    usage: Usage | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Balance:
    """An account's money. A server without accounts takes none: `available`, and zeros in no currency."""

    available: bool
    currency: str = ""
    total: Decimal = Decimal()
    granted: Decimal = Decimal()
    topped_up: Decimal = Decimal()


class _Base:
    """What both clients share: nothing here waits."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float = TIMEOUT,
        max_retries: int = MAX_RETRIES,
    ) -> None:
        self.base_url = api_url(base_url)
        self.max_retries = max_retries
        self._options: dict[str, Any] = {
            "timeout": httpx2.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT)),
            "headers": _headers(api_key),
            "trust_env": not is_loopback(self.base_url),  # no proxy stands between a machine and itself
        }

    def _url(self, path: str) -> str:
        return f"{self.base_url}/{path}"

    def _pause(self, attempt: int, failure: httpx2.Response | httpx2.TransportError) -> float:
        """Seconds until the next attempt; raises when there is none."""
        pause = retry_pause(attempt, failure) if attempt < self.max_retries else None
        if pause is not None:
            return pause
        if isinstance(failure, httpx2.TransportError):
            raise connection_failed(self.base_url, failure) from None
        raise response_error(failure)


class Client(_Base):
    """The blocking client."""

    def __init__(self, base_url: str = DEFAULT_URL, **options: Any) -> None:
        super().__init__(base_url, **options)
        self._http = httpx2.Client(**self._options)

    def chat(self, messages: Messages, **fields: Any) -> Reply:
        """`fields` are the API's: model, temperature, max_tokens, stop, ..."""
        return chat_reply(self.call("POST", "chat/completions", chat_body(messages, fields)))

    def chat_stream(self, messages: Messages, **fields: Any) -> Generator[Chunk, None, None]:
        yield from self._chunks("chat/completions", streamed(chat_body(messages, fields)))

    def complete(self, prompt: Prompt, **fields: Any) -> Reply:
        return completion_reply(self.call("POST", "completions", completion_body(prompt, fields)))

    def complete_stream(self, prompt: Prompt, **fields: Any) -> Generator[Chunk, None, None]:
        yield from self._chunks("completions", streamed(completion_body(prompt, fields)))

    def models(self) -> list[str]:
        return model_names(self.call("GET", "models"))

    def balance(self) -> Balance:
        return account_balance(self.call("GET", "user/balance"))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """One request of one's own, with all retries and errors; the JSON of its answer."""
        with self.answer(method, path, body) as response, broken_off(self.base_url):
            return parsed(response.read())

    def _chunks(self, path: str, body: Mapping[str, Any]) -> Generator[Chunk, None, None]:
        reader = ChunkReader()
        with self.answer("POST", path, body) as response, broken_off(self.base_url):
            for received in response.iter_bytes():
                yield from reader.feed(received)
        reader.check_end()

    @contextlib.contextmanager
    def answer(self, method: str, path: str, body: Mapping[str, Any] | None) -> Iterator[httpx2.Response]:
        """An answer that is no error, its body unread."""
        response = self._send(method, path, body)
        try:
            yield response
        finally:
            response.close()

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> httpx2.Response:
        for attempt in range(self.max_retries + 1):
            try:
                response = self._http.send(self._http.build_request(method, self._url(path), json=body), stream=True)
                if response.is_success:
                    return response
                with contextlib.closing(response):
                    response.read()
                    pause = self._pause(attempt, response)
            except httpx2.TransportError as error:
                pause = self._pause(attempt, error)
            time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")


class AsyncClient(_Base):
    """The same for asyncio."""

    def __init__(self, base_url: str = DEFAULT_URL, **options: Any) -> None:
        super().__init__(base_url, **options)
        self._http = httpx2.AsyncClient(**self._options)

    async def chat(self, messages: Messages, **fields: Any) -> Reply:
        """`fields` are the API's: model, temperature, max_tokens, stop, ..."""
        return chat_reply(await self.call("POST", "chat/completions", chat_body(messages, fields)))

    async def chat_stream(self, messages: Messages, **fields: Any) -> AsyncGenerator[Chunk, None]:
        async with contextlib.aclosing(
            self._chunks("chat/completions", streamed(chat_body(messages, fields)))
        ) as chunks:
            async for chunk in chunks:
                yield chunk

    async def complete(self, prompt: Prompt, **fields: Any) -> Reply:
        return completion_reply(await self.call("POST", "completions", completion_body(prompt, fields)))

    async def complete_stream(self, prompt: Prompt, **fields: Any) -> AsyncGenerator[Chunk, None]:
        async with contextlib.aclosing(
            self._chunks("completions", streamed(completion_body(prompt, fields)))
        ) as chunks:
            async for chunk in chunks:
                yield chunk

    async def models(self) -> list[str]:
        return model_names(await self.call("GET", "models"))

    async def balance(self) -> Balance:
        return account_balance(await self.call("GET", "user/balance"))

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        async with self.answer(method, path, body) as response:
            with broken_off(self.base_url):
                return parsed(await response.aread())

    async def _chunks(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[Chunk, None]:
        reader = ChunkReader()
        async with self.answer("POST", path, body) as response:
            with broken_off(self.base_url):
                async for received in response.aiter_bytes():
                    for chunk in reader.feed(received):
                        yield chunk
        reader.check_end()

    @contextlib.asynccontextmanager
    async def answer(self, method: str, path: str, body: Mapping[str, Any] | None) -> AsyncIterator[httpx2.Response]:
        response = await self._send(method, path, body)
        try:
            yield response
        finally:
            await response.aclose()

    async def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> httpx2.Response:
        for attempt in range(self.max_retries + 1):
            try:
                request = self._http.build_request(method, self._url(path), json=body)
                response = await self._http.send(request, stream=True)
                if response.is_success:
                    return response
                async with contextlib.aclosing(response):
                    await response.aread()
                    pause = self._pause(attempt, response)
            except httpx2.TransportError as error:
                pause = self._pause(attempt, error)
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")


class ChunkReader:
    """From the bytes of a stream to its chunks; an error event is raised."""

    def __init__(self) -> None:
        self._decoder = EventDecoder()
        self._ended = False

    def feed(self, received: bytes) -> Iterator[Chunk]:
        for data in self._decoder.feed(received):
            if data == "[DONE]":
                self._ended = True
            else:
                yield self._chunk(parsed(data))

    def check_end(self) -> None:
        """A stream that stops without a word was cut: its text is not the whole answer."""
        if not self._ended:
            raise ConnectionFailed("the connection was closed before the end of the answer")

    def _chunk(self, event: Any) -> Chunk:
        if isinstance(event, Mapping) and event.get("error"):
            raise body_error(500, event)
        with as_expected():
            usage = _usage(event["usage"]) if event.get("usage") else None
            if not event["choices"]:
                return Chunk("", usage=usage)
            choice = event["choices"][0]
            text = choice["delta"].get("content") if "delta" in choice else choice["text"]
            self._ended = self._ended or choice.get("finish_reason") is not None
            return Chunk(text or "", choice.get("finish_reason"), usage)


def api_url(base_url: str) -> str:
    """The URL that paths are added to; a server's bare address means its /v1."""
    try:
        url = httpx2.URL(base_url)
    except httpx2.InvalidURL:
        url = httpx2.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"{base_url!r} is not the URL of a server, such as {DEFAULT_URL}", param="url")
    return base_url.rstrip("/") + ("" if url.path.strip("/") else "/v1")


def is_loopback(base_url: str) -> bool:
    host = httpx2.URL(base_url).host
    return host in ("localhost", "::1") or host.startswith("127.")


def chat_body(messages: Messages, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"messages": [dict(message) for message in messages], **_given(fields)}


def completion_body(prompt: Prompt, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"prompt": prompt if isinstance(prompt, str) else list(prompt), **_given(fields)}


def streamed(body: dict[str, Any]) -> dict[str, Any]:
    return {"stream_options": {"include_usage": True}, **body, "stream": True}


def chat_reply(body: Any) -> Reply:
    with as_expected():
        return _reply(body, body["choices"][0]["message"]["content"])


def completion_reply(body: Any) -> Reply:
    with as_expected():
        return _reply(body, body["choices"][0]["text"])


def model_names(body: Any) -> list[str]:
    with as_expected():
        return [model["id"] for model in body["data"]]


def account_balance(body: Any) -> Balance:
    with as_expected():
        if not body["balance_infos"]:
            return Balance(bool(body["is_available"]))
        info = body["balance_infos"][0]
        amounts = (Decimal(str(info[f"{kind}_balance"])) for kind in ("total", "granted", "topped_up"))
        return Balance(bool(body["is_available"]), str(info["currency"]), *amounts)


def parsed(text: bytes | str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise EngineError("the server's answer is not JSON; is this the URL of an OpenAI-compatible API?") from None


def response_error(response: httpx2.Response) -> LeadlineError:
    """The error that an unsuccessful answer stands for."""
    try:
        body = json.loads(response.content)
    except ValueError:
        body = None
    return body_error(response.status_code, body)


def body_error(status: int, body: Any) -> LeadlineError:
    """OpenAI's error body as one of ours; other bodies keep their status at least."""
    error = body.get("error") if isinstance(body, Mapping) else None
    if not isinstance(error, Mapping):
        return from_code(status, None, f"the server answered with status {status}" + (f": {error}" if error else ""))
    code, param = error.get("code"), error.get("param")
    message = str(error.get("message") or f"the server answered with status {status}")
    return from_code(status, str(code) if code else None, message, str(param) if param else None)


def connection_failed(base_url: str, error: httpx2.TransportError) -> ConnectionFailed:
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return ConnectionFailed(f"cannot reach {base_url}: is the server running? ({_reason(error)})")
    if isinstance(error, httpx2.TimeoutException):
        return ConnectionFailed(f"{base_url} did not answer in time")
    return ConnectionFailed(f"the connection to {base_url} broke: {_reason(error)}")


def retry_pause(attempt: int, failure: httpx2.Response | httpx2.TransportError) -> float | None:
    """Seconds to wait before trying again; None: it would not help."""
    backoff = min(8.0, 0.5 * 2.0**attempt) * random.uniform(0.75, 1.0)
    if isinstance(failure, httpx2.TransportError):
        return None if isinstance(failure, httpx2.ReadTimeout | httpx2.WriteTimeout) else backoff
    should = failure.headers.get("x-should-retry")
    if should == "false" or (should != "true" and not _may_pass(failure.status_code)):
        return None
    asked = _retry_after(failure.headers.get("retry-after"))
    if asked is None:
        return backoff
    return asked if asked <= MAX_PAUSE else None


def _may_pass(status: int) -> bool:
    return status in (408, 409, 429) or status >= 500


def _retry_after(value: str | None) -> float | None:
    """Seconds, or a date."""
    if value is None:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError):
        pause: float = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        return max(0.0, pause)
    return None


def _headers(api_key: str | None) -> dict[str, str]:
    headers = {"user-agent": f"leadline/{__version__}"}
    if api_key:
        if not api_key.isascii() or not api_key.isprintable():
            raise ConfigError("the key or token holds characters that cannot be sent; copy it again", param="api_key")
        headers["authorization"] = f"Bearer {api_key}"
    return headers


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _reply(body: Any, text: str | None) -> Reply:
    usage = _usage(body.get("usage") or {})
    return Reply(text or "", body["choices"][0].get("finish_reason"), str(body.get("model", "")), usage, body)


def _usage(usage: Mapping[str, Any]) -> Usage:
    details = usage.get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens") or usage.get("prompt_cache_hit_tokens") or 0
    return Usage(usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0), cached)


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


@contextlib.contextmanager
def broken_off(base_url: str) -> Iterator[None]:
    try:
        yield
    except httpx2.TransportError as error:
        raise connection_failed(base_url, error) from None


@contextlib.contextmanager
def as_expected() -> Iterator[None]:
    """A body of another shape is the server's fault, said in one line."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, InvalidOperation):
        raise EngineError("the server's answer has an unexpected form") from None
