"""generation_config.json: what it says and nothing more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from leadline.checkpoint.generation import GenerationConfig, read_generation_config
from leadline.engine.types import SamplingParams
from leadline.errors import CheckpointError


def read(folder: Path, raw: Any) -> GenerationConfig:
    (folder / "generation_config.json").write_text(raw if isinstance(raw, str) else json.dumps(raw))
    return read_generation_config(folder)


def test_the_published_file(tmp_path: Path) -> None:
    raw = {"bos_token_id": 100000, "eos_token_id": 100001, "do_sample": True, "temperature": 0.3, "top_p": 0.95}
    config = read(tmp_path, raw)
    assert config.sampling_defaults() == {"temperature": 0.3, "top_p": 0.95}
    assert config.eos_token_ids == (100001,)
    assert SamplingParams(**config.sampling_defaults()).top_p == 0.95  # type: ignore[arg-type]


def test_no_file_and_an_empty_one_set_nothing(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path) == GenerationConfig()
    assert read(tmp_path, {}).sampling_defaults() == {}


@pytest.mark.parametrize(("value", "ids"), [(None, ()), (7, (7,)), ([7, 9], (7, 9))])
def test_stop_ids_are_one_or_a_list(tmp_path: Path, value: Any, ids: tuple[int, ...]) -> None:
    assert read(tmp_path, {"eos_token_id": value}).eos_token_ids == ids


def test_the_tokenizers_eos_is_added_once() -> None:
    assert GenerationConfig(eos_token_ids=(7, 9)).with_eos(9, 1).eos_token_ids == (7, 9, 1)


def test_no_sampling_is_greedy(tmp_path: Path) -> None:
    assert read(tmp_path, {"do_sample": False, "temperature": 0.7}).sampling_defaults() == {"temperature": 0.0}


def test_top_k_stays_whole(tmp_path: Path) -> None:
    assert read(tmp_path, {"top_k": 50, "repetition_penalty": 1}).sampling_defaults() == {
        "top_k": 50,
        "repetition_penalty": 1.0,
    }


@pytest.mark.parametrize(
    "raw", ["", "[]", {"temperature": "hot"}, {"top_p": True}, {"eos_token_id": ["a"]}, {"eos_token_id": -1}]
)
def test_a_damaged_file_is_named(tmp_path: Path, raw: Any) -> None:
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        read(tmp_path, raw)
