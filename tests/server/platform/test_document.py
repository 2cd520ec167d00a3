"""Our own OpenAPI document, asked by schemathesis: whatever it makes of it, no answer is a fault of ours."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis

from leadline.server.limits import Throttle
from leadline.tokenizer import Tokenizer
from tests.server.platform.site import Site, live_site

KEYS = {"message", "type", "param", "code"}


@pytest.fixture(scope="module")
def site(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Generator[Site, None, None]:
    """One that never tires of failures."""
    with live_site(tokenizer, tmp_path_factory.mktemp("site"), context_length=512, answer=" deep") as live:
        live.platform.sources = live.platform.pairs = Throttle(10**9, 1)
        yield live
        assert live.faults() == []
        assert live.open_holds() == 0


@pytest.mark.parametrize("examples", [1, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])])
@pytest.mark.parametrize("who", ["operator", "nobody"])
def test_no_operation_ends_in_a_fault(site: Site, examples: int, who: str) -> None:
    document = schemathesis.openapi.from_url(f"{site.url}/openapi.json")
    statuses: dict[int, int] = {}
    with requests.Session() as session:
        if who == "operator":
            sign_in(site, session)
        for found in document.get_all_operations():
            operation: Any = found  # Err has no ok(), and a document of ours has none
            check(operation.ok(), session, statuses, examples)
    assert statuses.get(200, 0) > 0
    assert sum(statuses.values()) > 80


def sign_in(site: Site, session: requests.Session) -> None:
    """The cookie for the site's routes and a key for the API's."""
    user = site.user(role="admin", balance=10**12, email=f"document{site.user()}@example.org")
    browser = site.browser(f"document{user - 1}@example.org")
    session.cookies.update(dict(browser.cookies))
    session.headers["authorization"] = f"Bearer {site.key(user)}"


def check(operation: Any, session: requests.Session, statuses: dict[int, int], examples: int) -> None:
    @hypothesis.settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(operation.as_strategy())
    def ask(case: Any) -> None:
        answer = case.call(session=session, timeout=20)
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        assert answer.status_code < 500, (case.method, case.path, answer.text)
        if answer.status_code >= 400:
            assert set(answer.json()["error"]) == KEYS, (case.method, case.path, answer.text)

    ask()
