"""Generated from the ops' own cases: the C++ counterpart of an op on every case of it, on every instruction set.

The kernels are not registered on the ops, since a whole model is bound to them and they take addresses; what they and
an op have in common is held to the same cases. Rows in fewer bits are met by whole models, in `test_model.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from leadline.ops.cpu import native
from leadline.ops.dispatch import OPS
from leadline.ops.latent import PackedLatents
from tests.ops.cases import CASES, Case
from tests.ops.compare import TOLERANCE, difference
from tests.ops.cpu.test_kernels import attend
from tests.ops.test_registry import to_float64

NATIVE: Any = native.extension()


def norm(isa: str, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    out_TD = torch.empty_like(x_TD)
    NATIVE.norm(isa, x_TD.data_ptr(), weight_D.data_ptr(), eps, *x_TD.shape, out_TD.data_ptr())
    return out_TD


def attention(
    isa: str, q_THR: Tensor, rows_PBR: Tensor, tables_SP: Tensor, contexts: Sequence[int], starts: Sequence[int],
    values: int, scale: float,
) -> Tensor:  # fmt: skip
    """Token by token, each with what it sees."""
    out_THC = torch.empty(*q_THR.shape[:2], values)
    for s, (start, end) in enumerate(itertools.pairwise(starts)):
        for t in range(start, end):
            sees = contexts[s] - (end - 1 - t)
            out_THC[t] = attend(isa, q_THR[t].float(), rows_PBR, tables_SP[s], sees, values, scale)
    return out_THC


COUNTERPARTS: dict[str, tuple[Callable[..., Tensor], tuple[torch.dtype, ...]]] = {
    "rms_norm": (norm, (torch.float32,)),
    "absorbed_attention": (attention, (torch.float32, torch.bfloat16)),
}


def runs() -> Iterator[Any]:
    for name, (_, types) in COUNTERPARTS.items():
        for case, dtype, isa in itertools.product(CASES[name], types, native.instruction_sets()):
            if dtype in case.types and not any(isinstance(each, PackedLatents) for each in case.make(dtype)):
                label = f"{name}-{isa}-{case.name}-{str(dtype)[6:]}".replace(" ", "_")
                yield pytest.param(name, case, dtype, isa, id=label)


@pytest.mark.parametrize(("name", "case", "dtype", "isa"), list(runs()))
def test_a_counterpart_is_its_op(name: str, case: Case, dtype: torch.dtype, isa: str) -> None:
    """What is right is the op's reference in float64 on the same numbers."""
    actual = COUNTERPARTS[name][0](isa, *case.make(dtype))
    expected = OPS[name].reference(*to_float64(case.make(dtype)))
    assert difference(actual, expected, TOLERANCE[dtype]) is None
