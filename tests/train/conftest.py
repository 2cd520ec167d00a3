"""One tokenizer, one corpus and one model to start from for every test of the trainer. Read only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from leadline.train.config import TrainConfig
from tests.fixtures import make_tokenizer_files
from tests.train.alignment import make_init
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


@pytest.fixture(scope="session")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder that reward models and GRPO start from."""
    return make_init(tmp_path_factory.mktemp("train-init"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Many small products: threads would wait for each other more than they help."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
