"""Long-context extension (3.1.4): the extended model is right past its original reach, here and in transformers."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from leadline.errors import ConfigError
from leadline.model.batch import ForwardBatch
from leadline.model.config import V2_LITE, ModelConfig
from leadline.train.config import ExtensionConfig, TrainConfig
from leadline.train.stages import export_newest, extend, pretrain, sft, starting_model
from tests.train.runs import TINY, recipe, records, write_corpus

REACH, FACTOR = 32, 4
LONG = REACH * FACTOR


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, corpus: Path, tokenizer: Path) -> TrainConfig:
    """A model that reaches 32 tokens."""
    short = dataclasses.replace(TINY, max_position_embeddings=REACH)
    config = recipe(tmp_path_factory.mktemp("short"), corpus, tokenizer, steps=4, model=short)
    assert pretrain(config)
    return config


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory, trained: TrainConfig, tokenizer: Path) -> TrainConfig:
    """Trained on documents whose second half repeats the first, 64 tokens later: past what the model could reach."""
    folder, draw = tmp_path_factory.mktemp("long"), random.Random(3)
    halves = [[draw.randrange(3, 300) for _ in range(LONG // 2 - 1)] for _ in range(40)]
    documents = [[0, *half, *half, 1] for half in halves]
    corpus = write_corpus(folder / "corpus", tokenizer, train=documents[:32], valid=documents[32:])
    config = dataclasses.replace(
        trained, out=folder / "run", data=corpus, init=trained.out / "model", tokenizer=None,
        yarn=ExtensionConfig(FACTOR), sequence_length=LONG, batch_tokens=4 * LONG,
        micro_batch_tokens=2 * LONG, tokens=8 * 4 * LONG,
    )  # fmt: skip
    assert extend(config)
    return config


def test_the_exported_config_says_how_it_was_extended(extended: TrainConfig) -> None:
    raw = json.loads((extended.out / "model/config.json").read_text())
    assert raw["max_position_embeddings"] == LONG
    assert raw["rope_scaling"] == {
        "type": "yarn", "factor": 4.0, "original_max_position_embeddings": REACH, "beta_fast": 32.0, "beta_slow": 1.0,
        "mscale": 0.707, "mscale_all_dim": 0.707,
    }  # fmt: skip


def test_past_its_original_reach_it_is_what_transformers_computes(extended: TrainConfig) -> None:
    from transformers import AutoModelForCausalLM

    folder, tokens = extended.out / "model", torch.randint(2, 300, (LONG,), generator=torch.Generator().manual_seed(5))
    oracle = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    model = starting_model(dataclasses.replace(extended, init=folder, yarn=None))
    with torch.no_grad():
        ours = model(tokens, ForwardBatch.packed([LONG])).logits
        torch.testing.assert_close(ours, oracle(input_ids=tokens[None]).logits[0], rtol=1e-4, atol=1e-4)
    plain = starting_model(dataclasses.replace(extended, yarn=None, sequence_length=REACH))
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        unscaled = plain(tokens, ForwardBatch.packed([LONG])).logits
    assert (ours - unscaled)[REACH:].abs().max() > 1e-3, "the same weights without YaRN are another model"


def test_its_weights_are_trained_on_and_what_it_learns_is_told(extended: TrainConfig) -> None:
    losses = [record["loss"] for record in records(extended) if "loss" in record]
    assert losses[-1] < losses[0]
    assert records(extended)[-1]["held_out_loss"] > 0


def test_an_unfinished_extension_is_exported_as_extended(extended: TrainConfig, tmp_path: Path) -> None:
    assert export_newest(extended, tmp_path / "early") == 8
    config = ModelConfig.from_folder(tmp_path / "early")
    assert config.yarn is not None
    assert config.max_position_embeddings == LONG


def test_v2s_own_extension_is_the_published_config() -> None:
    """4K to 160K: factor 40, betas 32 and 1, both mscales 0.707."""
    before = dataclasses.replace(V2_LITE, yarn=None, max_position_embeddings=4096)
    assert ExtensionConfig(40.0).extended(before) == V2_LITE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": None}, "extend starts from a trained model: set `init`"),
        ({"yarn": None}, "extend needs to know how far: set yarn.factor"),
        ({"yarn": ExtensionConfig(1.0)}, "yarn.factor must be more than 1"),
        ({"yarn": ExtensionConfig(2.0)}, "sequence_length 128 is more than the model's max_position_embeddings 64"),
    ],
    ids=["init", "yarn", "factor", "length"],
)
def test_what_extends_nothing_is_refused(extended: TrainConfig, tmp_path: Path, changes: Any, message: str) -> None:
    config = dataclasses.replace(extended, out=tmp_path / "run", tokenizer=extended.init, **changes)
    with pytest.raises(ConfigError, match=message):
        extend(config)


def test_a_model_is_extended_once(extended: TrainConfig, tmp_path: Path) -> None:
    again = dataclasses.replace(extended, out=tmp_path / "run", init=extended.out / "model")
    with pytest.raises(ConfigError, match="was extended before, by YaRN x4"):
        extend(again)


@pytest.mark.parametrize("stage", [pretrain, sft])
def test_other_stages_know_no_yarn(extended: TrainConfig, stage: Any) -> None:
    with pytest.raises(ConfigError, match="yarn belongs to `extend`"):
        stage(extended)
