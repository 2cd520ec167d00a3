"""A server with a fake engine for the client to talk to."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from leadline.tokenizer import Tokenizer
from tests.fixtures_server import LiveServer, live_server, small_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def server(tokenizer: Tokenizer) -> Generator[LiveServer, None, None]:
    with live_server(tokenizer, context_length=512) as live:
        yield live
