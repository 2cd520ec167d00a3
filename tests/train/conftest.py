"""One tokenizer and one corpus for every test of the trainer. Read only."""

from __future__ import annotations

from pathlib import Path

import pytest

from leadline.train.config import TrainConfig
from tests.fixtures import make_tokenizer_files
from tests.train.runs import encoded, recipe, sentences, write_corpus


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train-tokenizer")
    make_tokenizer_files(folder)
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    train, valid = encoded(tokenizer, sentences(60, seed=1)), encoded(tokenizer, sentences(12, seed=2))
    return write_corpus(tmp_path_factory.mktemp("train-corpus"), tokenizer, train=train, valid=valid)


@pytest.fixture
def config(tmp_path: Path, corpus: Path, tokenizer: Path) -> TrainConfig:
    return recipe(tmp_path, corpus, tokenizer)
