"""What tests of ops share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from leadline.ops.dispatch import OPS


@pytest.fixture
def kernels_as_before() -> Iterator[None]:
    """Other tests go on with the kernels that they had."""
    before = {name: list(each.kernels) for name, each in OPS.items()}
    yield
    for name, kernels in before.items():
        OPS[name].kernels[:] = kernels
