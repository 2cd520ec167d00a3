"""A person at the site, for tests: posts, watches, stops, as the page does it, over real sockets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2

from leadline.server.money import NANO
from tests.fixtures_server import wait_until
from tests.server.platform.site import Site

ENOUGH = NANO


class Person:
    def __init__(self, site: Site, balance: int = ENOUGH) -> None:
        self.site = site
        self.id = site.user(balance=balance)
        self.http = site.browser(site.email(self.id))

    def get(self, path: str, status: int = 200, **query: Any) -> Any:
        return self._checked(self.http.get(f"/api{path}", params=query), status)

    def post(self, path: str, body: Any = None, status: int | None = None) -> Any:
        return self._checked(self.http.post(f"/api{path}", json={} if body is None else body), status)

    def patch(self, path: str, body: Any, status: int = 200) -> Any:
        return self._checked(self.http.patch(f"/api{path}", json=body), status)

    def delete(self, path: str, status: int = 200) -> Any:
        return self._checked(self.http.delete(f"/api{path}"), status)

    def _checked(self, response: httpx2.Response, status: int | None) -> Any:
        assert response.status_code == status or (status is None and response.is_success), response.text
        return response.json()

    def chat(self, **fields: Any) -> str:
        return str(self.post("/chats", fields)["id"])

    def say(self, chat: str, content: str = "Hello", **fields: Any) -> Any:
        """A message whose answer runs."""
        return self.post(f"/chats/{chat}/messages", {"content": content, **fields}, 202)

    def ask(self, chat: str, content: str = "Hello", **fields: Any) -> Any:
        """The answer, when it has ended."""
        return self.ended(chat, self.say(chat, content, **fields)["answer"]["id"])

    def ended(self, chat: str, number: int) -> Any:
        return list(self.watch(chat, number))[-1]["message"]

    def watch(self, chat: str, number: int, offset: int = 0) -> Iterator[Any]:
        path = f"/api/chats/{chat}/messages/{number}/stream"
        with self.http.stream("GET", path, params={"offset": offset}) as response:
            assert response.status_code == 200, response.read()
            yield from events(response)

    def message(self, chat: str, number: int) -> Any:
        return self.get(f"/chats/{chat}/messages/{number}")

    def stop(self, chat: str, number: int) -> Any:
        return self.post(f"/chats/{chat}/messages/{number}/stop")

    def spent(self) -> int:
        return ENOUGH - self.site.balance(self.id).total

    def idle(self) -> None:
        """Wait until the engine has nothing to do and nothing is held."""
        wait_until(lambda: not self.site.live.engine.running and not self.site.platform.meters.live)


def events(response: httpx2.Response) -> Iterator[Any]:
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))
