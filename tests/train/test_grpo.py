"""GRPO: the gradient is eq. 32-34's, rollouts are the trainer's own, a reward rises, a run goes on after a stop."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from leadline.checkpoint.machine import read_machine
from leadline.cli import run
from leadline.errors import ConfigError, DataError, ResourceError, UserError
from leadline.model.batch import ForwardBatch
from leadline.model.config import ModelConfig
from leadline.ops.cpu import native
from leadline.tokenizer import Tokenizer
from leadline.train import checkpoints, rollout
from leadline.train.config import OptimizerConfig
from leadline.train.grpo import GrpoConfig, GrpoTrainer, language_model, make_trainer
from leadline.train.loop import LOOK_ONLY, recipe_hash
from leadline.train.objective import Level
from leadline.train.packs import Sample, logprobs, make_pack, packs, uneven
from leadline.train.questions import Questions
from leadline.train.records import read_records
from leadline.train.rewards import Pair, RewardsConfig
from leadline.train.rollout import RolloutConfig, Rollouts
from tests.fixtures import TINY_LITE, TINY_V2
from tests.train.alignment import grpo_recipe, low_ids, make_init, toy_trainer, user, write_lines
from tests.train.runs import TINY, same

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def config(tmp_path: Path, init: Path) -> GrpoConfig:
    return grpo_recipe(tmp_path, init)


def tensors(config: GrpoConfig) -> dict[str, torch.Tensor]:
    return checkpoints.load(checkpoints.complete(config.out / "checkpoints")[-1])[1]


# ---- rollouts


@pytest.mark.parametrize("shape", [TINY_V2, TINY_LITE], ids=["V2", "Lite"])
def test_the_engines_log_probabilities_are_the_trainers(tmp_path: Path, shape: ModelConfig) -> None:
    """The paged absorbed form there, the packed expanded form here, the same experts: a ratio within 1e-4 of 1."""
    config = grpo_recipe(tmp_path, make_init(tmp_path / "init", shape, std=0.08), questions=4, max_tokens=40)
    trainer = make_trainer(config)
    samples, _ = trainer.rollout()
    gaps, ratios = [], []
    for group in packs(samples, 256):
        pack = make_pack(group, "cpu")
        logp_R, _ = logprobs(trainer.model, pack)
        gaps.append((logp_R.detach() - pack.old_R).abs().max())
        ratios.append((logp_R.detach() - pack.old_R).exp())
    assert float(max(gaps)) < 1e-4
    assert float((torch.cat(ratios) - 1).abs().max()) < 1e-4
    assert trainer.train_step()["logprob_gap_max"] < 1e-4


def test_the_trainer_meets_the_experts_of_the_rollout(config: GrpoConfig) -> None:
    """Even when its own gates would choose others; without the replay the ratio is another."""
    trainer = make_trainer(config)
    samples, _ = trainer.rollout()
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if name.endswith("gate.weight"):
                parameter.copy_(parameter.flip(0))
    pack = make_pack(samples, "cpu")
    _, routings = trainer.model.hidden(pack.tokens_T, pack.batch)
    assert pack.batch.experts is not None
    assert torch.equal(routings[0].expert_ids_TK, pack.batch.experts[:, 0])
    _, alone = trainer.model.hidden(pack.tokens_T, dataclasses.replace(pack.batch, experts=None))
    assert not torch.equal(alone[0].expert_ids_TK, pack.batch.experts[:, 0])


def test_the_engine_holds_the_trainers_own_tensors(config: GrpoConfig) -> None:
    trainer = make_trainer(config)
    sampled = dict(trainer.rollouts.engine.model_runner.model.named_parameters())
    for name, parameter in trainer.model.named_parameters():
        assert sampled[name].data_ptr() == parameter.data_ptr()


def test_rollouts_after_an_update_are_the_new_policys(config: GrpoConfig) -> None:
    """No page of the old weights is met again, although the prompts are the same."""
    trainer = toy_trainer(dataclasses.replace(config, questions=1))
    for _ in range(3):
        trainer.train_step()
        samples, _ = trainer.rollout()
        pack = make_pack(samples, "cpu")
        logp_R, _ = logprobs(trainer.model, pack)
        assert float((logp_R.detach() - pack.old_R).abs().max()) < 1e-4


def test_hundreds_of_answers_are_written_at_once(tmp_path: Path, init: Path) -> None:
    """The page budget holds them all: nothing is computed twice."""
    reader, model = Tokenizer.from_folder(init), language_model(init)
    rollouts = Rollouts(model, reader, RolloutConfig(sequences=256, pass_tokens=4096), longest=64)
    most = 0
    step = rollouts.engine.step

    def watched() -> Any:
        nonlocal most
        most = max(most, rollouts.engine.stats().running)
        return step()

    rollouts.engine.step = watched  # type: ignore[method-assign]
    answers = rollouts.sample([user("How deep?"), user("How far?")], 128, 12, [1, 2])
    assert [len(group) for group in answers] == [128, 128]
    assert most > 200
    assert rollouts.engine.stats().preemptions == 0
    assert rollouts.engine.cache.bytes == 256 * 64 * TINY.cache_bytes_per_token("float32")
    assert len({answer.ids for answer in answers[0]}) > 64, "they are not one answer"
    rollouts.engine.scheduler.check_integrity()


def test_a_cache_that_does_not_fit_is_refused(config: GrpoConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "read_machine", lambda: dataclasses.replace(MACHINE, memory=1 << 16))
    with pytest.raises(ResourceError, match=r"the rollouts' cache of 1,024 tokens needs .* rollout.sequences"):
        make_trainer(config)


MACHINE = read_machine()


def test_with_kernels_the_weights_are_laid_out_anew(config: GrpoConfig) -> None:
    """Other orders of sums than PyTorch's, over the weights as they are after every update."""
    config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, kernels=True))
    if native.choose() is None:
        with pytest.raises(ConfigError, match=r"rollout.kernels needs the C\+\+ kernels"):
            make_trainer(config)
        return
    trainer = toy_trainer(config)
    for _ in range(2):
        told = trainer.train_step()
        assert told["logprob_gap_max"] < 1e-3
        assert told["repack_seconds"] > 0


