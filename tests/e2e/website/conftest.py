"""One server and one browser for all tests of the website; everyone in it has an account of their own."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from playwright.sync_api import Browser, expect

from leadline.tokenizer import Tokenizer
from tests.e2e.browser import Visitor, aside, chromium, sign_in_link, visitor, website
from tests.fixtures_server import small_tokenizer
from tests.server.platform.site import Site

MONEY = 10**9


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def site(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Generator[Site, None, None]:
    with website(tokenizer, tmp_path_factory.mktemp("site")) as live:
        yield live
        assert live.faults() == []
        assert live.open_holds() == 0


@pytest.fixture(scope="session")
def browser(site: Site) -> Generator[Browser, None, None]:
    with chromium() as running:
        yield running


@pytest.fixture
def ada(browser: Browser, site: Site) -> Generator[Visitor, None, None]:
    """Signed in, with money."""
    user = aside(lambda: site.user(balance=MONEY))
    with visitor(browser, site) as someone:
        someone.enter(aside(lambda: site.email(user)))
        yield someone


@pytest.fixture
def operator(browser: Browser, site: Site) -> Generator[Visitor, None, None]:
    user = aside(lambda: site.user(balance=MONEY, role="admin"))
    with visitor(browser, site) as someone:
        someone.open(sign_in_link(site, user).removeprefix(site.url))
        someone.button("Sign me in").click()
        expect(someone.composer).to_be_visible()
        yield someone
