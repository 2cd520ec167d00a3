"""Pre-training and fine-tuning from a recipe to a model folder that others read."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from leadline.errors import CheckpointError, ConfigError, DataError
from leadline.model.batch import ForwardBatch
from leadline.tokenizer import Tokenizer, train_bpe
from leadline.train.config import TrainConfig
from leadline.train.conversations import Conversations
from leadline.train.stages import export_newest, pretrain, sft, starting_model
from tests.fixtures import TINY_V2
from tests.fixtures_tokenizer import make_tiny_tokenizer
from tests.train.runs import TINY, newest, recipe, stop_at, write_chats


@pytest.fixture
def config(tmp_path: Path, corpus: Path, tokenizer: Path) -> TrainConfig:
    return recipe(tmp_path, corpus, tokenizer, steps=4)


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    for split in ("train", "valid"):
        write_chats(tmp_path / f"chats/{split}.jsonl", [[("user", "?"), ("assistant", "ten")]] * 8)
    return tmp_path / "chats"


def logits(folder: Path, config: TrainConfig, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        model = starting_model(dataclasses.replace(config, init=folder))
        return model(tokens, ForwardBatch.packed([len(tokens)])).logits


def transformers_logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(input_ids=tokens[None]).logits[0]


@pytest.mark.parametrize("model", [TINY, dataclasses.replace(TINY_V2, max_position_embeddings=256)], ids=["lite", "v2"])
def test_the_exported_folder_is_the_model_here_and_in_transformers(config: TrainConfig, model: object) -> None:
    config = dataclasses.replace(config, model=model)  # type: ignore[arg-type]
    assert pretrain(config)
    folder, tokens = config.out / "model", torch.arange(2, 42)
    ours = logits(folder, config, tokens)
    torch.testing.assert_close(ours, transformers_logits(folder, tokens), rtol=1e-4, atol=1e-4)
    trained = starting_model(dataclasses.replace(config, init=folder))
    for name, parameter in trained.named_parameters():
        assert torch.equal(parameter, newest(config)[f"master.{name}"]), name


def test_a_bf16_run_exports_bf16_and_its_special_tokens(config: TrainConfig, tokenizer: Path) -> None:
    assert pretrain(dataclasses.replace(config, dtype="bfloat16"))
    raw = json.loads((config.out / "model/config.json").read_text())
    assert (raw["torch_dtype"], raw["bos_token_id"], raw["eos_token_id"]) == ("bfloat16", 0, 1)
    copied = config.out / "model/tokenizer.json"
    assert copied.read_bytes() == (tokenizer / "tokenizer.json").read_bytes()


def test_the_newest_checkpoint_of_an_unfinished_run_is_exported(config: TrainConfig, tmp_path: Path) -> None:
    stop_at(config, 2)
    assert export_newest(config, tmp_path / "early") == 2
    model = starting_model(dataclasses.replace(config, init=tmp_path / "early"))
    assert torch.equal(model.lm_head.weight, newest(config)["master.lm_head.weight"])


def test_exporting_nothing_is_an_error(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run holds no checkpoint"):
        export_newest(config, tmp_path / "early")


def test_exporting_under_the_recipe_of_another_model_is_an_error(config: TrainConfig, tmp_path: Path) -> None:
    stop_at(config, 1)
    wider = dataclasses.replace(config, model=dataclasses.replace(TINY, moe_intermediate_size=24))
    with pytest.raises(DataError, match=r"in the checkpoint, .* in the model"):
        export_newest(wider, tmp_path / "early")


def test_fine_tuning_starts_from_the_trained_model_and_learns(config: TrainConfig, chats: Path) -> None:
    assert pretrain(config)
    second = dataclasses.replace(
        config, out=config.out.with_name("sft"), data=chats, init=config.out / "model", tokenizer=None, tokens=2560
    )
    assert sft(second)
    told = [json.loads(line) for line in (second.out / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in told if "loss" in record]
    assert losses[-1] < losses[0] - 1
    assert told[-1]["held_out_loss"] < losses[0]
    assert "bits_per_byte" not in told[-1]


def test_fine_tuning_counts_epochs_in_passes_over_all_conversations(config: TrainConfig, chats: Path) -> None:
    assert pretrain(config)
    start = dataclasses.replace(config, out=config.out.with_name("sft"), data=chats, init=config.out / "model")
    second = dataclasses.replace(start, tokens=0, epochs=2, batch_tokens=config.micro_batch_tokens)
    assert sft(second)
    told = [json.loads(line) for line in (second.out / "metrics.jsonl").read_text().splitlines()]
    lessons = Conversations(
        chats / "train.jsonl", Tokenizer.from_folder(config.out / "model"), 32, config.micro_batch_tokens
    )
    assert max(record.get("step", 0) for record in told) == 2 * lessons.batches_per_epoch
    assert max(record.get("tokens", 0) for record in told) == 2 * lessons.lengths.sum()


def test_epochs_are_for_conversations(config: TrainConfig) -> None:
    with pytest.raises(ConfigError, match="epochs belongs to `sft`"):
        pretrain(dataclasses.replace(config, tokens=0, epochs=1))


def test_too_long_conversations_are_told(config: TrainConfig, chats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_chats(
        chats / "train.jsonl", [[("user", "?"), ("assistant", "ten")], [("user", "?"), ("assistant", "no " * 99)]]
    )
    first = dataclasses.replace(config, init=None)
    assert pretrain(first)
    assert sft(dataclasses.replace(first, out=config.out.with_name("sft"), data=chats, init=config.out / "model"))
    said = "leadline: warning: train.jsonl: 1 conversations of over 32 tokens left out"
    assert said in capsys.readouterr().err.splitlines()


def test_without_a_compiler_the_run_says_so_once_and_goes_on(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert pretrain(dataclasses.replace(config, compile=True))
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert warnings == ["leadline: warning: no compiler works here: training goes on without compiled ops, more slowly"]


# ---- what a user gets wrong


def test_fine_tuning_needs_a_model(config: TrainConfig, chats: Path) -> None:
    with pytest.raises(ConfigError, match="set `init`"):
        sft(dataclasses.replace(config, data=chats))


def test_a_run_from_nothing_needs_a_tokenizer(config: TrainConfig) -> None:
    with pytest.raises(ConfigError, match="needs `tokenizer`"):
        pretrain(dataclasses.replace(config, tokenizer=None))


def test_a_tokenizer_of_another_size_is_refused(config: TrainConfig) -> None:
    small = dataclasses.replace(config, model=dataclasses.replace(TINY, vocab_size=299))
    with pytest.raises(ConfigError, match="the tokenizer has 300 tokens, the model 299 rows"):
        pretrain(small)


def test_a_corpus_of_another_tokenizer_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    train_bpe(["other words altogether, other merges\n"], 280, tmp_path / "other", min_frequency=1)
    with pytest.raises(ConfigError, match=r"was made with another tokenizer than .*other"):
        pretrain(dataclasses.replace(config, tokenizer=tmp_path / "other"))


def test_an_init_with_another_tokenizer_is_refused(config: TrainConfig, chats: Path, tmp_path: Path) -> None:
    assert pretrain(config)
    make_tiny_tokenizer(tmp_path / "other")
    second = dataclasses.replace(config, data=chats, init=config.out / "model", tokenizer=tmp_path / "other")
    with pytest.raises(ConfigError, match=r"the tokenizer has \d+ tokens, the model 320 rows"):
        sft(dataclasses.replace(second, out=tmp_path / "sft"))


def test_rows_longer_than_the_model_reaches_are_refused(config: TrainConfig) -> None:
    short = dataclasses.replace(config, model=dataclasses.replace(TINY, max_position_embeddings=16))
    with pytest.raises(ConfigError, match="sequence_length 32 is more than the model's max_position_embeddings 16"):
        pretrain(short)


def test_a_shape_that_is_no_model_is_refused(config: TrainConfig) -> None:
    with pytest.raises(ConfigError, match="model: num_experts_per_tok 9 is more than 4 experts"):
        pretrain(dataclasses.replace(config, model=dataclasses.replace(TINY, num_experts_per_tok=9)))


def test_an_init_that_is_no_model_folder_is_named(config: TrainConfig, tokenizer: Path, tmp_path: Path) -> None:
    shutil.copytree(tokenizer, tmp_path / "empty")
    with pytest.raises(CheckpointError, match="empty is not a model folder"):
        pretrain(dataclasses.replace(config, init=tmp_path / "empty", tokenizer=None))


def test_a_device_that_is_not_here_is_refused(config: TrainConfig) -> None:
    with pytest.raises(ConfigError, match="device 'warp' cannot be used here: "):
        pretrain(dataclasses.replace(config, device="warp"))


def test_a_folder_that_cannot_be_made_is_named(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"out: cannot make the folder .*file/run: Not a directory"):
        pretrain(dataclasses.replace(config, out=tmp_path / "file/run"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 0}, "tokens must be at least 1"),
        ({"epochs": 2}, "sft may have epochs"),
        ({"keep_checkpoints": 0}, "keep_checkpoints must be at least 1"),
        ({"eval_tokens": -1}, "eval_tokens must not be negative"),
        ({"micro_batch_tokens": 48}, "micro_batch_tokens is not a multiple of sequence_length"),
        ({"micro_batch_tokens": 96}, "batch_tokens is not a multiple of micro_batch_tokens"),
    ],
    ids=str,
)
def test_numbers_that_do_not_fit_are_refused(config: TrainConfig, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(config, **changes).check()
