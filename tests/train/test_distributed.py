"""Several gloo processes give the loss of one, however the parameters lie, and go on from each other's checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from leadline.errors import ConfigError
from leadline.parallel.layout import ParallelConfig
from leadline.parallel.world import World
from leadline.train.config import TrainConfig
from tests.train.processes import STEPS, Scenario, run
from tests.train.runs import newest, records

TOLERANCE = 1e-5

pytestmark = pytest.mark.timeout(600)


def assert_same_run(one: TrainConfig, other: TrainConfig) -> None:
    """Every loss told, and every master and moment at the end."""
    expected, actual = records(one), records(other)
    assert [r["step"] for r in expected if "loss" in r] == list(range(1, STEPS + 1))
    for a, b in zip(
        [r for r in expected if "started" not in r], [r for r in actual if "started" not in r], strict=True
    ):
        assert a.keys() == b.keys()
        for name in a.keys() & {"loss", "balance", "expert_loss", "held_out_loss", "grad_norm", "dropped", "tokens"}:
            assert b[name] == pytest.approx(a[name], rel=TOLERANCE, abs=TOLERANCE), (name, a["step"])
        assert a.get("expert_load") == b.get("expert_load"), "the same tokens to the same experts"
    tensors, others = newest(one), newest(other)
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-3, atol=2e-4, msg=name)


SCENARIOS = (
    Scenario("one", 1),
    Scenario("copies", 2),
    Scenario("shards", 2, data="shard"),
    Scenario("experts", 2, experts=2, recompute="ffn"),
    Scenario("both", 4, data="shard", experts=2, recompute="layer"),
    Scenario("experts of copies", 4, experts=2),
    Scenario("one starved", 1, starve=True),
    Scenario("experts starved", 4, experts=4, starve=True),
    Scenario("shards starved", 2, data="shard", starve=True),
    Scenario("moved", 2, data="shard", experts=2, kill_at=2),
    Scenario("moved", 1, kill_at=3),
    Scenario("moved", 4, experts=4),
    Scenario("one bf16", 1, dtype="bfloat16"),
    Scenario("both bf16", 2, data="shard", experts=2, dtype="bfloat16"),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, corpus: Path, tokenizer: Path) -> dict[str, TrainConfig]:
    return run(tmp_path_factory.mktemp("runs"), corpus, tokenizer, *SCENARIOS)


@pytest.mark.parametrize("name", ["copies", "shards", "experts", "both", "experts of copies"])
def test_several_processes_give_the_loss_of_one(runs: dict[str, TrainConfig], name: str) -> None:
    """Copies, FSDP2, expert parallelism and both together; tokens are dropped, passes do not divide evenly."""
    assert_same_run(runs["one"], runs[name])


def test_tokens_were_dropped(runs: dict[str, TrainConfig]) -> None:
    assert any(r["dropped"] > 0 for r in records(runs["one"]) if "dropped" in r)


@pytest.mark.parametrize("name", ["experts starved", "shards starved"])
def test_an_expert_that_gets_no_token_takes_part_in_every_process(runs: dict[str, TrainConfig], name: str) -> None:
    assert all(r["dead_experts"] == 1 for r in records(runs["one starved"]) if "loss" in r)
    assert_same_run(runs["one starved"], runs[name])


def test_a_killed_run_goes_on_at_another_size(runs: dict[str, TrainConfig]) -> None:
    """kill -9 of two processes; one process goes on and is killed; four go on to the end."""
    starts = [r["processes"] for r in records(runs["moved"]) if "started" in r]
    assert starts == [2, 1, 4]
    assert_same_run(runs["one"], runs["moved"])


def test_bf16_shards_with_float32_gates_learn_as_one_process_does(runs: dict[str, TrainConfig]) -> None:
    one, two = ([r["loss"] for r in records(runs[name]) if "loss" in r] for name in ("one bf16", "both bf16"))
    assert two == pytest.approx(one, rel=2e-2)


# ---- dealing


@pytest.mark.parametrize(("count", "size"), [(1, 1), (5, 2), (4, 4), (3, 4), (7, 3)])
def test_passes_are_dealt_once_each_and_evenly(count: int, size: int) -> None:
    hands = [World(rank, size).deal(count) for rank in range(size)]
    assert sorted(place for hand in hands for place, counts in hand if counts) == list(range(count))
    assert len({len(hand) for hand in hands}) == 1
    assert all(place < count for hand in hands for place, _ in hand)


@pytest.mark.parametrize(
    ("config", "size", "experts", "message"),
    [
        (ParallelConfig(experts=0), 1, 8, "must be at least 1"),
        (ParallelConfig(experts=3), 3, 8, "parallel.experts 3 does not divide the model's 8 experts"),
        (ParallelConfig(experts=2), 2, None, "parallel.experts 2 does not divide the model's 0 experts"),
        (ParallelConfig(experts=4), 2, 8, "parallel.experts 4 does not divide the 2 processes"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    config: ParallelConfig, size: int, experts: int | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config.check(World(0, size), experts)
