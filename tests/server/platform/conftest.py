"""One platform for the tests of a module; each makes users of its own. Whatever they did, the books add up after."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from leadline.tokenizer import Tokenizer
from tests.server.platform.site import Site, live_site


@pytest.fixture(scope="module")
def site(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Generator[Site, None, None]:
    with live_site(tokenizer, tmp_path_factory.mktemp("site"), context_length=1024) as live:
        yield live
        assert live.faults() == []
        assert live.open_holds() == 0
