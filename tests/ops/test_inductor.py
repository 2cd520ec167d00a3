"""The compiled ops against the references they are compiled from. Slow: a C++ compiler run each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from leadline.ops import inductor
from leadline.ops.dispatch import OPS
from leadline.train.loss import softmax_nll
from tests.ops.cases import CASES
from tests.ops.compare import TOLERANCE, difference
from tests.ops.test_registry import evaluate, to_float64

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

COMPILED = [op.name for op in (*inductor.FIXED, *inductor.RAGGED, softmax_nll)]


@pytest.fixture(scope="module", autouse=True)
def _enabled() -> Iterator[None]:
    """Compiled kernels for this module alone."""
    assert inductor.enable()
    yield
    for op in OPS.values():
        op.kernels = [kernel for kernel in op.kernels if kernel.name != "inductor"]


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_op_is_its_reference(name: str, dtype: torch.dtype) -> None:
    (kernel,) = [kernel for kernel in OPS[name].kernels if kernel.name == "inductor"]
    case = CASES[name][0]
    actual = evaluate(kernel.function, case.make(dtype), case.gradients)
    expected = evaluate(OPS[name].reference, to_float64(case.make(dtype)), case.gradients)
    found = [difference(a, e, TOLERANCE[dtype]) for a, e in zip(actual, expected, strict=True)]
    assert found == [None] * len(found)
