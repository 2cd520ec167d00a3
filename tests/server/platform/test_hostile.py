"""Every route of the site with values that nobody means: an error in our words, never a fault of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import httpx2
import pytest

from leadline.server import account, admin, answer_routes, chat_routes, library_routes, site_routes, temporary
from leadline.server.limits import Throttle
from leadline.server.schemas import Schema
from leadline.tokenizer import Tokenizer
from tests.server.platform.site import Site, live_site

NASTY: tuple[Any, ...] = (
    True,
    -1,
    1 << 63,
    (1 << 63) - 1,
    1.5,
    "",
    "\0",
    "９" * 40,
    "9" * 30,
    "0.0000000001",
    "x" * 5000,
    "\u202e\U0001f525@例え.jp",
    [],
    {"$ne": None},
)
GOOD: dict[str, Any] = {
    "email": "hostile@example.org",
    "password": "four fathoms deep",
    "amount": "1",
    "model": "m",
    "code": "x",
}
GOOD |= {"content": "Hello", "messages": [], "leadline_chats": 1, "chats": [], "name": "x", "text": "x"}
GOOD |= {"hit": "1", "miss": "1", "output": "1", "token": "x", "old": "x", "new": "y" * 10}
QUERIES = ("by", "from", "to", "before", "after", "query", "cursor", "limit", "offset", "format", "chat")
STRANGE = ("\0", "%", "9" * 30, "-1", "x" * 5000, "%ff", "'; DROP TABLE users; --")
TABLES = tuple(
    module._ROUTES for module in (account, chat_routes, answer_routes, temporary, library_routes, site_routes)
)
OWN = [(method, "/api" + path, schema) for table in TABLES for method, path, _, schema in table]
OPERATORS = [(method, "/api/admin" + path, schema) for method, path, _, schema in admin._ROUTES]
ROUTES = [(method, path, schema) for method, path, schema in [*OWN, *OPERATORS] if schema is not None]


@pytest.fixture(scope="module")
def site(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Generator[Site, None, None]:
    """One that never tires of failures."""
    with live_site(tokenizer, tmp_path_factory.mktemp("site"), context_length=512) as live:
        live.platform.sources = live.platform.pairs = Throttle(10**9, 1)
        yield live
        assert live.faults() == []


def filled(site: Site, operator: httpx2.Client, path: str) -> str:
    """The path with things in its places that are there."""
    path = path.replace("{model:path}", "fake")
    chat = operator.post("/api/chats", json={}).json()["id"] if "{chat}" in path else ""
    user = site.user() if "{user_id}" in path else 0
    return path.format(user_id=user, chat=chat, number=1, preset=1, token="x", key_id=1, session_id="x")


@pytest.mark.parametrize(("method", "path", "schema"), ROUTES, ids=[f"{method} {path}" for method, path, _ in ROUTES])
def test_bodies(site: Site, method: str, path: str, schema: type[Schema]) -> None:
    operator = site.operator()
    path = filled(site, operator, path)
    good = {name: GOOD[name] for name in schema.model_fields if name in GOOD}
    for place, name in enumerate(schema.model_fields):
        # A third for each, and over the routes all for every kind of field.
        for value in (None, *NASTY[place % 3 :: 3]):
            answer = operator.request(method, path, json={**good, name: value})
            assert answer.status_code < 500, (name, value, answer.text)
            if answer.status_code >= 400:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", [path for method, path, _ in [*OWN, *OPERATORS] if method == "GET"])
def test_queries(site: Site, path: str) -> None:
    operator = site.operator()
    path = filled(site, operator, path)
    for value in STRANGE:
        for query in (dict.fromkeys(QUERIES, value), {"query": value}):
            answer = operator.get(path, params=query)
            assert answer.status_code < 500, value


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5", str(1 << 63), "9" * 50, "%00", "..", "1%2f2"])
def test_numbers_in_paths(site: Site, number: str) -> None:
    operator = site.operator()
    for path in (f"/api/admin/users/{number}/grants", f"/api/admin/users/{number}", f"/api/admin/users/{number}/reset"):
        assert 400 <= operator.post(path, json={"amount": "1", "state": "active"}).status_code < 500
    for path in (f"/api/keys/{number}", f"/api/tokens/{number}", f"/api/admin/invites/{number}"):
        assert 400 <= operator.delete(path).status_code < 500


BROKEN = {
    "no UTF-8": b'{"content": "\xc3(", "name": "\xff"}',
    "a lone surrogate": b'{"content": "\\ud800", "name": "\\udfff"}',
    "deep": b'{"content": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "deep objects": b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    "twice": b'{"content": "a", "content": "b"}',
    "no object": b"[]",
    "no number": b'{"days": NaN, "temperature": 1e999}',
    "nothing": b"",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_bodies(site: Site, kind: str) -> None:
    operator = site.operator()
    for method, path, _ in ROUTES:
        headers = {"content-type": "application/json"}
        answer = operator.request(method, filled(site, operator, path), content=BROKEN[kind], headers=headers)
        assert 400 <= answer.status_code < 500, (path, answer.text)
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_thirty_three_megabytes(site: Site) -> None:
    """Refused, by right or size; where the connection closes on one who still sends, the answer may be lost."""
    operator, refused = site.operator(), 0
    for path in ("/api/login", "/api/chats", "/api/import", "/api/temporary", "/api/v0/chat/completions"):
        with contextlib.suppress(httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError):
            answer = operator.post(path, json={"content": "x" * (33 << 20)})
            assert answer.status_code in (401, 403, 413), path
            refused += 1
    assert refused
    assert operator.get("/api/account").status_code == 200
