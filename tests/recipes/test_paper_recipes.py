"""recipes/deepseek-v2 and deepseek-v2-lite hold the paper's hyper-parameters (sections 3.1, 4.1, appendix B)."""

from __future__ import annotations

import dataclasses

import pytest

from leadline.config import load
from leadline.model.config import V2, V2_LITE, ModelConfig
from leadline.train.config import TrainConfig
from leadline.train.optim import learning_rate
from tests.source import ROOT

SHAPES = {"deepseek-v2": V2, "deepseek-v2-lite": V2_LITE}


def recipe(model: str, stage: str) -> TrainConfig:
    config = load(TrainConfig, ROOT / f"recipes/{model}/{stage}.toml")
    config.check()
    return config


@pytest.mark.parametrize(("model", "shape"), SHAPES.items())
def test_pre_training_makes_the_published_shape_and_the_extension_its_reach(model: str, shape: ModelConfig) -> None:
    first = recipe(model, "pretrain")
    assert first.model == dataclasses.replace(shape, yarn=None, max_position_embeddings=4096)
    yarn = recipe(model, "extend").yarn
    assert yarn is not None
    assert yarn.extended(first.model) == shape
    assert first.model.initializer_range == 0.006


@pytest.mark.parametrize(
    ("model", "peak", "shares", "tokens"),
    [("deepseek-v2", 2.4e-4, (0.6, 0.9), 8.1e12), ("deepseek-v2-lite", 4.2e-4, (0.8, 0.9), 5.7e12)],
)
def test_the_learning_rate_is_the_papers(model: str, peak: float, shares: tuple[float, float], tokens: float) -> None:
    config = recipe(model, "pretrain")
    optimizer, schedule = config.optimizer, config.schedule
    assert config.tokens == tokens
    assert (optimizer.betas, optimizer.weight_decay, optimizer.clip) == ((0.9, 0.95), 0.1, 1.0)

    def rate(step: int) -> float:
        return learning_rate(optimizer, step, schedule.steps, seen=schedule.share(step))

    assert [rate(step) for step in (999, 1999, 2000)] == pytest.approx([peak / 2, peak, peak])
    for count, share in enumerate(shares):
        step = next(step for step in range(schedule.steps) if schedule.share(step) >= share)
        assert rate(step - 1) == pytest.approx(peak * 0.316**count)
        assert rate(step) == pytest.approx(peak * 0.316 ** (count + 1))
        assert schedule.share(step) == pytest.approx(share, abs=1e-5), "of the tokens, not of the steps"


def test_the_batch_grows_from_2304_to_9216_sequences_over_225_billion_tokens() -> None:
    config = recipe("deepseek-v2", "pretrain")
    sequences = [passes * config.micro_batch_tokens // 4096 for passes in config.schedule.sizes()]
    assert (sequences[0], sequences[-1]) == (2304, 9216)
    assert sequences == sorted(sequences)
    assert sum(sequences[:-1]) * 4096 == pytest.approx(225e9, rel=0.001)
    lite = recipe("deepseek-v2-lite", "pretrain").schedule
    assert lite.sizes() == [4608]


def test_balance_and_dropping_are_the_papers() -> None:
    config = recipe("deepseek-v2", "pretrain")
    assert dataclasses.astuple(config.balance) == (0.003, 0.05, 0.02)
    assert dataclasses.astuple(config.dropping) == (1.0, 0.1)
    assert (config.model.n_group, config.model.topk_group, config.parallel.experts) == (8, 3, 8)
    lite = recipe("deepseek-v2-lite", "pretrain")
    assert dataclasses.astuple(lite.balance) == (0.001, 0.0, 0.0)
    assert lite.dropping.capacity_factor == 0.0


def test_the_extension_is_a_thousand_steps_of_576_rows_of_32k() -> None:
    for model in SHAPES:
        config = recipe(model, "extend")
        assert (config.steps, config.sequence_length, config.batch_tokens // 32768) == (1000, 32768, 576)
        assert config.yarn is not None
        assert (config.yarn.factor, config.yarn.beta_slow, config.yarn.beta_fast) == (40, 1, 32)


def test_fine_tuning_is_two_epochs_at_5e_6() -> None:
    config = recipe("deepseek-v2", "sft")
    assert (config.epochs, config.optimizer.peak_lr, config.optimizer.decay_at) == (2, 5e-6, ())
