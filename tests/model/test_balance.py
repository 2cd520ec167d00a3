"""The balance losses against the paper's sums (eq. 23-31), written out with loops."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from leadline.model.balance import BalanceConfig, balance_losses, expert_load, sequence_ids
from leadline.model.moe import Routing
from leadline.ops.experts import route
from tests.fixtures import TINY_V2

FACTORS = BalanceConfig(expert=0.003, device=0.05, communication=0.02)
EXPERTS, TOP_K, DEVICES, REACH = 8, 3, 4, 2


def by_the_paper(routing: Routing, starts: Sequence[int], factors: BalanceConfig) -> float:
    """a1 sum f P + a2 sum f' P' + a3 sum f'' P'' of each sequence, averaged over the sequences."""
    size = EXPERTS // DEVICES
    chosen, scores = routing.expert_ids_TK.tolist(), routing.scores_TE.tolist()
    total = 0.0
    for start, end in itertools.pairwise(starts):
        tokens, length = range(start, end), end - start
        f = [EXPERTS / (TOP_K * length) * sum(e in chosen[t] for t in tokens) for e in range(EXPERTS)]  # eq. 24
        p = [sum(scores[t][e] for t in tokens) / length for e in range(EXPERTS)]  # eq. 25
        total += factors.expert * sum(f[e] * p[e] for e in range(EXPERTS))
        for device in range(DEVICES):
            own = range(device * size, (device + 1) * size)
            f_device = sum(f[e] for e in own) / size  # eq. 27
            p_device = sum(p[e] for e in own)  # eq. 28, 31
            sent = sum(any(e in own for e in chosen[t]) for t in tokens)
            f_sent = DEVICES / (REACH * length) * sent  # eq. 30
            total += (factors.device * f_device + factors.communication * f_sent) * p_device
    return total / (len(starts) - 1)


def routing_of(tokens: int, seed: int) -> Routing:
    logits = torch.randn(tokens, EXPERTS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return Routing(*route(logits * 2, TOP_K, DEVICES, REACH, False, 16.0))


@hypothesis.given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_all_three_losses_are_the_papers_sums(lengths: list[int], seed: int) -> None:
    starts = (0, *torch.tensor(lengths).cumsum(0).tolist())
    routing = routing_of(starts[-1], seed)
    for factors in (FACTORS, BalanceConfig(0.001), BalanceConfig(0, 0.05, 0), BalanceConfig(0, 0, 0.02)):
        loss = balance_losses(routing, sequence_ids(starts), len(lengths), TINY_V2, factors).sum()
        assert loss.item() == pytest.approx(by_the_paper(routing, starts, factors), rel=1e-5)


def test_an_even_load_is_one_everywhere() -> None:
    ids = torch.arange(24).view(8, 3) % 8
    assert torch.allclose(expert_load(ids, torch.zeros(8, dtype=torch.long), 1, 8), torch.ones(1, 8))


def test_the_loss_pushes_against_the_loaded_expert() -> None:
    logits = torch.zeros(10, EXPERTS, requires_grad=True)
    with torch.no_grad():
        logits[:, 2] = 3.0
    routing = Routing(*route(logits, TOP_K, DEVICES, REACH, False, 16.0))
    balance_losses(routing, sequence_ids((0, 10)), 1, TINY_V2, FACTORS).sum().backward()
    assert logits.grad is not None
    assert (logits.grad[:, 2] > 0).all(), "a step against the gradient lowers the loaded expert's affinity"
    assert (logits.grad[:, 2:3] >= logits.grad).all()


def test_v2_lite_uses_the_expert_loss_alone() -> None:
    routing = routing_of(6, 0)
    expert_only = dataclasses.replace(FACTORS, device=0.0, communication=0.0)
    loss = balance_losses(routing, sequence_ids((0, 6)), 1, TINY_V2, expert_only).sum()
    assert loss.item() == pytest.approx(by_the_paper(routing, (0, 6), expert_only), rel=1e-5)
    assert BalanceConfig() == BalanceConfig(expert=0.001, device=0.0, communication=0.0)


def gate_gradient(factors: BalanceConfig, lengths: Sequence[int] = (7, 5)) -> torch.Tensor:
    """The gradient of the logits by the balance losses alone."""
    starts = (0, *itertools.accumulate(lengths))
    logits = torch.randn(starts[-1], EXPERTS, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    logits.requires_grad_()
    routing = Routing(*route(logits, TOP_K, DEVICES, REACH, False, 16.0))
    balance_losses(routing, sequence_ids(starts), len(lengths), TINY_V2, factors).sum().backward()
    assert logits.grad is not None
    return logits.grad


def test_the_gradient_goes_through_the_affinities_alone() -> None:
    """f, f' and f'' are counts: against a formula in which they are constants."""
    starts = (0, 7, 12)
    logits = torch.randn(12, EXPERTS, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    chosen = route(logits.detach(), TOP_K, DEVICES, REACH, False, 16.0)[0]
    size, total = EXPERTS // DEVICES, torch.zeros((), dtype=torch.float64)
    for start, end in itertools.pairwise(starts):
        p_E = logits[start:end].softmax(-1).mean(0)
        ids_TK = chosen[start:end]
        f_E = torch.stack([(ids_TK == e).sum() * EXPERTS / (TOP_K * (end - start)) for e in range(EXPERTS)])
        total = total + FACTORS.expert * (f_E * p_E).sum()
        for device in range(DEVICES):
            own = slice(device * size, (device + 1) * size)
            sent = (ids_TK // size == device).any(-1).sum() * DEVICES / (REACH * (end - start))
            total = total + (FACTORS.device * f_E[own].mean() + FACTORS.communication * sent) * p_E[own].sum()
    (total / 2).backward()
    torch.testing.assert_close(gate_gradient(FACTORS), logits.grad)


def test_the_factors_reach_the_gate() -> None:
    without, with_expert = gate_gradient(BalanceConfig(0.0)), gate_gradient(BalanceConfig(0.003))
    assert not without.any()
    assert with_expert.any()
    torch.testing.assert_close(gate_gradient(BalanceConfig(0.006)), 2 * with_expert)


def test_sequences_are_balanced_each_by_itself() -> None:
    """Two sequences, each on experts of its own, are uneven however even their sum is."""
    ids = torch.tensor([[0, 1]] * 4 + [[2, 3]] * 4)
    scores = torch.zeros(8, 4).scatter_(1, ids, 0.5)
    routing, config = Routing(ids, scores.gather(1, ids), scores), dataclasses.replace(TINY_V2, n_group=1)
    one = balance_losses(routing, sequence_ids((0, 8)), 1, config, BalanceConfig(1.0)).sum()
    two = balance_losses(routing, sequence_ids((0, 4, 8)), 2, config, BalanceConfig(1.0)).sum()
    assert (one.item(), two.item()) == pytest.approx((1.0, 2.0))


def test_a_pass_cut_into_passes_of_whole_sequences_has_the_same_loss() -> None:
    routing, starts = routing_of(15, 1), (0, 4, 9, 15)
    whole = balance_losses(routing, sequence_ids(starts), 3, TINY_V2, FACTORS).sum()
    parts = [
        balance_losses(
            Routing(routing.expert_ids_TK[a:b], routing.weights_TK[a:b], routing.scores_TE[a:b]),
            sequence_ids((0, b - a)),
            1,
            TINY_V2,
            FACTORS,
        ).sum()
        for a, b in itertools.pairwise(starts)
    ]
    assert torch.stack(parts).mean().item() == pytest.approx(whole.item(), rel=1e-6)
