"""`leadline verify` passes what is right and finds each fault it is there for."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from leadline.checkpoint.machine import Machine
from leadline.checkpoint.verify import model as model_checks
from leadline.checkpoint.verify import numbers
from leadline.checkpoint.verify.folder import verify_folder
from leadline.checkpoint.verify.report import Check, CheckFailed, NotApplicable, all_passed, run_check
from leadline.cli import run
from leadline.model.cache import PagedCache
from leadline.model.config import V2, V2_5, V2_LITE, ModelConfig
from leadline.model.rope import inverse_frequencies
from leadline.ops.experts import route
from leadline.ops.mla import absorbed_mla
from tests.fixtures import TINY_LITE, TINY_V2, make_model_folder, random_tensors, write_json, write_weights
from tests.fixtures_tokenizer import make_v25_folder, official_folder


def states(folder: Path, **options: bool) -> dict[str, str]:
    return {check.name: check.state for check in verify_folder(folder, **options)}


def failures(folder: Path) -> dict[str, str]:
    return {check.name: check.detail for check in verify_folder(folder) if check.state == "fail"}


@pytest.mark.parametrize("name", ["tiny_v2_folder", "tiny_lite_folder"])
def test_a_right_folder_passes(name: str, request: pytest.FixtureRequest) -> None:
    found = states(request.getfixturevalue(name))
    assert found.pop("tokenizer golden ids") == "skip"  # a vocabulary of its own
    assert set(found.values()) == {"pass"}
    assert len(found) == 14


@pytest.mark.parametrize("version", ["v2", "v2.5"])
def test_the_official_tokenizer_passes_its_golden_checks(tmp_path: Path, version: str) -> None:
    config = dataclasses.replace(
        TINY_V2, vocab_size=102_400, bos_token_id=100_000, eos_token_id=100_001, hidden_size=8, num_hidden_layers=2
    )
    folder = make_model_folder(tmp_path / "m", config, tokenizer=False, shards=1)
    if version == "v2":
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(official_folder() / name, folder / name)
    else:
        made = make_v25_folder(tmp_path / "tokenizer")
        shutil.copytree(made, folder, dirs_exist_ok=True)
    found = states(folder, whole=False)
    assert set(found.values()) == {"pass"}
    assert "whole model" not in found


def test_plain_attention_and_dense_models(tmp_path: Path) -> None:
    config = dataclasses.replace(
        TINY_LITE, model_type="llama", kv_lora_rank=None, num_key_value_heads=2, n_routed_experts=None, yarn=None
    )
    found = states(make_model_folder(tmp_path / "m", config))
    assert found["routing"] == "skip"
    assert all_passed(Check(name, state, "") for name, state in found.items())  # type: ignore[arg-type]


@pytest.fixture
def folder(tiny_v2_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_v2_folder, tmp_path / "model")


def test_a_missing_tensor_is_named(folder: Path) -> None:
    tensors = random_tensors(TINY_V2)
    del tensors["model.layers.2.mlp.gate.weight"]
    for path in folder.glob("model*"):
        path.unlink()
    write_weights(folder, tensors)
    assert "model.layers.2.mlp.gate.weight" in failures(folder)["tensor inventory"]


def test_a_folder_without_weights_fails_in_words(tmp_path: Path) -> None:
    found = failures(make_model_folder(tmp_path / "m", TINY_V2, shards=0))
    assert "has no weights" in found["tensor inventory"]
    assert set(found) == {"tensor inventory", "absorbed = expanded", "cached = cold", "whole model"}


def test_weights_that_are_not_finite(folder: Path) -> None:
    tensors = random_tensors(TINY_V2)
    tensors["model.layers.1.mlp.shared_experts.up_proj.weight"][0, 0] = math.inf
    for path in folder.glob("model*"):
        path.unlink()
    write_weights(folder, tensors)
    assert "not finite" in failures(folder)["whole model"]


def test_a_tokenizer_whose_splits_lose_spaces(folder: Path) -> None:
    """What rebuilding the pre-tokenizer from `tokenizer_class` does."""
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["pre_tokenizer"] = {"type": "Whitespace"}
    raw["decoder"] = {"type": "Fuse"}
    write_json(folder / "tokenizer.json", raw)
    assert "tokenizer" in failures(folder)


def test_a_missing_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json" in failures(folder)["tokenizer"]


def test_ids_that_contradict_each_other(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**raw, "eos_token_id": 7})
    assert failures(folder) == {"vocabulary and stop ids": "EOS is 1 in the tokenizer and 7 in config.json"}


def test_a_wrong_absorbed_scale_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """576^-0.5 instead of 192^-0.5, and the missing mscale squared: both look right at position 0."""

    def wrong(*args: Any) -> Tensor:
        *tensors, scale = args
        right: Callable[..., Tensor] = absorbed_mla
        return right(*tensors, scale * 0.6)

    monkeypatch.setattr("leadline.model.mla.absorbed_mla", wrong)
    assert set(failures(folder)) == {"absorbed = expanded", "whole model"}


def test_a_cache_that_mixes_up_its_rows_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(self: PagedCache, layer: int, slots_T: Tensor, *parts: Tensor) -> None:
        row = torch.cat([part.to(self.storage.dtype) for part in parts], dim=1)
        self.storage[layer].index_copy_(0, slots_T // 2, row)

    monkeypatch.setattr(PagedCache, "write", write)
    assert {"absorbed = expanded", "cached = cold"} <= set(failures(folder))


def test_a_missing_mscale_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelConfig, "softmax_scale", property(lambda config: config.qk_head_dim**-0.5))
    assert set(failures(folder)) == {"softmax scale"}


def test_greedy_routing_where_groups_are_wanted_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(logits_TE: Tensor, top_k: int, groups: int, keep: int, normalise: bool, scale: float) -> object:
        return route(logits_TE, top_k, 1, 1, normalise, scale)

    monkeypatch.setattr("leadline.checkpoint.verify.numbers.route", greedy)
    assert "2 of 4 groups chose" in failures(folder)["routing"]


@pytest.mark.parametrize("config", [V2, V2_LITE, V2_5], ids=["v2", "v2-lite", "v2.5"])
@pytest.mark.parametrize(
    "check",
    [numbers.parameter_count, numbers.cache_bytes, numbers.yarn_frequencies, numbers.softmax_scale, numbers.routing],
)
def test_the_published_numbers(config: ModelConfig, check: Callable[[ModelConfig], str]) -> None:
    assert check(config)


def test_golden_scales() -> None:
    assert numbers.softmax_scale(V2).startswith("0.1147213868 = 192^-0.5")
    assert numbers.softmax_scale(V2_5).startswith("0.1352337789 = 192^-0.5")
    assert "correction range 10..23" in numbers.yarn_frequencies(V2_LITE)


def test_frequencies_by_another_ramp_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert V2.yarn is not None
    wrong = inverse_frequencies(dataclasses.replace(V2, yarn=dataclasses.replace(V2.yarn, beta_fast=16.0)))
    monkeypatch.setattr("leadline.checkpoint.verify.numbers.inverse_frequencies", lambda config: wrong)
    with pytest.raises(CheckFailed, match="frequencies are off"):
        numbers.yarn_frequencies(V2)


def test_a_machine_too_small_for_a_check_skips_it(tiny_v2_folder: Path) -> None:
    small = Machine(1000, "free memory")
    checks = [run_check(*check) for check in model_checks.model_checks(TINY_V2, tiny_v2_folder, small)]
    assert [check.state for check in checks] == ["skip"] * 3


def test_a_check_never_ends_the_report() -> None:
    def fault() -> str:
        raise ZeroDivisionError("x")

    def skipped() -> str:
        raise NotApplicable("why")

    assert run_check("a", fault) == Check("a", "fail", "ZeroDivisionError: x")
    assert run_check("b", skipped) == Check("b", "skip", "why")


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "--model", str(folder)]) == 0
    output = capsys.readouterr().out
    assert "pass  absorbed = expanded" in output
    (folder / "model-00001-of-00002.safetensors").unlink()
    assert run(["verify", "--model", str(folder), "--quick", "--json"]) == 1
    checks = json.loads(capsys.readouterr().out)
    assert {check["name"] for check in checks if check["state"] == "fail"} >= {"tensor inventory"}
    assert run(["verify", "--model", str(folder / "nothing")]) == 2
