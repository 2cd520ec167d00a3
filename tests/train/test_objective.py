"""Eq. 32-34 written out with loops, and log-probabilities in chunks against the plain ones."""

from __future__ import annotations

import math

import pytest
import torch

from leadline.train import logprobs as module
from leadline.train.logprobs import token_logprobs
from leadline.train.objective import Level, advantages, kl_estimate, terms

LENGTHS = (3, 1, 4, 2)


def case() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(7)
    total = sum(LENGTHS)

    def noise(size: int, scale: float) -> torch.Tensor:
        return scale * torch.randn(size, generator=draw, dtype=torch.float64)

    logp = -2 + noise(total, 0.5)
    return {
        "logp": logp.requires_grad_(True),
        "old": logp.detach() + noise(total, 0.2),
        "reference": logp.detach() + noise(total, 0.3),
        "outputs": torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS)),
        "advantages": torch.tensor([1.2, -0.7, 0.4, -1.1], dtype=torch.float64),
    }


def written_out(given: dict[str, torch.Tensor], clip: float, kl: float, level: Level) -> torch.Tensor:
    """One output and one token after the other, as the equations stand."""
    objective, start = torch.zeros((), dtype=torch.float64), 0
    for output, length in enumerate(LENGTHS):
        place = slice(start, start + length)
        start += length
        policy, old, reference = (given[name][place] for name in ("logp", "old", "reference"))
        units = list(zip(policy, old, reference, strict=True))
        if level == "sequence":
            units = [(policy.sum(), old.sum(), reference.sum())]
        part = torch.zeros((), dtype=torch.float64)
        for log_p, log_old, log_reference in units:
            p, p_old, p_reference = log_p.exp(), log_old.exp(), log_reference.exp()
            ratio, advantage = p / p_old, given["advantages"][output]
            clipped = min(max(ratio, ratio.new_tensor(1 - clip)), ratio.new_tensor(1 + clip))
            distance = p_reference / p - torch.log(p_reference / p) - 1
            part = part + min(ratio * advantage, clipped * advantage) - kl * distance
        objective = objective + part / len(units)
    return objective / len(LENGTHS)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("kl", [0.0, 0.3])
def test_the_objective_and_its_gradient_are_the_papers(level: Level, kl: float) -> None:
    given = case()
    found = terms(
        given["logp"], given["old"], given["reference"], given["outputs"], given["advantages"],
        clip=0.1, kl=kl, level=level,
    )  # fmt: skip
    (ours,) = torch.autograd.grad(found.objective_O.mean(), given["logp"])
    wanted = written_out(given, 0.1, kl, level)
    (theirs,) = torch.autograd.grad(wanted, given["logp"])
    assert found.objective_O.mean().item() == pytest.approx(wanted.item(), abs=1e-12)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert found.clipped.any()
    assert not found.clipped.all()


def test_a_clipped_token_has_no_gradient_and_only_when_it_would_go_on() -> None:
    logp = torch.tensor([0.5, -0.5, 0.5, -0.5], dtype=torch.float64, requires_grad=True)
    old, outputs = torch.zeros(4, dtype=torch.float64), torch.arange(4)
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    found = terms(logp, old, None, outputs, advantage, clip=0.2, kl=0.0, level="token")
    (gradient,) = torch.autograd.grad(found.objective_O.sum(), logp)
    assert found.clipped.tolist() == [True, False, False, True]
    assert (gradient == 0).tolist() == [True, False, False, True]


def test_the_estimate_of_the_distance_is_unbiased_and_never_negative() -> None:
    draw = torch.Generator().manual_seed(0)
    p, q = (torch.randn(6, generator=draw, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    estimates = kl_estimate(p, q)
    assert (estimates >= 0).all()
    assert (p.exp() * estimates).sum().item() == pytest.approx((p.exp() * (p - q)).sum().item())
    assert kl_estimate(p, p).abs().max() == 0


def test_advantages_are_centred_and_scaled_within_their_group() -> None:
    found = advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.2, 0.2, 0.2, 0.2], [0.0, 0.0, 0.0, 1.0]]))
    assert found[0].tolist() == [1.0, -1.0, -1.0, 1.0]
    assert found[1].tolist() == [0.0] * 4, "a group that agrees tells nothing"
    assert found[2].tolist() == pytest.approx([-1 / math.sqrt(3)] * 3 + [math.sqrt(3)])


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_log_probabilities_in_chunks_are_the_plain_ones(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    draw = torch.Generator().manual_seed(1)
    hidden, weight = (torch.randn(size, 5, generator=draw, dtype=torch.float64, requires_grad=True) for size in (7, 11))
    targets = torch.randint(11, (7,), generator=draw)
    scale = torch.randn(7, generator=draw, dtype=torch.float64)
    ours, entropy = token_logprobs(hidden, weight, targets)
    plain = (hidden @ weight.T).log_softmax(-1)
    theirs = plain[torch.arange(7), targets]
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(entropy, -(plain.exp() * plain).sum(-1).detach())
    assert not entropy.requires_grad
    found = torch.autograd.grad((ours * scale).sum(), (hidden, weight))
    wanted = torch.autograd.grad((theirs * scale).sum(), (hidden, weight))
    for first, second in zip(found, wanted, strict=True):
        torch.testing.assert_close(first, second)
