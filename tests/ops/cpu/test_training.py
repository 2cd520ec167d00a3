"""The training kernels are their ops' references, forward and in every gradient, whatever lies at the edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from leadline.ops.attention import expanded_attention
from leadline.ops.cpu import training
from leadline.ops.dispatch import Op
from leadline.ops.experts import routed_experts
from leadline.ops.loss import softmax_nll
from leadline.ops.norm import rms_norm
from tests.ops.cases import normal
from tests.ops.compare import TOLERANCE, difference
from tests.ops.test_registry import evaluate, to_float64

pytestmark = pytest.mark.usefixtures("kernels_as_before")

BF16 = torch.bfloat16
Case = tuple[Op[..., Any], Callable[..., Any], Callable[[], tuple[Any, ...]], tuple[int, ...]]


def documents(*lengths: int, heads: int = 2, width: int = 48, values: int = 32) -> Callable[[], tuple[Any, ...]]:
    """The values are a part of wider rows, as the model's are."""

    def make() -> tuple[Any, ...]:
        starts = tuple(torch.tensor([0, *lengths]).cumsum(0).tolist())
        q, k = (normal(starts[-1], heads, width, seed=seed, dtype=BF16) for seed in (0, 1))
        v = normal(starts[-1], heads, values + 16, seed=2, dtype=BF16)[..., 16:]
        return q, k, v, starts, 0.2

    return make


def pairs(ids_TS: Tensor, experts: int, width: int = 64, inner: int = 32) -> Callable[[], tuple[Any, ...]]:
    def make() -> tuple[Any, ...]:
        x = normal(len(ids_TS), width, dtype=BF16)
        gates = torch.rand(ids_TS.shape, generator=torch.Generator().manual_seed(1))
        gate_up = normal(experts, 2 * inner, width, seed=2, dtype=BF16) * 0.2
        return x, ids_TS, gates, gate_up, normal(experts, width, inner, seed=3, dtype=BF16) * 0.2

    return make


def choices(tokens: int, slots: int, experts: int) -> Tensor:
    return torch.rand(tokens, experts, generator=torch.Generator().manual_seed(7)).topk(slots).indices


def some_dropped(tokens: int, experts: int, idle: int) -> Tensor:
    """Of every third token one pair is dropped; nobody chooses expert `idle`."""
    ids_TS = choices(tokens, 3, experts)
    ids_TS[::3, 1] = experts
    return ids_TS.masked_fill(ids_TS == idle, experts)


def logits(tokens: int, columns: int) -> Callable[[], tuple[Any, ...]]:
    def make() -> tuple[Any, ...]:
        hidden = (torch.arange(tokens) % 3 > 0).float() * 0.7
        return normal(tokens, columns, dtype=BF16) * 5, torch.arange(tokens) * 5 % columns, hidden

    return make


def normed(tokens: int, width: int) -> Callable[[], tuple[Any, ...]]:
    """The rows are a part of wider ones, as the model's latents are."""

    def make() -> tuple[Any, ...]:
        x = normal(tokens, width + 16, dtype=BF16)[:, :width]
        return x, normal(width, seed=1, dtype=BF16), 1e-6

    return make


BY_HEADS, BY_EXPERTS = (0, 1, 2), (0, 2, 3, 4)
CASES: dict[str, Case] = {
    "one token": (expanded_attention, training.attention, documents(1), BY_HEADS),
    "ragged documents": (expanded_attention, training.attention, documents(1, 3, 64, 65, 0, 130), BY_HEADS),
    "a long document": (expanded_attention, training.attention, documents(1100, heads=1), BY_HEADS),
    "narrow heads": (expanded_attention, training.attention, documents(40, 90, width=16, values=16), BY_HEADS),
    "wide heads": (expanded_attention, training.attention, documents(77, width=192, values=128), BY_HEADS),
    "even experts": (routed_experts, training.experts, pairs(choices(70, 3, 6), 6), BY_EXPERTS),
    "dropped pairs": (routed_experts, training.experts, pairs(some_dropped(100, 6, idle=2), 6), BY_EXPERTS),
    "one expert for all": (routed_experts, training.experts, pairs(torch.zeros(600, 1).long(), 2), BY_EXPERTS),
    "all dropped": (routed_experts, training.experts, pairs(torch.full((9, 2), 4), 4), BY_EXPERTS),
    "five panels": (routed_experts, training.experts, pairs(choices(65, 2, 4), 4, 80, 16), BY_EXPERTS),
    "norm": (rms_norm, training.norm, normed(300, 64), (0, 1)),
    "norm of a stretch and one row": (rms_norm, training.norm, normed(257, 48), (0, 1)),
    "logits": (softmax_nll, training.softmax_nll, logits(50, 160), ()),
    "one row": (softmax_nll, training.softmax_nll, logits(1, 16), ()),
}


