"""Every route of the site with values that nobody means: an error in our words, never a fault of ours."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from leadline.server import account, admin
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
GOOD = {"email": "hostile@example.org", "password": "four fathoms deep", "amount": "1", "model": "m", "code": "x"}
GOOD |= {"hit": "1", "miss": "1", "output": "1", "token": "x", "old": "x", "new": "y" * 10}
QUERIES = ("by", "from", "to", "before", "after", "query")
STRANGE = ("\0", "%", "9" * 30, "-1", "x" * 5000, "%ff", "'; DROP TABLE users; --")
ROUTES = [("/api" + path, schema) for _, path, _, schema in account._ROUTES if schema is not None]
ROUTES += [("/api/admin" + path, schema) for _, path, _, schema in admin._ROUTES if schema is not None]


@pytest.fixture(scope="module")
def site(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Generator[Site, None, None]:
    """One that never tires of failures."""
    with live_site(tokenizer, tmp_path_factory.mktemp("site"), context_length=512) as live:
        live.platform.sources = live.platform.pairs = Throttle(10**9, 1)
        yield live
        assert live.faults() == []


@pytest.mark.parametrize(("path", "schema"), ROUTES, ids=[path for path, _ in ROUTES])
def test_bodies(site: Site, path: str, schema: type[Schema]) -> None:
    operator = site.operator()
    path = path.format(user_id=site.user())
    good = {name: GOOD[name] for name in schema.model_fields if name in GOOD}
    for place, name in enumerate(schema.model_fields):
        for value in (
            None,
            *NASTY[place % 3 :: 3],
        ):  # a third for each, and over the routes all for every kind of field
            answer = operator.post(path, json={**good, name: value})
            assert answer.status_code < 500, (name, value, answer.text)
            if answer.status_code >= 400:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", [path for method, path, _, _ in account._ROUTES if method == "GET"])
def test_queries(site: Site, path: str) -> None:
    operator = site.operator()
    for value in STRANGE:
        answer = operator.get("/api" + path, params=dict.fromkeys(QUERIES, value))
        assert answer.status_code < 500, value


@pytest.mark.parametrize("path", [path for method, path, _, _ in admin._ROUTES if method == "GET"])
def test_operators_queries(site: Site, path: str) -> None:
    operator = site.operator()
    for value in STRANGE:
        answer = operator.get("/api/admin" + path, params=dict.fromkeys(QUERIES, value))
        assert answer.status_code < 500, value
        answer = operator.get("/api/admin" + path, params={"query": value})
        assert answer.status_code < 500, value


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5", str(1 << 63), "9" * 50, "%00", "..", "1%2f2"])
def test_numbers_in_paths(site: Site, number: str) -> None:
    operator = site.operator()
    for path in (f"/api/admin/users/{number}/grants", f"/api/admin/users/{number}", f"/api/admin/users/{number}/reset"):
        assert 400 <= operator.post(path, json={"amount": "1", "state": "active"}).status_code < 500
    for path in (f"/api/keys/{number}", f"/api/tokens/{number}", f"/api/admin/invites/{number}"):
        assert 400 <= operator.delete(path).status_code < 500
