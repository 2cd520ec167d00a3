"""Reward models: they learn what is preferred, are saved and loaded as folders, and go on after any stop."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from leadline.cli import run
from leadline.errors import CheckpointError, ConfigError, DataError
from leadline.model.batch import ForwardBatch
from leadline.model.config import ModelConfig
from leadline.model.reward import RewardModel
from leadline.model.transformer import DeepseekV2
from leadline.tokenizer import Tokenizer
from leadline.train import checkpoints
from leadline.train.comparisons import Comparisons, batches
from leadline.train.plot import plot_run
from leadline.train.records import read_records
from leadline.train.reward import RewardConfig, RewardTrainer, load_reward_model, reward, starting_model
from tests.train.alignment import reward_recipe, user, write_lines
from tests.train.runs import TINY, same

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def config(tmp_path: Path, init: Path) -> RewardConfig:
    return reward_recipe(tmp_path, init)


def write_scores(folder: Path) -> Path:
    for name, first in (("train", 0), ("valid", 40)):
        answers = [
            (f"It is {n} fathoms.", 1.0) if n % 2 else ("The line the line.", 0.0) for n in range(first, first + 24)
        ]
        write_lines(
            folder / f"{name}.jsonl",
            [
                {"messages": [*user("How deep?"), {"role": "assistant", "content": text}], "score": score}
                for text, score in answers
            ],
        )
    return folder


def trainer(config: RewardConfig) -> RewardTrainer:
    reader = Tokenizer.from_folder(config.init)
    train, valid = (Comparisons(config.data / f"{split}.jsonl", reader, 200) for split in ("train", "valid"))
    return RewardTrainer(config, starting_model(config.init), train, valid)


@pytest.mark.parametrize("kind", ["pairs", "scores"])
def test_what_is_preferred_is_learned(config: RewardConfig, tmp_path: Path, kind: str) -> None:
    if kind == "scores":
        config = dataclasses.replace(config, data=write_scores(tmp_path / "scores"), steps=20)
    assert reward(config)
    told = read_records(config.out / "metrics.jsonl")
    losses = [record["held_out_loss"] for record in told if "held_out_loss" in record]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3), "a head of zeros knows nothing"
    assert losses[-1] < 0.5
    assert told[-1]["held_out_accuracy"] == 1.0
    steps = [record for record in told if "loss" in record]
    assert len(steps) == config.steps
    assert {"accuracy", "lr", "grad_norm", "tokens_per_second"} <= steps[0].keys()
    plot_run(config.out, tmp_path / "run.svg")
    assert "<!-- accuracy -->" in (tmp_path / "run.svg").read_text()


def test_the_losses_are_the_equations(config: RewardConfig, tmp_path: Path) -> None:
    run_ = trainer(config)
    with torch.no_grad():
        run_.model.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    batch = next(iter(batches(run_.train.kept[:4], 10_000)))
    values = [
        run_.model(ids, ForwardBatch.packed([len(ids)]))[0].item() for ids in batch.tokens_T.split(list(batch.lengths))
    ]
    losses, right = run_.losses(batch)
    for place, (chosen, rejected) in enumerate(zip(values[::2], values[1::2], strict=True)):
        wanted = -torch.log(torch.sigmoid(torch.tensor(chosen - rejected)))
        assert losses[place].item() == pytest.approx(wanted.item(), abs=1e-5)
        assert right[place].item() == (chosen > rejected)
    scored = trainer(dataclasses.replace(config, data=write_scores(tmp_path / "scores")))
    scored.model = run_.model
    batch = next(iter(batches(scored.train.kept[:2], 10_000)))
    value, score = run_.model(batch.tokens_T, ForwardBatch.packed(batch.lengths))[0][0], torch.tensor(0.0)
    wanted = -score * torch.log(torch.sigmoid(value)) - (1 - score) * torch.log(torch.sigmoid(-value))
    assert scored.losses(batch)[0][0].item() == pytest.approx(wanted.item(), abs=1e-5)


def test_passes_of_any_size_give_one_gradient(config: RewardConfig) -> None:
    gradients = []
    for tokens in (60, 10_000):
        one = trainer(dataclasses.replace(config, micro_batch_tokens=tokens))
        norm = one.train_step()["grad_norm"]
        gradients.append((norm, one.model.score.weight.detach()))
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-4)
    torch.testing.assert_close(gradients[0][1], gradients[1][1])


# ---- the folder


def test_a_reward_model_is_saved_and_loaded_as_a_folder(config: RewardConfig) -> None:
    assert reward(dataclasses.replace(config, steps=2))
    folder = config.out / "model"
    raw = json.loads((folder / "config.json").read_text())
    assert raw["architectures"] == ["DeepseekV2ForSequenceClassification"]
    assert "score.weight" in load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    loaded = load_reward_model(folder)
    assert loaded.config.parameters() == sum(parameter.numel() for parameter in loaded.parameters())
    saved = checkpoints.load(checkpoints.complete(config.out / "checkpoints")[-1])[1]
    for name, parameter in loaded.named_parameters():
        torch.testing.assert_close(parameter.float(), saved[f"master.{name}"], rtol=1e-2, atol=1e-2)
    assert Tokenizer.from_folder(folder).vocab_size == Tokenizer.from_folder(config.init).vocab_size


def test_the_value_is_that_of_transformers(config: RewardConfig) -> None:
    """Its sequence classifier of one label reads the folder and gives the same number."""
    from transformers import AutoModelForSequenceClassification

    assert reward(dataclasses.replace(config, steps=3))
    theirs = AutoModelForSequenceClassification.from_pretrained(config.out / "model", dtype=torch.float32).eval()
    ours = load_reward_model(config.out / "model").float()
    ids = torch.tensor(
        Tokenizer.from_folder(config.init).render([*user("How deep?"), {"role": "assistant", "content": "Two."}])
    )
    value = ours(ids, ForwardBatch.packed([len(ids)]))[0]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids[None]).logits[0], value, rtol=1e-4, atol=1e-5)


def test_a_reward_model_is_no_language_model_and_the_other_way_round(config: RewardConfig) -> None:
    assert reward(dataclasses.replace(config, steps=1))
    with pytest.raises(CheckpointError, match="this is a reward model"):
        DeepseekV2(ModelConfig.from_folder(config.out / "model"))
    with pytest.raises(CheckpointError, match="is a language model, not a reward model"):
        load_reward_model(config.init)


def test_training_goes_on_from_a_reward_model(config: RewardConfig) -> None:
    assert reward(dataclasses.replace(config, steps=3, dtype="float32"))
    again = starting_model(config.out / "model")
    assert again.score.weight.abs().max() > 0


def test_a_head_is_as_large_as_its_labels() -> None:
    config = dataclasses.replace(TINY, num_labels=1)
    model = RewardModel(TINY)
    assert model.config == config
    assert sum(parameter.numel() for parameter in model.parameters()) == config.parameters()
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert ModelConfig.from_dict(TINY.to_dict()) == TINY
    with pytest.raises(CheckpointError, match="num_labels 3"):
        ModelConfig.from_dict({**config.to_dict(), "num_labels": 3})


# ---- stopping, and bad input


def test_a_stopped_run_goes_on_to_the_bit(config: RewardConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, steps=6)
    straight = dataclasses.replace(config, out=tmp_path / "straight")
    assert trainer(straight).run()
    stopped = trainer(config)
    step = stopped.train_step

    def interrupted() -> dict[str, float]:
        stopped.stopping.asked = stopped.step == 2
        return step()

    stopped.train_step = interrupted  # type: ignore[method-assign]
    assert not stopped.run()
    assert stopped.step == 3
    assert trainer(config).run()
    newest = [checkpoints.load(checkpoints.complete(each.out / "checkpoints")[-1])[1] for each in (config, straight)]
    assert same(*newest)


LINES = {
    "[]": "not a JSON object",
    "{": "not JSON",
    '{"messages": []}': 'neither "chosen" and "rejected" nor "messages" and "score"',
    '{"messages": [{"role": "user", "content": "x"}], "score": 2}': "score must be a number from 0 to 1",
    '{"messages": [{"role": "user", "content": "x"}], "score": 0.5}': "must end with the answer",
    '{"messages": [], "score": 0.5}': "must end with the answer",
    '{"chosen": "x", "rejected": "y"}': "not a JSON object with",
    '{"messages": [{"role": "user", "content": "x"}], "chosen": 3, "rejected": "y"}': "not a JSON object with",
}


@pytest.mark.parametrize("line", LINES)
def test_a_broken_line_is_named(tmp_path: Path, init: Path, line: str) -> None:
    good = json.dumps({"messages": user("How deep?"), "chosen": "Two.", "rejected": "x"})
    (tmp_path / "train.jsonl").write_text(f"{good}\n\n{line}\n")
    with pytest.raises(DataError, match=rf"train.jsonl:3: .*{LINES[line]}"):
        Comparisons(tmp_path / "train.jsonl", Tokenizer.from_folder(init), 100)


def test_pairs_and_scores_do_not_mix(config: RewardConfig, tmp_path: Path, init: Path) -> None:
    scored = write_scores(tmp_path / "scores")
    pairs = (config.data / "valid.jsonl").read_text()
    (scored / "mixed.jsonl").write_text((scored / "train.jsonl").read_text() + pairs)
    with pytest.raises(DataError, match="both pairs and scores"):
        Comparisons(scored / "mixed.jsonl", Tokenizer.from_folder(init), 100)
    (scored / "valid.jsonl").write_text(pairs)
    with pytest.raises(ConfigError, match="must both hold pairs, or both scores"):
        reward(dataclasses.replace(config, data=scored))


def test_long_conversations_are_left_out_and_counted(config: RewardConfig, init: Path) -> None:
    lines = (config.data / "train.jsonl").read_text()
    long = json.dumps({"messages": user("How deep? " * 100), "chosen": "a", "rejected": "b"})
    (config.data / "train.jsonl").write_text(lines + long + "\n")
    found = Comparisons(config.data / "train.jsonl", Tokenizer.from_folder(init), 100)
    assert (len(found.kept), found.dropped) == (24, 1)
    with pytest.raises(DataError, match="longer than 3 tokens"):
        Comparisons(config.data / "train.jsonl", Tokenizer.from_folder(init), 3)


def test_every_comparison_comes_once_an_epoch(config: RewardConfig) -> None:
    data = trainer(config).train
    seen = [
        ids
        for step in range(3)
        for batch in data.step(step, 8, 10_000)
        for ids in batch.tokens_T.split(list(batch.lengths))
    ]
    assert len({tuple(ids.tolist()) for ids in seen[::2]}) == 24
    first, second = ([batch.tokens_T.tolist() for batch in data.step(step, 24, 10_000)] for step in (0, 1))
    assert first != second


def test_from_the_command_line(config: RewardConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "reward.toml"
    recipe.write_text(
        f'out = "{config.out}"\ndata = "{config.data}"\ninit = "{config.init}"\nsteps = 2\nbatch = 4\nthreads = 1\n'
    )
    assert run(["train", "reward", str(recipe)]) == 0
    assert f"complete: {config.out}/model" in capsys.readouterr().out
    assert run(["train", "export", str(recipe), str(tmp_path / "early"), "--stage", "reward"]) == 0
    assert load_reward_model(tmp_path / "early").score.weight.abs().max() > 0
    assert run(["train", "reward", str(recipe), "--set", "batch=0"]) == 2
    assert "batch must be at least 1" in capsys.readouterr().err
    assert run(["train", "reward", str(recipe), "--set", f"data={tmp_path}/none"]) == 2
    assert "cannot read" in capsys.readouterr().err