@pytest.mark.parametrize("name", CASES)
def test_a_training_kernel_is_its_reference(name: str) -> None:
    each, kernel, make, by = CASES[name]
    assert training.enable()
    assert each.choose(*make()) is kernel
    actual = evaluate(kernel, make(), by)
    expected = evaluate(each.reference, to_float64(make()), by)
    rounded = evaluate(each.reference, make(), by)
    assert [(a.shape, a.dtype) for a in actual] == [(r.shape, r.dtype) for r in rounded]
    found = [difference(a, e, TOLERANCE[BF16]) for a, e in zip(actual, expected, strict=True)]
    assert found == [None] * len(found)


@pytest.mark.parametrize("name", CASES)
def test_a_training_kernel_is_as_close_as_its_reference_in_bf16(name: str) -> None:
    """Over all values together, where single ones are forgiven much."""
    each, kernel, make, by = CASES[name]
    expected = evaluate(each.reference, to_float64(make()), by)
    actual, rounded = evaluate(kernel, make(), by), evaluate(each.reference, make(), by)
    for a, r, e in zip(actual, rounded, expected, strict=True):
        norm = e.double().norm().clamp(min=1e-9)
        assert (a.double() - e).norm() / norm <= 1.7 * (r.double() - e).norm() / norm + 2e-3


@pytest.mark.parametrize("name", ["ragged documents", "dropped pairs", "norm", "logits"])
def test_threads_change_no_bit(name: str) -> None:
    _, kernel, make, by = CASES[name]
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(evaluate(kernel, make(), by))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_document_does_not_touch_its_neighbours(value: float) -> None:
    q, k, v, starts, scale = documents(20, 70, 40)()
    healthy = evaluate(training.attention, (q, k, v, starts, scale), BY_HEADS)
    k, v = k.clone(), v.clone()
    k[20:90], v[20:90] = value, value
    broken = evaluate(training.attention, (q, k, v, starts, scale), BY_HEADS)
    for a, b in zip(broken, healthy, strict=True):
        assert torch.equal(a[:20], b[:20])
        assert torch.equal(a[90:], b[90:])
        assert a[20:90].isnan().any()


def test_what_the_kernels_cannot_do_goes_elsewhere() -> None:
    assert training.enable()
    q, k, v, starts, scale = documents(20)()
    assert expanded_attention.choose(q.float(), k.float(), v.float(), starts, scale) is not training.attention
    assert expanded_attention.choose(q[..., :40], k[..., :40], v, starts, scale) is not training.attention
    assert expanded_attention.choose(q, k[:, :1], v[:, :1], starts, scale) is not training.attention
    with torch.no_grad():
        assert expanded_attention.choose(q, k, v, starts, scale) is not training.attention
        assert routed_experts.choose(*pairs(choices(9, 2, 4), 4)()) is not training.experts


def test_enabling_twice_registers_once() -> None:
    assert training.enable()
    assert training.enable()
    for each in (expanded_attention, routed_experts, rms_norm, softmax_nll):
        assert [kernel.name for kernel in each.kernels].count(training.NAME) == 1


def test_whoever_asks_for_pytorch_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEADLINE_ISA", "none")
    assert not training.enable()
