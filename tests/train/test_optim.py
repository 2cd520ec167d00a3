"""The paper's schedule, and AdamW that is torch's to the bit on float32 masters."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from leadline.errors import ConfigError, DataError
from leadline.model.transformer import DeepseekV2
from leadline.train.config import OptimizerConfig
from leadline.train.loop import cast
from leadline.train.optim import MasterAdamW, learning_rate
from tests.train.runs import TINY

V2 = OptimizerConfig(peak_lr=2.4e-4, warmup_steps=2000, decay_at=(0.6, 0.9))
V2_LITE = OptimizerConfig(peak_lr=4.2e-4, warmup_steps=2000, decay_at=(0.8, 0.9))


def tiny(dtype: torch.dtype = torch.float32) -> DeepseekV2:
    model = DeepseekV2(TINY)
    model.initialise(torch.Generator().manual_seed(0))
    return cast(model, dtype)


def give_gradients(model: nn.Module, seed: int, size: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = (torch.randn(parameter.shape, generator=generator) * size).to(parameter.dtype)


def optimise(optimizer: MasterAdamW, lr: float) -> float:
    norm = optimizer.gradient_norm()
    optimizer.step(lr, norm)
    return float(norm)


# ---- schedule


@pytest.mark.parametrize(("config", "first"), [(V2, 0.6), (V2_LITE, 0.8)], ids=["v2", "v2-lite"])
def test_the_schedule_is_the_papers(config: OptimizerConfig, first: float) -> None:
    steps = 100_000
    rates = {step: learning_rate(config, step, steps) for step in (0, 999, 1999, 2000)}
    assert rates == pytest.approx(
        {0: config.peak_lr / 2000, 999: config.peak_lr / 2, 1999: config.peak_lr, 2000: config.peak_lr}
    )
    drop, second = int(first * steps), int(0.9 * steps)
    assert learning_rate(config, drop - 1, steps) == config.peak_lr
    assert learning_rate(config, drop, steps) == pytest.approx(config.peak_lr * 0.316)
    assert learning_rate(config, second - 1, steps) == pytest.approx(config.peak_lr * 0.316)
    assert learning_rate(config, second, steps) == pytest.approx(config.peak_lr * 0.316**2)
    assert learning_rate(config, steps - 1, steps) == pytest.approx(config.peak_lr * 0.316**2)


def test_the_defaults_are_the_papers() -> None:
    config = OptimizerConfig()
    assert (config.betas, config.weight_decay, config.clip) == ((0.9, 0.95), 0.1, 1.0)
    assert (config.warmup_steps, config.decay_factor) == (2000, 0.316)


def test_without_warm_up_the_first_step_is_at_the_peak() -> None:
    assert learning_rate(OptimizerConfig(peak_lr=1e-3, warmup_steps=0), 0, 10) == 1e-3


@pytest.mark.parametrize(
    "changes",
    [
        {"peak_lr": 0.0},
        {"clip": 0.0},
        {"betas": (0.9, 1.0)},
        {"warmup_steps": -1},
        {"decay_at": (60.0,)},
        {"weight_decay": -1.0},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_numbers_that_no_run_survives_are_refused(changes: dict) -> None:
    with pytest.raises(ConfigError, match=f"optimizer.{next(iter(changes))}"):
        OptimizerConfig(**changes).check()


# ---- AdamW


def test_in_float32_it_is_torchs_adamw_to_the_bit() -> None:
    model = tiny()
    oracle = copy.deepcopy(model)
    decayed = [p for p in oracle.parameters() if p.dim() > 1]
    plain = [p for p in oracle.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
    optimizer = MasterAdamW(model, OptimizerConfig())
    for step in range(5):
        for each in (model, oracle):
            give_gradients(each, step)
        nn.utils.clip_grad_norm_(list(oracle.parameters()), 1.0)
        adam.step()
        optimise(optimizer, 1e-3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), oracle.parameters(), strict=True))


def test_bf16_parameters_are_their_masters_rounded() -> None:
    model = tiny(torch.bfloat16)
    optimizer = MasterAdamW(model, OptimizerConfig(weight_decay=0.0, clip=1e9))
    name = "model.norm.weight"  # ones
    before = optimizer.masters[name].detach().clone()
    for _ in range(20):  # each far below bf16's resolution of a weight
        give_gradients(model, seed=0)
        optimise(optimizer, 1e-6)
    assert torch.equal(optimizer.parameters[name].float(), before)
    moved = (optimizer.masters[name].detach() - before).abs()
    assert float(moved.median()) == pytest.approx(20e-6, rel=0.1), "small steps add up in the masters"
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, optimizer.masters[name].to(parameter.dtype))
        assert parameter.grad is None


def test_gates_stay_float32_and_are_their_own_masters() -> None:
    model = tiny(torch.bfloat16)
    optimizer = MasterAdamW(model, OptimizerConfig())
    gate = "model.layers.1.mlp.gate.weight"
    assert optimizer.parameters[gate].dtype == torch.float32
    assert [name for name in optimizer.masters if optimizer.masters[name] is optimizer.parameters[name]] == [gate]


def test_norms_are_not_decayed_and_matrices_are() -> None:
    model = tiny()
    optimizer = MasterAdamW(model, OptimizerConfig(weight_decay=0.5))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimise(optimizer, 0.1)
    for name, parameter in model.named_parameters():
        expected = before[name] if parameter.dim() == 1 else before[name] * 0.95
        torch.testing.assert_close(parameter.detach(), expected)


def test_gradients_are_clipped_to_a_norm_of_one_and_the_norm_is_told() -> None:
    model = tiny()
    optimizer = MasterAdamW(model, OptimizerConfig())
    give_gradients(model, seed=0)
    wanted = float(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm())
    assert optimise(optimizer, 1e-3) == pytest.approx(wanted, rel=1e-5)
    first = torch.cat([state["exp_avg"].flatten() for state in optimizer.adam.state.values()])
    assert float(first.norm()) == pytest.approx(0.1, rel=1e-4), "(1 - beta1) x a gradient of norm 1"
    give_gradients(model, seed=0, size=1e-6)
    assert optimise(optimizer, 1e-3) < 1e-2, "small gradients are left alone"


def test_the_state_goes_through_a_checkpoint_to_the_bit() -> None:
    first, second = tiny(torch.bfloat16), tiny(torch.bfloat16)
    optimizer = MasterAdamW(first, OptimizerConfig())
    give_gradients(first, seed=0)
    optimise(optimizer, 1e-3)
    resumed = MasterAdamW(second, OptimizerConfig())
    resumed.load({name: tensor.clone() for name, tensor in optimizer.state().items()})
    for each, model in ((optimizer, first), (resumed, second)):
        give_gradients(model, seed=1)
        optimise(each, 1e-3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_state_of_another_model_is_refused() -> None:
    optimizer = MasterAdamW(tiny(), OptimizerConfig())
    state = optimizer.state()
    name = "master.model.norm.weight"
    with pytest.raises(DataError, match=f"has no {name}"):
        optimizer.load({key: tensor for key, tensor in state.items() if key != name})
    with pytest.raises(DataError, match=r"model.norm.weight is \(3,\) in the checkpoint, \(32,\) in the model"):
        optimizer.load(state | {name: torch.zeros(3)})
