"""The loop: it learns, it resumes to the bit, and what it tells is what it did."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from leadline.errors import ConfigError, DataError, TrainingError
from leadline.model.balance import BalanceConfig
from leadline.model.batch import ForwardBatch
from leadline.model.moe import Experts, MoE, Routing
from leadline.parallel.world import World
from leadline.train import checkpoints
from leadline.train.config import TrainConfig
from leadline.train.data import Batch, DataSource
from leadline.train.loop import LOOK_ONLY, recipe_hash
from leadline.train.totals import StepTotals, Totals
from leadline.train.watch import first_not_finite
from tests.fixtures import TINY_V2
from tests.train.runs import LENGTH, TINY, Without, newest, records, same, source, stop_at, trainer

GATE = "model.layers.1.mlp.gate.weight"


def straight(config: TrainConfig) -> dict[str, torch.Tensor]:
    """The tensors of an uninterrupted run in a folder of its own."""
    apart = dataclasses.replace(config, out=config.out.with_name("straight"))
    assert trainer(apart).run()
    return newest(apart)


def test_a_short_run_improves_the_held_out_loss(config: TrainConfig) -> None:
    run = trainer(dataclasses.replace(config, tokens=40 * 4 * LENGTH, eval_every=20))
    before = run.evaluate()
    assert run.run()
    after = run.evaluate()
    assert after["held_out_loss"] < before["held_out_loss"] - 1.5
    assert after["bits_per_byte"] < 0.75 * before["bits_per_byte"]
    told = [record for record in records(config) if "held_out_loss" in record]
    assert [record["step"] for record in told] == [20, 40]
    assert told[-1]["held_out_loss"] == pytest.approx(after["held_out_loss"])


# ---- resume


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("step", [1, 5])
def test_a_stopped_run_goes_on_to_the_bit(
    config: TrainConfig, dtype: Literal["float32", "bfloat16"], step: int
) -> None:
    config = dataclasses.replace(config, dtype=dtype)
    stop_at(config, step)
    resumed = trainer(config)
    assert resumed.run()
    assert resumed.step == config.steps
    assert same(newest(config), straight(config))
    assert [record["step"] for record in records(config) if "loss" in record] == list(range(1, 9))


def test_a_run_that_is_complete_does_nothing_more(config: TrainConfig) -> None:
    assert trainer(config).run()
    tensors, told = newest(config), [record for record in records(config) if "loss" in record]
    assert trainer(config).run()
    assert same(newest(config), tensors)
    assert [record for record in records(config) if "loss" in record] == told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops_and_the_handlers_come_back(config: TrainConfig, number: signal.Signals) -> None:
    class Killed:
        def __init__(self, inner: DataSource) -> None:
            self.inner = inner

        def batch(self, index: int) -> Batch:
            if index == 2:
                os.kill(os.getpid(), number)
            return self.inner.batch(index)

    before = signal.getsignal(number)
    run = trainer(config, Killed(source(config)))
    assert not run.run()
    assert signal.getsignal(number) is before
    assert [path.name for path in checkpoints.complete(run.folder)] == ["step-00000003"]


def test_a_second_ctrl_c_does_not_wait(config: TrainConfig) -> None:
    class Hasty:
        def batch(self, index: int) -> Batch:
            if index == 2:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
            return source(config).batch(index)

    run = trainer(config, Hasty())
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert checkpoints.complete(run.folder) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_checkpoints_come_every_so_many_steps(config: TrainConfig) -> None:
    assert trainer(dataclasses.replace(config, save_every=3, keep_checkpoints=9)).run()
    found = checkpoints.complete(config.out / "checkpoints")
    assert [int(path.name[5:]) for path in found] == [3, 6, 8]


def test_another_recipe_is_refused(config: TrainConfig) -> None:
    stop_at(config, 2)
    other = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, peak_lr=1e-3))
    with pytest.raises(ConfigError, match="step-00000002 was written under another recipe"):
        trainer(other).run()


def test_how_often_to_look_is_no_other_recipe(config: TrainConfig) -> None:
    changes: dict[str, Any] = {name: 3 for name in LOOK_ONLY if type(getattr(config, name)) is int}
    other = dataclasses.replace(config, **changes, compile=True, out=Path("elsewhere"))
    assert recipe_hash(other) == recipe_hash(config)
    for name in {field.name for field in dataclasses.fields(config)} - LOOK_ONLY:
        changed: dict[str, Any] = {name: "other"}
        assert recipe_hash(dataclasses.replace(config, **changed)) != recipe_hash(config), name


def test_a_damaged_checkpoint_is_named_and_the_one_before_works(config: TrainConfig) -> None:
    config = dataclasses.replace(config, save_every=2)
    stop_at(config, 5)
    *_, older, last = checkpoints.complete(config.out / "checkpoints")
    os.truncate(last / "optimizer.safetensors", 1000)
    with pytest.raises(DataError, match=r"step-00000005 is damaged"):
        trainer(config).run()
    assert older.name == "step-00000004"
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    assert trainer(config).run()
    assert same(newest(config), straight(config))


def test_records_of_steps_that_are_done_again_are_told_once(config: TrainConfig) -> None:
    """As after kill -9: two steps were told after the last checkpoint, the last of them only half."""
    stop_at(config, 3)
    path = config.out / "metrics.jsonl"
    with path.open("a") as file:
        file.write(json.dumps({"step": 4, "loss": 9.0}) + "\n" + '{"step": 5, "lo')
    assert trainer(config).run()
    assert [record["step"] for record in records(config) if "loss" in record] == list(range(1, 9))
    assert all(record.get("loss") != 9.0 for record in records(config))


# ---- passes


@pytest.mark.parametrize("factors", [BalanceConfig(0.0), BalanceConfig(0.1, 0.05, 0.02)], ids=["plain", "balanced"])
def test_two_passes_are_one_of_twice_the_size(config: TrainConfig, factors: BalanceConfig) -> None:
    model = dataclasses.replace(TINY, n_group=2, topk_group=1)
    one = dataclasses.replace(config, balance=factors, model=model)
    two = dataclasses.replace(one, micro_batch_tokens=2 * LENGTH, out=config.out.with_name("two"))
    runs = [trainer(one), trainer(two)]
    for run in runs:
        step = [run.data.batch(i) for i in range(one.batch_tokens // run.config.micro_batch_tokens)]
        assert len({float(batch.weights_T.sum()) for batch in step}) == len(step), "passes of unlike weight"
        run.accumulate(step)
    for (name, a), b in zip(runs[0].model.named_parameters(), runs[1].model.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_the_loss_told_is_that_of_all_passes(config: TrainConfig) -> None:
    two = dataclasses.replace(config, micro_batch_tokens=2 * LENGTH, out=config.out.with_name("two"))
    for each in (config, two):
        trainer(each).run()
    for one, other in zip(records(config), records(two), strict=True):
        if "loss" in one:
            assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
            assert other["balance"] == pytest.approx(one["balance"], rel=1e-3)
            assert other["tokens"] == one["tokens"]


def test_documents_of_a_row_do_not_see_each_other(config: TrainConfig) -> None:
    run = trainer(config)
    batch = run.data.batch(0)
    cut = batch.documents[1]
    lengths = [b - a for a, b in zip(batch.documents, batch.documents[1:], strict=False)]
    with torch.no_grad():
        packed, _ = run.model.hidden(batch.tokens_T, ForwardBatch.packed(lengths))
        changed = batch.tokens_T.clone()
        changed[:cut] = 7
        other, _ = run.model.hidden(changed, ForwardBatch.packed(lengths))
    assert not torch.equal(packed[:cut], other[:cut])
    torch.testing.assert_close(packed[cut:], other[cut:])


def test_measuring_leaves_the_model_as_it_was(config: TrainConfig) -> None:
    run = trainer(config)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    assert run.evaluate() == run.evaluate()
    assert run.model.training
    for name, parameter in run.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
        assert parameter.requires_grad


# ---- experts and balance


def test_an_expert_without_tokens_takes_part(config: TrainConfig) -> None:
    run = trainer(config)
    layer = run.model.get_submodule("model.layers.1.mlp")
    assert isinstance(layer, MoE)
    layer.gate = Without(layer.gate, 4)  # type: ignore[assignment]
    experts = layer.experts
    assert isinstance(experts, Experts)
    run.accumulate([run.data.batch(0)])
    for weight in (experts.gate_up_proj, experts.down_proj):
        assert weight.grad is not None
        assert not weight.grad[3].any()
        assert weight.grad[:3].flatten(1).any(1).all()
    before = experts.down_proj.detach().clone()
    run.metrics.rewind(0)
    with run.metrics:
        run.train_step()
    lr = config.optimizer.peak_lr / config.optimizer.warmup_steps
    torch.testing.assert_close(experts.down_proj[3], before[3] * (1 - lr * config.optimizer.weight_decay))
    (record,) = records(config)
    assert record["expert_load"][0][3] == 0.0
    assert record["dead_experts"] == 1


def test_the_load_is_told_for_every_expert(config: TrainConfig) -> None:
    trainer(dataclasses.replace(config, log_every=4)).run()
    steps = [record for record in records(config) if "loss" in record]
    assert [record["step"] for record in steps if "expert_load" in record] == [1, 4, 8]
    for record in steps:
        assert record.keys() >= {
            "tokens",
            "balance",
            "lr",
            "grad_norm",
            "tokens_per_second",
            "max_load",
            "dead_experts",
        }
        for layer in record.get("expert_load", []):
            assert sum(layer) == pytest.approx(TINY.n_routed_experts, abs=0.01)
            assert max(layer) == pytest.approx(record["max_load"], abs=0.001)


def test_totals_are_of_the_passes_that_count() -> None:
    def routing(*ids: int) -> Routing:
        dropped = torch.tensor([[True] + [False] * (len(ids) - 1)])
        return Routing(torch.tensor([ids]), torch.ones(1, len(ids)), torch.ones(1, 4) / 4, dropped)

    batch = Batch(torch.zeros(5), torch.zeros(5), torch.ones(5), (0, 2, 5), (0, 5))
    totals, balances = Totals("cpu"), torch.tensor([0.5, 0.25, 0.125])
    totals.add(batch, torch.tensor(2.0), balances, (routing(0, 1),))
    totals.add(batch, torch.tensor(1.0), balances, (routing(2, 2),))
    totals.add(batch.uncounted(), torch.tensor(0.0), torch.zeros(3), (routing(3, 3),))
    told = totals.over(World())
    assert told == StepTotals(3.0, (1.0, 0.5, 0.25), [[1.0, 1.0, 2.0, 0.0]], dropped=0.5, tokens=10, pairs=2 * (3 + 6))


def test_every_coefficient_is_in_the_log(config: TrainConfig) -> None:
    run = trainer(dataclasses.replace(config, balance=BalanceConfig(0.003, 0.05, 0.02)))
    run.run()
    start = records(config)[0]
    assert [start[f"balance_{name}"] for name in ("expert", "device", "communication")] == [0.003, 0.05, 0.02]
    assert start["parameters"] == TINY.parameters()


@pytest.mark.parametrize(
    ("model", "factors", "warned"),
    [
        (TINY, BalanceConfig(0.001), []),
        (TINY, BalanceConfig(0.0), ["expert"]),
        (TINY_V2, BalanceConfig(0.003), ["device", "communication"]),
        (TINY_V2, BalanceConfig(0.003, 0.05, 0.02), []),
        (dataclasses.replace(TINY, n_routed_experts=None), BalanceConfig(0.0), []),
    ],
    ids=["lite", "none", "v2 as lite", "v2", "dense"],
)
def test_a_zero_coefficient_warns(
    config: TrainConfig, capsys: pytest.CaptureFixture[str], model: object, factors: BalanceConfig, warned: list[str]
) -> None:
    trainer(dataclasses.replace(config, model=model, balance=factors))  # type: ignore[arg-type]
    lines = [f"leadline: warning: balance.{name} is 0: nothing keeps the {name} load even" for name in warned]
    assert capsys.readouterr().err.splitlines() == lines


def test_balance_reaches_the_gate(config: TrainConfig) -> None:
    def gradient(factor: float) -> torch.Tensor:
        run = trainer(dataclasses.replace(config, balance=BalanceConfig(factor)))
        run.accumulate([run.data.batch(0)])
        grad = run.model.get_parameter(GATE).grad
        assert grad is not None
        return grad

    assert not torch.equal(gradient(0.0), gradient(0.003))


# ---- numbers that are none


def test_a_weight_that_is_not_finite_is_named_and_never_saved(config: TrainConfig) -> None:
    config = dataclasses.replace(config, save_every=1)
    stop_at(config, 2)
    before = newest(config)

    class Spoils:
        def batch(self, index: int) -> Batch:
            if index == 3:
                with torch.no_grad():
                    run.model.get_parameter(GATE)[0, 0] = float("nan")
            return source(config).batch(index)

    run = trainer(config, Spoils())
    with pytest.raises(TrainingError, match=rf"step 4: loss nan, .*first in the weight {GATE}; the checkpoints"):
        run.run()
    tensors = newest(config)
    assert tensors["step.lm_head.weight"] == before["step.lm_head.weight"] + 1
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def test_an_activation_that_overflows_is_named(config: TrainConfig) -> None:
    run = trainer(config)
    with torch.no_grad():
        run.model.get_parameter("model.layers.1.self_attn.kv_b_proj.weight").mul_(1e4)
        run.model.get_parameter("model.layers.1.self_attn.o_proj.weight").fill_(3e38)
    with run.metrics, pytest.raises(TrainingError, match=r"first in what model.layers.1.self_attn.o_proj computes"):
        run.train_step()


def test_a_gradient_that_overflows_is_named() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    passes = [lambda: model(torch.ones(1, 2))]
    model.get_parameter("1.bias").grad = torch.tensor([0.0, float("inf")])
    assert first_not_finite(model, passes) == "first in the gradient of 1.bias"
    model.get_parameter("1.bias").grad = None
    assert first_not_finite(model, passes) == "first in the loss"


def test_the_optimiser_does_not_see_what_is_not_finite(config: TrainConfig) -> None:
    run = trainer(config)
    before = {name: master.detach().clone() for name, master in run.optimizer.masters.items()}
    run.model.get_parameter("lm_head.weight").register_hook(lambda grad: grad * float("inf"))
    with run.metrics, pytest.raises(TrainingError, match=r"first in the gradient of lm_head.weight"):
        run.train_step()
    assert same(before, {name: master.detach() for name, master in run.optimizer.masters.items()})
