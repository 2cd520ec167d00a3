"""The chat protocol of 2024, as a client: a message goes out alone, the server keeps the conversation.

leadline's own server speaks it (docs/api.md); nobody else's is known or tried. Events are read as events, so that what
careless programs stumble over is no matter here.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import Generator
from typing import Any

import httpx2

from leadline.client.backends import ChatOptions, Messages, check_choice
from leadline.client.http import Client, api_url, as_expected, body_error, broken_off, parsed
from leadline.client.sse import EventDecoder
from leadline.errors import AuthenticationError, ConfigError, ConnectionFailed, UserError

MODELS = {"deepseek-chat": "deepseek_chat", "deepseek-coder": "deepseek_code"}
_ROOTS = ("/", "/v1", "/v1/", "/beta", "/beta/")


def legacy_url(base_url: str) -> str:
    """Where the protocol's paths begin on the server of an API's URL."""
    url = httpx2.URL(api_url(base_url))
    if url.path not in _ROOTS:
        raise ConfigError(f"{base_url}: a token is for a server of its own; its URL has no path", param="url")
    return str(url.copy_with(path="/api/v0"))


def check_token(token: str, now: float) -> None:
    """Say what can be said of a token without asking anyone: that it is none, or that its time is over."""
    try:
        padded = token.split(".")[1] + "=="
        expires = float(json.loads(base64.urlsafe_b64decode(padded))["exp"])
    except (ValueError, LookupError, TypeError):
        raise AuthenticationError("this is neither a key (sk-...) nor a token") from None
    if expires <= now:
        day = dt.datetime.fromtimestamp(expires, dt.UTC).date()
        raise AuthenticationError(f"the token expired on {day}")


class LegacyBackend:
    """A leadline server, by an account's token."""

    def __init__(self, base_url: str, token: str) -> None:
        self.client = Client(legacy_url(base_url), api_key=token)
        self.model = "deepseek-chat"
        user = self.client.call("GET", "users/current")
        with as_expected():
            self.email = str(user["data"]["email"])

    @property
    def name(self) -> str:
        return f"{self.model} at {self.client.base_url.removesuffix('/api/v0')}, signed in as {self.email}"

    def stream(self, messages: Messages, options: ChatOptions) -> Generator[str, None, None]:
        """Of the messages the last is sent; the server has the others."""
        if any(message["role"] == "system" for message in messages):
            raise UserError("with a token there is no system text; a key (sk-...) takes one")
        body: dict[str, Any] = {"message": messages[-1]["content"], "stream": True, "model_preference": None}
        body |= {"model_class": MODELS[self.model], "temperature": options.temperature}
        decoder, ended = EventDecoder(), False
        with self.client.answer("POST", "chat/completions", body) as response, broken_off(self.client.base_url):
            for received in response.iter_bytes():
                for data in decoder.feed(received):
                    text, ended = _read(parsed(data))
                    if text:
                        yield text
        if not ended:
            raise ConnectionFailed("the connection was closed before the end of the answer")

    def models(self) -> list[str]:
        return sorted(MODELS, key=lambda name: name != self.model)

    def choose(self, model: str) -> None:
        self.model = check_choice(model, self.models())

    def forget(self) -> None:
        body = {"model_class": MODELS[self.model], "append_welcome_message": False}
        self.client.call("POST", "chat/clear_context", body)

    def close(self) -> None:
        self.client.close()


def _read(event: Any) -> tuple[str, bool]:
    """An event's text, and whether it is the last."""
    if isinstance(event, dict) and event.get("error"):
        raise body_error(500, event)
    with as_expected():
        choice = event["choices"][0]
        return choice["delta"]["content"], choice["finish_reason"] is not None