# ---- the gradient


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_gradient_is_that_of_the_equations(config: GrpoConfig, level: Level) -> None:
    """In float64, through model, packing, replay and chunks, against one answer after the other."""
    config = dataclasses.replace(config, level=level, clip=0.05, kl=0.2, micro_batch_tokens=60)
    trainer = make_trainer(config)
    samples, _ = trainer.rollout()
    draw = torch.Generator().manual_seed(3)
    trainer.model.double()
    assert trainer.reference is not None
    trainer.reference.double()
    with torch.no_grad():
        for parameter in trainer.reference.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    for place, sample in enumerate(samples):
        shift = 0.1 * torch.randn(len(sample.answer.ids), generator=draw, dtype=torch.float64)
        old = tuple((torch.tensor(sample.answer.logprobs, dtype=torch.float64) + shift).tolist())
        samples[place] = Sample(dataclasses.replace(sample.answer, logprobs=old), float(shift.sum()) + 0.3)
    trainer.ask_reference(samples)
    told = trainer.accumulate(samples)
    ours = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    wanted = torch.stack([alone(trainer, sample, level) for sample in samples]).sum()
    (-wanted / len(samples)).backward()
    assert told["loss"] == pytest.approx(-wanted.item() / len(samples), abs=1e-10)
    assert 0 < told["clip_fraction"] < 1
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-8, atol=1e-10)


def alone(trainer: GrpoTrainer, sample: Sample, level: Level) -> torch.Tensor:
    """Eq. 32 of one answer, from the model's plain logits."""
    answer, config = sample.answer, trainer.config
    ids = torch.tensor([*answer.prompt_ids, *answer.ids])
    first = len(answer.prompt_ids) - 1
    columns = torch.arange(len(answer.ids))

    def plain(model: Any, experts: torch.Tensor | None) -> torch.Tensor:
        logits = model(ids[:-1], ForwardBatch.packed([len(ids) - 1], experts=experts)).logits
        found: torch.Tensor = logits[first:].log_softmax(-1)[columns, ids[first + 1 :]]
        return found

    logp, old = plain(trainer.model, answer.experts), torch.tensor(answer.logprobs, dtype=torch.float64)
    reference = plain(trainer.reference, None).detach()
    if level == "sequence":
        logp, old, reference = (values.sum(0, keepdim=True) for values in (logp, old, reference))
    ratio = logp.exp() / old.exp()
    surrogate = torch.minimum(
        ratio * sample.advantage, ratio.clamp(1 - config.clip, 1 + config.clip) * sample.advantage
    )
    distance = reference.exp() / logp.exp() - (reference.exp() / logp.exp()).log() - 1
    return (surrogate - config.kl * distance).mean()


