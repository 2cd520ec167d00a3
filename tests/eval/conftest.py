"""A folder of made data for all benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.eval.made import make_all


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_all(tmp_path_factory.mktemp("evaluation"))
