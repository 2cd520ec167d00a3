"""The compiled kernels are their references, in a forward pass and in every gradient."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from leadline.model.batch import ForwardBatch
from leadline.ops import inductor
from leadline.ops.dispatch import OPS, force
from leadline.ops.norm import rms_norm
from leadline.train.loss import cross_entropy
from tests.fixtures import TINY_V2
from tests.model.oracle import build, sample_tokens
from tests.ops.cases import CASES
from tests.ops.compare import TOLERANCE, difference
from tests.ops.test_registry import evaluate, to_float64

COMPILED = inductor.COMPILED
DOCUMENTS = [70, 70, 33, 64, 91]

pytestmark = [
    pytest.mark.usefixtures("kernels_as_before"),
    pytest.mark.filterwarnings("ignore"),  # the compiler's own
]


def test_without_a_compiler_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not inductor.enable()
    assert [kernel.name for kernel in rms_norm.kernels if kernel.name == "inductor"] == []


def test_a_compiler_that_does_not_work_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **options: object) -> object:
        raise RuntimeError("fatal error: omp.h: No such file or directory")

    monkeypatch.setattr(shutil, "which", lambda name: Path("/usr/bin", name))
    monkeypatch.setattr(torch, "compile", broken)
    assert not inductor.enable()


def test_enabling_twice_registers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor, "_compiles", lambda device: True)
    assert inductor.enable()
    assert inductor.enable()
    for each in COMPILED:
        assert [kernel.name for kernel in each.kernels].count("inductor") == 1


def test_a_compiled_norm_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor, "_compiles", lambda device: True)
    inductor.enable()
    results = []
    for kernel in ("reference", "inductor"):
        x_TD = torch.randn(96, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        weight_D = torch.linspace(0.5, 1.5, 64).requires_grad_()
        with force(kernel):
            assert (rms_norm.choose(x_TD, weight_D, 1e-6) is rms_norm.reference) == (kernel == "reference")
            y_TD = rms_norm(x_TD, weight_D, 1e-6)
        y_TD.square().sum().backward()
        results.append((y_TD.detach(), x_TD.grad, weight_D.grad))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [each.name for each in COMPILED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_op_is_its_reference(name: str, dtype: torch.dtype) -> None:
    assert inductor.enable()
    (kernel,) = (kernel for kernel in OPS[name].kernels if kernel.name == "inductor")
    case = CASES[name][0]
    actual = evaluate(kernel.function, case.make(dtype), case.gradients)
    expected = evaluate(OPS[name].reference, to_float64(case.make(dtype)), case.gradients)
    found = [difference(a, e, TOLERANCE[dtype]) for a, e in zip(actual, expected, strict=True)]
    assert found == [None] * len(found)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_training_pass_is_the_references(dtype: torch.dtype) -> None:
    """Every compiled op, on documents of unlike lengths and in two passes of unlike sizes."""
    used: set[str] = set()
    assert inductor.enable()
    for each in COMPILED:
        (kernel,) = (kernel for kernel in each.kernels if kernel.name == "inductor")
        kernel.function = _noting(each.name, kernel.function, used)
    # Every expert is chosen: a rounding cannot turn the choice.
    wide = dataclasses.replace(TINY_V2, hidden_size=128, num_experts_per_tok=8, topk_group=4)
    for documents in (DOCUMENTS, DOCUMENTS[::-1][:4]):
        model = build(wide, dtype, std=0.05)
        compiled = gradients(model, documents)
        with force("reference"):
            plain, exact = gradients(model, documents), gradients(copy.deepcopy(model).double(), documents)
        for name, value in exact.items():
            allowed = 1.5 * relative(plain[name], value) + torch.finfo(dtype).eps
            assert relative(compiled[name], value) < allowed, name
    assert used == {each.name for each in COMPILED}


def _noting(name: str, function: Callable[..., Any], used: set[str]) -> Callable[..., Any]:
    def noting(*args: Any) -> Any:
        used.add(name)
        return function(*args)

    return noting


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def gradients(model: torch.nn.Module, documents: list[int]) -> dict[str, Tensor]:
    model.zero_grad()
    tokens = sample_tokens(TINY_V2, sum(documents) + 1)
    hidden_TD, _ = model.hidden(tokens[:-1], ForwardBatch.packed(documents))  # type: ignore[operator]
    weight = model.get_parameter("lm_head.weight")
    loss = cross_entropy(hidden_TD, weight, tokens[1:], torch.ones(len(tokens) - 1))
    loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return grads | {"loss": loss.detach()}
