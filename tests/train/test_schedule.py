"""The batch that grows over the first tokens (3.1.2)."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadline.errors import ConfigError
from leadline.train.config import TrainConfig
from leadline.train.schedule import BatchSchedule, RampConfig
from tests.train.runs import LENGTH, records, trainer

LENGTH_4K = 4096
BILLION = 10**9


def test_v2_grows_from_2304_to_9216_sequences_over_225_billion_tokens() -> None:
    ramp = RampConfig(2304 * LENGTH_4K, 225 * BILLION)
    schedule = BatchSchedule(8100 * BILLION, 9216 * LENGTH_4K, LENGTH_4K, ramp)
    sizes = schedule.sizes()
    assert (sizes[0], sizes[-1]) == (2304, 9216)
    assert sizes == sorted(sizes)
    assert max(b - a for a, b in itertools.pairwise(sizes[:-1])) <= 4, "gradually"
    halfway = next(step for step in range(len(sizes)) if schedule.first(step) * LENGTH_4K >= 112.5 * BILLION)
    assert schedule.passes(halfway) == pytest.approx((2304 + 9216) / 2, abs=3)
    seen = schedule.first(schedule.steps) * LENGTH_4K
    assert 8100 * BILLION <= seen < 8100 * BILLION + 9216 * LENGTH_4K


@given(
    tokens=st.integers(1, 5000), micro=st.integers(1, 7), full=st.integers(1, 9), start=st.integers(0, 9),
    ramp=st.integers(1, 6000),
)  # fmt: skip
def test_every_pass_is_of_one_step(tokens: int, micro: int, full: int, start: int, ramp: int) -> None:
    first = min(start, full)
    config = RampConfig(first * micro, ramp if first else 0)
    schedule = BatchSchedule(tokens, full * micro, micro, config)
    passes = [
        place
        for step in range(schedule.steps)
        for place in range(schedule.first(step), schedule.first(step) + schedule.passes(step))
    ]
    assert passes == list(range(len(passes)))
    assert len(passes) * micro >= tokens
    assert schedule.first(schedule.steps - 1) * micro < tokens, "no step too many"
    assert min(schedule.passes(step) for step in range(schedule.steps)) >= 1
    assert schedule.share(0) == 0.0
    assert schedule.share(schedule.steps) == 1.0


@pytest.mark.parametrize(
    ("ramp", "message"),
    [
        (RampConfig(64, 0), "go together"),
        (RampConfig(0, 64), "go together"),
        (RampConfig(48, 64), "not a multiple of micro_batch_tokens"),
        (RampConfig(256, 64), "more than batch_tokens"),
    ],
)
def test_a_ramp_that_is_none_is_refused(ramp: RampConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ramp.check(32, 128)


def test_a_run_follows_its_ramp(ramped: TrainConfig) -> None:
    assert trainer(ramped).run()
    told = [record for record in records(ramped) if "loss" in record]
    sizes = [b["tokens"] - a["tokens"] for a, b in itertools.pairwise([{"tokens": 0}, *told])]
    assert sizes == [LENGTH, LENGTH, 2 * LENGTH, 3 * LENGTH, 4 * LENGTH, 4 * LENGTH, 4 * LENGTH]
    assert [record["lr"] for record in told[2:]] == [1e-2] * 3 + [1e-2 * 0.316] * 2, "decays at a share of tokens"


@pytest.fixture
def ramped(config: TrainConfig) -> TrainConfig:
    optimizer = dataclasses.replace(config.optimizer, decay_at=(0.5,))
    return dataclasses.replace(
        config, tokens=19 * LENGTH, micro_batch_tokens=LENGTH, ramp=RampConfig(LENGTH, 6 * LENGTH), optimizer=optimizer
    )
