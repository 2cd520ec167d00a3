"""Generated from the registry: every kernel of every op on every case, in every dtype, forward and every gradient.

What is right is the op's own reference in float64 on the same numbers; the references are held against the paper's
equations and transformers in tests/model.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import leadline.ops
from leadline.ops.attention import expanded_attention
from leadline.ops.dispatch import OPS, Op
from leadline.ops.experts import grouped_ffn, grouped_ffn_on_gpu, routed_experts, routed_experts_on_gpu
from leadline.ops.latent import PackedLatents
from leadline.ops.norm import rms_norm
from tests.ops.cases import CASES, Case
from tests.ops.compare import TOLERANCE, difference

# Importing a module registers its ops.
for module in pkgutil.iter_modules(leadline.ops.__path__):
    importlib.import_module(f"leadline.ops.{module.name}")

GPU_ONLY = {("grouped_ffn", "grouped_mm"), ("routed_experts", "grouped_mm"), ("expanded_attention", "flash")}
GPU_ONLY |= {("rms_norm", "fused")}
"""Kernels that no CPU tensor reaches; the tests for a GPU reach them all."""

OPT_IN = {"inductor", "avx512_bf16"}
"""Kernels that a trainer registers; they have tests of their own."""

Run = tuple[Op[..., Any], str, Case, torch.dtype, bool]


def implementations(each: Op[..., Any]) -> dict[str, Callable[..., Any]]:
    return {"reference": each.reference, **{kernel.name: kernel.function for kernel in each.kernels}}


def accepts(each: Op[..., Any], name: str, case: Case, dtype: torch.dtype, training: bool) -> bool:
    with torch.set_grad_enabled(training):
        return name == "reference" or any(k.name == name and k.when(*case.make(dtype)) for k in each.kernels)


def runs() -> Iterator[Any]:
    for each in OPS.values():
        for name in implementations(each):
            for case in CASES.get(each.name, []):
                for dtype in case.types:
                    for training in (False, True) if case.gradients else (False,):
                        if accepts(each, name, case, dtype, training):
                            mode = "gradients" if training else "forward"
                            label = f"{each.name}-{name}-{case.name}-{str(dtype)[6:]}-{mode}".replace(" ", "_")
                            yield pytest.param(each, name, case, dtype, training, id=label)


RUNS = list(runs())


def as_tuple(output: Any) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


def evaluate(function: Callable[..., Any], arguments: tuple[Any, ...], by: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The outputs, and the gradients of a fixed combination of them by the arguments at `by`."""
    if not by:
        with torch.no_grad():
            return as_tuple(function(*arguments))
    arguments = tuple(a.detach().requires_grad_() if i in by else a for i, a in enumerate(arguments))
    outputs = as_tuple(function(*arguments))
    floating = [output for output in outputs if output.requires_grad]
    generator = torch.Generator().manual_seed(9)
    seeds = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o) for o in floating]
    gradients = torch.autograd.grad(floating, [arguments[i] for i in by], seeds)
    return *(output.detach() for output in outputs), *gradients


def to_float64(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments)


@pytest.mark.parametrize(("each", "name", "case", "dtype", "training"), RUNS)
def test_kernel_is_its_reference(each: Op[..., Any], name: str, case: Case, dtype: torch.dtype, training: bool) -> None:
    by = case.gradients if training else ()
    actual = evaluate(implementations(each)[name], case.make(dtype), by)
    expected = evaluate(each.reference, to_float64(case.make(dtype)), by)
    rounded = evaluate(each.reference, case.make(dtype), by)
    assert [(a.shape, a.dtype) for a in actual] == [(r.shape, r.dtype) for r in rounded]
    found = [difference(a, e, TOLERANCE[dtype]) for a, e in zip(actual, expected, strict=True)]
    assert found == [None] * len(found)


def test_every_op_has_cases_and_every_case_an_op() -> None:
    assert set(CASES) == set(OPS)


def test_every_kernel_is_reached_by_a_case() -> None:
    reached = {(run.values[0].name, run.values[1]) for run in RUNS}
    registered = {
        (each.name, kernel.name) for each in OPS.values() for kernel in each.kernels if kernel.name not in OPT_IN
    }
    assert registered - reached == GPU_ONLY & registered


