"""Token dropping (2.2.4) against the strategy written out with loops, in float64."""

from __future__ import annotations

import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from leadline.errors import ConfigError
from leadline.model.batch import ForwardBatch
from leadline.model.dropping import Dropping, DroppingConfig, dropped_pairs
from leadline.model.moe import MoE
from leadline.model.transformer import DeepseekV2
from leadline.ops.experts import route
from tests.fixtures import TINY_V2

EXPERTS, TOP_K, DEVICES, REACH = 8, 3, 4, 2


def by_the_paper(ids: list[list[int]], scores: list[list[float]], exempt: list[bool], factor: float) -> set[tuple]:
    """Each device takes out its lowest affinities until it is within its budget: the (token, expert) taken out."""
    size, dropped = EXPERTS // DEVICES, set()
    budget = math.ceil(factor * len(ids) * TOP_K / DEVICES)
    for device in range(DEVICES):
        pairs = [(t, e) for t, row in enumerate(ids) for e in row if e // size == device]
        over = len(pairs) - budget
        candidates = sorted((scores[t][e], -t, e) for t, e in pairs if not exempt[t])
        dropped |= {(-t, e) for _, t, e in candidates[: max(0, over)]}
    return dropped


def routed(tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.randn(tokens, EXPERTS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    ids_TK, _, scores_TE = route(logits * 2, TOP_K, DEVICES, REACH, False, 16.0)
    return ids_TK, scores_TE


@hypothesis.given(
    tokens=st.integers(1, 40),
    seed=st.integers(0, 99),
    factor=st.sampled_from([0.1, 0.5, 1.0, 1.25, 2.0]),
    data=st.data(),
)
def test_what_is_dropped_is_what_the_paper_drops(tokens: int, seed: int, factor: float, data: st.DataObject) -> None:
    ids_TK, scores_TE = routed(tokens, seed)
    exempt = data.draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens))
    dropped_TK = dropped_pairs(ids_TK, scores_TE, DEVICES, Dropping(factor, torch.tensor(exempt)))
    found = {(t, int(ids_TK[t, k])) for t, k in dropped_TK.nonzero().tolist()}
    assert found == by_the_paper(ids_TK.tolist(), scores_TE.tolist(), exempt, factor)


def test_no_device_is_over_its_budget_and_an_even_load_loses_nothing() -> None:
    ids_TK, scores_TE = routed(64, 0)
    dropped_TK = dropped_pairs(ids_TK, scores_TE, DEVICES, Dropping(1.0, torch.zeros(64, dtype=torch.bool)))
    kept = torch.bincount((ids_TK // (EXPERTS // DEVICES))[~dropped_TK], minlength=DEVICES)
    assert dropped_TK.any()
    assert int(kept.max()) <= 64 * TOP_K // DEVICES
    even_TK = torch.arange(24).view(8, 3) % EXPERTS
    even = dropped_pairs(even_TK, torch.full((8, EXPERTS), 1 / EXPERTS), DEVICES, Dropping(1.0, torch.zeros(8).bool()))
    assert not even.any()


def test_of_equal_affinities_the_earlier_token_stays() -> None:
    ids_TK, scores_TE = torch.zeros(4, 1, dtype=torch.int64), torch.full((4, EXPERTS), 1 / EXPERTS)
    dropped = dropped_pairs(ids_TK, scores_TE, 2, Dropping(1.0, torch.zeros(4, dtype=torch.bool)))
    assert dropped[:, 0].tolist() == [False, False, True, True]


def test_a_dropped_pair_computes_nothing_and_the_choices_stay_told() -> None:
    """The layer's output is the shared experts' alone where all of a token's pairs are dropped."""
    model = DeepseekV2(TINY_V2)
    model.initialise(torch.Generator().manual_seed(0))
    layer = next(module for module in model.modules() if isinstance(module, MoE))
    assert layer.shared_experts is not None
    x_TD = torch.randn(6, TINY_V2.hidden_size, generator=torch.Generator().manual_seed(1))
    exempt_T = torch.tensor([True, False, True, True, False, True])
    y_TD, routing = layer(x_TD, Dropping(1e-9, exempt_T))  # a budget of one pair, and more than that is exempt
    plain_TD, choices = layer(x_TD)
    assert torch.equal(routing.expert_ids_TK, choices.expert_ids_TK)
    assert routing.dropped_TK is not None
    assert torch.equal(routing.dropped_TK.any(1), ~exempt_T)
    torch.testing.assert_close(y_TD[exempt_T], plain_TD[exempt_T])
    gone_T = routing.dropped_TK.all(1)
    assert gone_T.any()
    torch.testing.assert_close(y_TD[gone_T], layer.shared_experts(x_TD[gone_T]))


def test_dropping_reaches_every_moe_layer_of_a_pass_and_an_evaluation_has_none() -> None:
    model = DeepseekV2(TINY_V2)
    model.initialise(torch.Generator().manual_seed(0))
    tokens_T, batch = torch.arange(30), ForwardBatch.packed([30])
    plain = model(tokens_T, batch)
    assert all(routing.dropped_TK is None for routing in plain.routings)
    dropping = Dropping(0.5, torch.zeros(30, dtype=torch.bool))
    dropped = model(tokens_T, ForwardBatch(batch.positions, batch.starts, dropping=dropping))
    assert all(routing.dropped_TK is not None and routing.dropped_TK.any() for routing in dropped.routings)
    assert not torch.equal(plain.logits, dropped.logits)


def test_a_dropped_pair_has_no_gradient() -> None:
    model = DeepseekV2(TINY_V2)
    model.initialise(torch.Generator().manual_seed(0))
    layer = next(module for module in model.modules() if isinstance(module, MoE))
    x_TD = torch.randn(12, TINY_V2.hidden_size, generator=torch.Generator().manual_seed(1), requires_grad=True)
    y_TD, routing = layer(x_TD, Dropping(1e-9, torch.zeros(12, dtype=torch.bool)))
    y_TD.square().sum().backward()
    kept = set(routing.kept_ids_TK.flatten().tolist())
    grad = layer.experts.down_proj.grad
    assert grad is not None
    assert {e for e in range(len(grad)) if grad[e].any()} == kept - {len(grad)}


@pytest.mark.parametrize(
    ("config", "message"),
    [(DroppingConfig(-1.0), "capacity_factor must not be negative"), (DroppingConfig(1.0, 1.1), "exempt is a share")],
)
def test_numbers_that_mean_nothing_are_refused(config: DroppingConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.check()
