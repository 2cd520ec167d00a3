"""The tokenizers that these tests share, loaded once."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer as RustTokenizer

from leadline.tokenizer import Tokenizer
from tests.fixtures_tokenizer import make_tiny_tokenizer, make_v25_folder, official_folder


@pytest.fixture(scope="session")
def official() -> Tokenizer:
    return Tokenizer.from_folder(official_folder())


@pytest.fixture(scope="session")
def library() -> RustTokenizer:
    """The oracle: the tokenizers library on the same file."""
    return RustTokenizer.from_file(str(official_folder() / "tokenizer.json"))


@pytest.fixture(scope="session")
def v25(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(make_v25_folder(tmp_path_factory.mktemp("v25")))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny_tokenizer(folder, fim=True)
    return Tokenizer.from_folder(folder)
