"""Chunked cross-entropy is torch's, in value and in both gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from leadline.ops.loss import softmax_nll
from leadline.train import loss
from leadline.train.loss import cross_entropy

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def inputs(tokens: int, dtype: torch.dtype, *, masked: bool = True) -> Inputs:
    generator = torch.Generator().manual_seed(tokens)
    hidden_TD = torch.randn(tokens, 16, generator=generator).to(dtype).requires_grad_()
    weight_VD = torch.randn(48, 16, generator=generator).to(dtype).requires_grad_()
    targets_T = torch.randint(0, 48, (tokens,), generator=generator)
    weights_T = torch.ones(tokens)
    if masked:
        weights_T[::3] = 0.0
        weights_T[1::3] = 0.5
    return hidden_TD, weight_VD, targets_T, weights_T


def by_torch(hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, weights_T: Tensor) -> tuple[Tensor, ...]:
    """The formula in float64 on the same numbers: the loss and its gradients."""
    wide_TD, wide_VD = (x.detach().double().requires_grad_() for x in (hidden_TD, weight_VD))
    each_T = torch.nn.functional.cross_entropy(wide_TD @ wide_VD.T, targets_T, reduction="none")
    value = (each_T * weights_T).sum() / weights_T.sum()
    return value, *torch.autograd.grad(value, (wide_TD, wide_VD))


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK", 16)


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 50])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_value_and_gradients_are_torchs(tokens: int, dtype: torch.dtype, tolerance: float) -> None:
    hidden_TD, weight_VD, targets_T, weights_T = inputs(tokens, dtype, masked=tokens > 1)
    value = cross_entropy(hidden_TD, weight_VD, targets_T, weights_T)
    value.backward()
    wanted, *gradients = by_torch(hidden_TD, weight_VD, targets_T, weights_T)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(value.double(), wanted, rtol=tolerance, atol=tolerance)
    for actual, expected in zip((hidden_TD.grad, weight_VD.grad), gradients, strict=True):
        assert actual is not None
        assert actual.dtype == dtype
        torch.testing.assert_close(
            actual.double(), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())
        )


def test_the_gradient_scales_with_what_comes_from_above() -> None:
    hidden_TD, weight_VD, targets_T, weights_T = inputs(20, torch.float64)
    (3.0 * cross_entropy(hidden_TD, weight_VD, targets_T, weights_T)).backward()
    _, gradient_TD, _ = by_torch(hidden_TD, weight_VD, targets_T, weights_T)
    torch.testing.assert_close(hidden_TD.grad, 3.0 * gradient_TD)


def test_a_hidden_token_changes_nothing() -> None:
    hidden_TD, weight_VD, targets_T, weights_T = inputs(20, torch.float32)
    value = cross_entropy(hidden_TD, weight_VD, targets_T, weights_T)
    targets_T[::3] = 0  # all of them hidden
    assert torch.equal(cross_entropy(hidden_TD, weight_VD, targets_T, weights_T), value)
    value.backward()
    assert hidden_TD.grad is not None
    assert not hidden_TD.grad[::3].any()


def test_all_hidden_is_no_loss_and_no_gradient() -> None:
    hidden_TD, weight_VD, targets_T, _ = inputs(20, torch.float32)
    value = cross_entropy(hidden_TD, weight_VD, targets_T, torch.zeros(20))
    value.backward()
    assert value.item() == 0.0
    assert hidden_TD.grad is not None
    assert weight_VD.grad is not None
    assert not hidden_TD.grad.any()
    assert not weight_VD.grad.any()


def test_the_logits_of_all_tokens_are_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = softmax_nll.reference

    def spy(logits_TV: Tensor, targets_T: Tensor, scale_T: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(len(logits_TV))
        return original(logits_TV, targets_T, scale_T)

    monkeypatch.setattr(loss, "softmax_nll", spy)
    cross_entropy(*inputs(50, torch.float32)).backward()
    assert seen == [16, 16, 16, 2]