@pytest.mark.parametrize("name", sorted(set(implementations(expanded_attention)) - {"flash"}))
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_document_does_not_touch_its_neighbours(name: str, value: float) -> None:
    q, k, v, starts, scale = CASES["expanded_attention"][0].make(torch.float32)
    healthy = implementations(expanded_attention)[name](q, k, v, starts, scale)
    k, v = k.clone(), v.clone()
    k[starts[1] : starts[2]], v[starts[1] : starts[2]] = value, value
    broken = implementations(expanded_attention)[name](q, k, v, starts, scale)
    for document in (0, 2):
        rows = slice(starts[document], starts[document + 1])
        assert torch.equal(broken[rows], healthy[rows])


GROUPED_MM = ((grouped_ffn, grouped_ffn_on_gpu), (routed_experts, routed_experts_on_gpu))
GROUPED_MM_CASES = [
    pytest.param(each, function, case, id=f"{each.name}-{case.name}".replace(" ", "_"))
    for each, function in GROUPED_MM
    for case in CASES[each.name]
]


@pytest.mark.parametrize(("each", "function", "case"), GROUPED_MM_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_gpu_does_with_experts_on_a_cpu(
    each: Op[..., Any], function: Callable[..., Any], case: Case, dtype: torch.dtype
) -> None:
    """`grouped_mm` runs on both, so that its use is tested without a GPU."""
    arguments = case.make(dtype)
    if arguments[0].shape[0] == 0:
        return  # a pass without tokens never reaches the experts
    actual = evaluate(function, arguments, case.gradients)
    expected = evaluate(each.reference, to_float64(arguments), case.gradients)
    found = [difference(a, e, TOLERANCE[dtype]) for a, e in zip(actual, expected, strict=True)]
    assert found == [None] * len(found)


def on_gpu(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(map(_on_gpu, arguments))


def _on_gpu(argument: Any) -> Any:
    if isinstance(argument, PackedLatents):
        return dataclasses.replace(argument, pages_PB=argument.pages_PB.cuda())
    return argument.cuda() if isinstance(argument, Tensor) else argument


GPU_TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: TOLERANCE[torch.bfloat16]}
"""In float32 a softmax over one key gives gradients of 2e-6 there where zero is right."""

GPU_TYPES = tuple(GPU_TOLERANCE)
GPU_RUNS = [
    pytest.param(
        each, case, dtype, training, id=f"{each.name}-{case.name}-{str(dtype)[6:]}-{training}".replace(" ", "_")
    )
    for each in OPS.values()
    for case in CASES.get(each.name, [])
    for dtype in GPU_TYPES
    if dtype in case.types
    for training in ((False, True) if case.gradients else (False,))
]


@pytest.mark.gpu
@pytest.mark.parametrize(("each", "case", "dtype", "training"), GPU_RUNS)
def test_what_a_gpu_runs_is_the_reference(each: Op[..., Any], case: Case, dtype: torch.dtype, training: bool) -> None:
    """Whatever the dispatch point chooses there, against the reference in float64 on the CPU."""
    by = case.gradients if training else ()
    actual = evaluate(each, on_gpu(case.make(dtype)), by)
    expected = evaluate(each.reference, to_float64(case.make(dtype)), by)
    tolerance = GPU_TOLERANCE[dtype]
    found = [difference(a.cpu(), e, tolerance) for a, e in zip(actual, expected, strict=True)]
    assert found == [None] * len(found)


@pytest.mark.gpu
def test_a_gpu_reaches_its_own_kernels() -> None:
    arguments = on_gpu(CASES["grouped_ffn"][0].make(torch.bfloat16))
    assert grouped_ffn.choose(*arguments) is grouped_ffn_on_gpu
    arguments = on_gpu(CASES["expanded_attention"][0].make(torch.bfloat16))
    assert expanded_attention.choose(*arguments) is implementations(expanded_attention)["flash"]
    arguments = on_gpu(CASES["rms_norm"][0].make(torch.bfloat16))
    assert rms_norm.choose(*arguments) is implementations(rms_norm)["fused"]