def test_passes_of_any_size_give_one_gradient(config: GrpoConfig) -> None:
    gradients = []
    for tokens in (40, 10_000):
        trainer = toy_trainer(dataclasses.replace(config, micro_batch_tokens=tokens))
        samples, _ = trainer.rollout()
        trainer.ask_reference(samples)
        trainer.accumulate(samples)
        gradients.append([p.grad for p in trainer.model.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-7)


def test_groups_without_spread_are_skipped(config: GrpoConfig) -> None:
    """A step then learns from the others alone; from all where no group has spread, as when nothing is skipped."""
    trainer = toy_trainer(dataclasses.replace(config, skip_even=True))
    samples, told = trainer.rollout()
    size = config.group
    even, rest = samples[:size], samples[size:]
    assert told["groups_without_spread"] == 0.0
    assert uneven(samples, size) == samples
    levelled = [dataclasses.replace(sample, advantage=0.0) for sample in even]
    half_level = [dataclasses.replace(rest[0], advantage=0.0), *rest[1:]]
    assert uneven([*levelled, *half_level], size) == half_level
    assert uneven(levelled, size) == levelled
    trainer.rollout = lambda: ([*levelled, *rest], told)  # type: ignore[method-assign]
    seen: list[int] = []
    accumulate = trainer.accumulate

    def counted(samples: Sequence[Sample]) -> dict[str, float]:
        seen.append(len(samples))
        return accumulate(samples)

    trainer.accumulate = counted  # type: ignore[method-assign]
    assert trainer.train_step()["tokens"] == sum(sample.answer.tokens for sample in rest)
    assert seen == [len(rest)]


# ---- learning

FASTER = OptimizerConfig(peak_lr=2e-2, warmup_steps=1, decay_at=())


def test_a_toy_reward_rises(config: GrpoConfig) -> None:
    config = dataclasses.replace(
        config, steps=12, questions=4, group=12, max_tokens=8, kl=0.0, eval_every=12, optimizer=FASTER
    )
    trainer = toy_trainer(config)
    assert trainer.run()
    told = read_records(config.out / "metrics.jsonl")
    rewards = [record["reward"] for record in told if "reward" in record]
    assert rewards[0] < 0.65
    assert sum(rewards[-3:]) / 3 > rewards[0] + 0.25
    held_out = [record["held_out_reward"] for record in told if "held_out_reward" in record]
    assert held_out[-1] > held_out[0]
    last = [record for record in told if "reward" in record][-1]
    assert {"kl", "clip_fraction", "entropy", "length", "logprob_gap", "group_std", "rollout_tokens_per_second",
            "tokens_per_second", "reward_toy"} <= last.keys()  # fmt: skip


def test_a_policy_that_moves_is_told_its_distance(config: GrpoConfig) -> None:
    trainer = toy_trainer(config)
    assert abs(trainer.train_step()["kl"]) < 1e-6
    assert trainer.train_step()["kl"] > 1e-4


def test_several_updates_go_over_one_rollout(config: GrpoConfig) -> None:
    trainer = toy_trainer(dataclasses.replace(config, updates=2, passes=3))
    moves: list[float] = []
    step = trainer.optimizer.step

    def counted(lr: float, norm: torch.Tensor) -> None:
        moves.append(lr)
        step(lr, norm)

    trainer.optimizer.step = counted  # type: ignore[method-assign]
    told = trainer.train_step()
    assert len(moves) == 6
    assert told["clip_fraction"] > 0, "later updates are away from the policy that sampled"
    assert told["logprob_gap_max"] < 1e-4, "the first is not"


def test_without_a_distance_no_reference_is_kept(config: GrpoConfig) -> None:
    trainer = toy_trainer(dataclasses.replace(config, kl=0.0))
    assert trainer.reference is None
    assert trainer.train_step()["kl"] == 0.0


# ---- stopping and going on


class Interrupted:
    """A toy reward that asks the trainer to stop, as a signal does, in its step `at`."""

    def __init__(self, trainer: GrpoTrainer, at: int, kill: bool = False) -> None:
        self.trainer, self.at, self.kill = trainer, at, kill

    def __call__(self, pairs: Sequence[Pair]) -> list[float]:
        if self.trainer.step == self.at - 1 and len(pairs) > 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return low_ids(pairs)


def test_a_stopped_run_goes_on_to_the_bit(config: GrpoConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, updates=2, eval_every=2)
    straight = dataclasses.replace(config, out=tmp_path / "straight")
    assert toy_trainer(straight).run()
    stopped = toy_trainer(config)
    stopped.rewards.parts = {"toy": (1.0, Interrupted(stopped, 2))}
    before = signal.getsignal(signal.SIGTERM)
    assert not stopped.run()
    assert signal.getsignal(signal.SIGTERM) is before
    assert stopped.step == 2
    assert toy_trainer(config).run()
    assert same(tensors(config), tensors(straight))
    timeless = [
        [{name: value for name, value in record.items() if "per_second" not in name} for record in read_records(path)]
        for path in (config.out / "metrics.jsonl", straight.out / "metrics.jsonl")
    ]
    assert timeless[0] == timeless[1]


def test_a_killed_run_goes_on_from_its_checkpoint(config: GrpoConfig, tmp_path: Path) -> None:
    """Records of steps after the checkpoint are taken back and made again."""
    config = dataclasses.replace(config, save_every=2)
    straight = dataclasses.replace(config, out=tmp_path / "straight")
    assert toy_trainer(straight).run()

    class Killed(Exception):
        pass

    def die(pairs: Sequence[Pair]) -> list[float]:
        if killed.step == 3:
            raise Killed
        return low_ids(pairs)

    killed = toy_trainer(config)
    killed.rewards.parts = {"toy": (1.0, die)}
    with pytest.raises(Killed):
        killed.run()
    assert [path.name for path in checkpoints.complete(config.out / "checkpoints")] == ["step-00000002"]
    assert toy_trainer(config).run()
    assert same(tensors(config), tensors(straight))
    steps = [record["step"] for record in read_records(config.out / "metrics.jsonl") if "reward" in record]
    assert steps == [1, 2, 3, 4]


def test_another_recipe_is_refused_and_looking_is_none(config: GrpoConfig) -> None:
    assert toy_trainer(dataclasses.replace(config, steps=1)).run()
    with pytest.raises(ConfigError, match="another recipe"):
        toy_trainer(dataclasses.replace(config, steps=1, kl=0.5)).run()
    looks: dict[str, Any] = {name: 7 for name in LOOK_ONLY if type(getattr(config, name, None)) is int}
    assert recipe_hash(dataclasses.replace(config, **looks)) == recipe_hash(config)


# ---- from the command line


def as_recipe(config: GrpoConfig, path: Path, **more: object) -> Path:
    fields = {"out": config.out, "data": config.data, "init": config.init, "steps": 2, "questions": 2, "group": 3,
              "max_tokens": 8, "threads": 1, "eval_questions": 2, **more}  # fmt: skip
    path.write_text(
        "".join(f"{name} = {json.dumps(v if isinstance(v, int) else str(v))}\n" for name, v in fields.items())
    )
    return path


def test_a_recipe_trains_and_its_model_opens(
    config: GrpoConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = as_recipe(config, tmp_path / "grpo.toml")
    assert run(["train", "grpo", str(recipe)]) == 0
    assert f"complete: {config.out}/model" in capsys.readouterr().out
    trained = language_model(config.out / "model")
    assert any(
        not torch.equal(a, b)
        for a, b in zip(trained.parameters(), language_model(config.init).parameters(), strict=True)
    )
    early = tmp_path / "early"
    assert run(["train", "export", str(recipe), str(early), "--stage", "grpo"]) == 0
    assert capsys.readouterr().out == f"step 2: {early}\n"
    assert all(map(torch.equal, trained.parameters(), language_model(early).parameters()))
    assert run(["train", "plot", str(config.out), "--picture", str(tmp_path / "run.svg")]) == 0
    drawn = (tmp_path / "run.svg").read_text()
    assert all(f"<!-- {label} -->" in drawn for label in ("reward", "greedy, held out", "tokens an answer"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["group=1"], "group must be at least 2"),
        (["clip=0"], "clip must be more than 0"),
        (["rewards.reasoning=0"], "one must be more than 0"),
        (["rewards.helpful=1"], "rewards.helpful needs rewards.helpful_model"),
        (["updates=99"], "updates is more than the answers"),
        (["skip_even=true", "updates=5"], "updates is more than the answers"),
        (["groups=1"], "did you mean 'group'"),
        (["max_tokens=256"], "every prompt is longer than 0 tokens"),
    ],
)
def test_mistakes_are_one_line(
    config: GrpoConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list[str], words: str
) -> None:
    recipe = as_recipe(config, tmp_path / "grpo.toml")
    assert run(["train", "grpo", str(recipe), *(part for change in changes for part in ("--set", change))]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


BROKEN = {
    "{": "not a JSON object",
    '{"messages": [{"role": "user", "content": "x"}], "instructions": [{"name": "be:nice"}]}': "unknown instruction",
    '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}': "must end with the user",
    '{"messages": [{"role": "pilot", "content": "x"}]}': "unknown role",
    '{"answer": "7"}': "not a JSON object",
}


@pytest.mark.parametrize("line", BROKEN)
def test_a_broken_question_is_named_by_its_line(tmp_path: Path, init: Path, line: str) -> None:
    path = write_lines(tmp_path / "train.jsonl", [{"messages": user("How deep?")}])
    path.write_text(path.read_text() + "\n" + line + "\n")
    with pytest.raises(DataError, match=rf"train.jsonl:3: .*{BROKEN[line]}"):
        Questions(path, Tokenizer.from_folder(init), 100)


def test_questions_with_tests_need_leave_to_run_code(config: GrpoConfig) -> None:
    write_lines(config.data / "train.jsonl", [{"messages": user("Write it."), "tests": "assert depth() == 7"}])
    with pytest.raises(UserError, match="must be allowed"):
        make_trainer(config)
    assert RewardsConfig().allow_code is False
