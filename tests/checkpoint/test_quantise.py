"""`leadline quantize` and its folders: measured, checked, whole or not there."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from leadline import LLM, SamplingParams
from leadline.checkpoint import quantise, quantised
from leadline.checkpoint.folder import MANIFEST, weight_entries
from leadline.checkpoint.load import load_model
from leadline.checkpoint.quality import Quality, compare, folder_source, packed_source, sequences_of
from leadline.checkpoint.quantise import Options, quantise_folder
from leadline.checkpoint.quantised import ALWAYS_CHECKED_BYTES, FILE, checksums, load_block
from leadline.checkpoint.recipes import RECIPES, Recipe
from leadline.checkpoint.regions import Region
from leadline.cli import run
from leadline.errors import CheckpointError, ConfigError, ResourceError
from leadline.model.batch import ForwardBatch
from leadline.model.config import ModelConfig
from leadline.ops.cpu import mapped
from leadline.tokenizer import Tokenizer
from tests.fixtures import SAMPLE_TEXT, TINY_LITE, make_model_folder

FORCED = Options("int8", text=SAMPLE_TEXT, force=True)
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tiny_v2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int8 folder; read only."""
    target = tmp_path_factory.mktemp("quantised") / "int8"
    quantise_folder(tiny_v2_folder, target, FORCED)
    return target


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(folder, tmp_path / "own")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", ["tiny_v2_folder", "tiny_lite_folder"])
def test_a_folder_is_made_measured_and_loaded(
    name: str, recipe: Recipe, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = request.getfixturevalue(name)
    report = quantise_folder(source, tmp_path / "new", dataclasses.replace(FORCED, recipe=recipe))
    assert report.quality is not None
    assert report.quality.kl < (0.01 if recipe == "int8" else 0.5)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "config.json",
        "generation_config.json",
        "leadline.json",
        "packed.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    loaded = load_model(tmp_path / "new", dtype="float32")
    assert json.loads((tmp_path / "new" / MANIFEST).read_text())["report"]["quality"]["tokens"] == report.quality.tokens
    # what was measured layer by layer is what the whole models do
    sequences = sequences_of(loaded.tokenizer, SAMPLE_TEXT)
    original = load_model(source, dtype="float32")
    kl = measured_kl(original.model, loaded.model, sequences)
    assert kl == pytest.approx(report.quality.kl, rel=1e-3, abs=1e-6)


def measured_kl(original: Any, changed: Any, sequences: list[list[int]]) -> float:
    tokens = torch.tensor([token for ids in sequences for token in ids])
    batch = ForwardBatch.packed([len(ids) for ids in sequences])
    log_p, log_q = (model(tokens, batch).logits.log_softmax(-1) for model in (original, changed))
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


def test_in_memory_is_the_same_as_from_the_folder(
    tiny_v2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantise_folder(tiny_v2_folder, tmp_path / "new", dataclasses.replace(FORCED, recipe="int4"))
    new = tmp_path / "new"
    texts = [
        LLM(model, dtype="float32", max_model_len=128, **more).generate("The lead", GREEDY)[0].token_ids
        for model, more in (
            (tiny_v2_folder, {"quantize": "int4"}),
            (new, {}),
            (new, {"placement": "map"}),
            (new, {"placement": "copy"}),
        )
    ]
    monkeypatch.setattr(quantised, "COPIED_AT_ONCE_BYTES", 0)
    moving = LLM(new, dtype="float32", max_model_len=128)
    texts += [moving.generate("The lead", GREEDY)[0].token_ids]
    mapped.settle()
    texts += [moving.generate("The lead", GREEDY)[0].token_ids]
    assert len(set(texts)) == 1


def test_calibration_lowers_the_damage_that_the_text_feels(tiny_lite_folder: Path, tmp_path: Path) -> None:
    options = dataclasses.replace(FORCED, recipe="int4")
    plain = quantise_folder(tiny_lite_folder, tmp_path / "plain", options)
    calibrated = dataclasses.replace(options, calibration=SAMPLE_TEXT * 4)
    with torch.inference_mode():  # gradients are taken all the same
        better = quantise_folder(tiny_lite_folder, tmp_path / "better", calibrated)
    assert plain.quality is not None
    assert better.quality is not None
    assert better.quality.kl < plain.quality.kl


def test_a_model_that_is_too_far_off_is_refused_unless_forced(
    tiny_v2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for bad in (Quality(0.031, 1.0, 100), Quality(0.0, 0.96, 100), Quality(float("nan"), 1.0, 100)):
        monkeypatch.setattr(quantise, "compare", lambda *args, bad=bad: bad)
        with pytest.raises(CheckpointError, match=r"too far from the original: KL .* --force"):
            quantise_folder(tiny_v2_folder, tmp_path / "new", dataclasses.replace(FORCED, force=False))
        assert list(tmp_path.iterdir()) == []
    report = quantise_folder(tiny_v2_folder, tmp_path / "new", FORCED)
    assert report.quality == bad or report.quality is not None
    monkeypatch.setattr(quantise, "compare", lambda *args: Quality(0.029, 0.971, 100))
    quantise_folder(tiny_v2_folder, tmp_path / "good", dataclasses.replace(FORCED, force=False))


def test_the_measure_is_zero_for_the_model_itself(tiny_v2_folder: Path) -> None:
    config = ModelConfig.from_folder(tiny_v2_folder)
    source = folder_source(weight_entries(tiny_v2_folder, config))
    sequences = sequences_of(Tokenizer.from_folder(tiny_v2_folder), SAMPLE_TEXT, 100)
    assert [len(ids) for ids in sequences] == [101]
    assert compare(config, source, source, sequences) == Quality(0.0, 1.0, 101)


# ---- bad input -----------------------------------------------------------------------------------------------------


def change_manifest(folder: Path, **fields: Any) -> None:
    raw = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(raw | fields))


def flip(folder: Path) -> None:
    path = folder / FILE
    with path.open("r+b") as file:
        file.seek(path.stat().st_size - 5000)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def other_model(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"routed_scaling_factor": 2.0}))


def truncate(folder: Path) -> None:
    os.truncate(folder / FILE, (folder / FILE).stat().st_size - 100)


def other_recipe(folder: Path) -> None:
    change_manifest(folder, recipe="int4")


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "another version": (lambda folder: change_manifest(folder, version=99), "layout version 99, this leadline reads 2"),
    "another model": (other_model, "another model than the config.json"),
    "truncated": (truncate, "truncated"),
    "a flipped bit": (flip, "damaged: .* wrong checksum"),
    "another recipe": (other_recipe, "is not int4 of this model"),
    "no checksums": (lambda folder: change_manifest(folder, checksums={}), "missing or misplaced"),
    "an unknown recipe": (lambda folder: change_manifest(folder, recipe="int3"), "recipe 'int3'"),
    "a damaged manifest": (lambda folder: (folder / MANIFEST).write_text("{}"), "layout version None"),
    "a manifest without a report": (lambda folder: change_manifest(folder, report=None), "is damaged"),
    "no weights": (lambda folder: (folder / FILE).unlink(), "cannot be read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_folder_is_one_clear_line(fault: str, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage, message = FAULTS[fault]
    damage(own)
    with pytest.raises((CheckpointError, ConfigError), match=message):
        load_model(own, dtype="float32")
    assert run(["generate", "--model", str(own), "x"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_large_file_is_checked_once_and_again_when_it_changes(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig.from_folder(own)
    monkeypatch.setattr("leadline.checkpoint.quantised.ALWAYS_CHECKED_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(own.parent / "cache"))
    counts = []

    def counted(block: torch.Tensor, wanted: Mapping[str, Region]) -> dict[str, str]:
        counts.append(1)
        return checksums(block, wanted)

    monkeypatch.setattr("leadline.checkpoint.quantised.checksums", counted)
    load_block(own, config)
    load_block(own, config, "map")
    assert len(counts) == 1
    flip(own)
    with pytest.raises(CheckpointError, match="wrong checksum"):
        load_block(own, config)
    assert ALWAYS_CHECKED_BYTES > 0


def test_original_weights_are_never_replaced(own: Path, tiny_lite_folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_lite_folder, model)
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    for source in (model, tiny_lite_folder):
        with pytest.raises(CheckpointError, match="holds original weights"):
            quantise_folder(source, model, Options("int8", check=False, force=True))
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    quantise_folder(model, own, Options("int8", check=False))  # what is quantised is made anew


def test_what_is_quantised_is_not_quantised_again(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="quantised already"):
        quantise_folder(folder, tmp_path / "new", FORCED)
    with pytest.raises(ConfigError, match="quantised already"):
        load_model(folder, quantize="int4")
    assert list(tmp_path.iterdir()) == []


def test_other_readers_are_told_by_name(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    assert raw["quantization_config"] == {"quant_method": "leadline", "version": 2, "recipe": "int8"}
    with pytest.raises(CheckpointError, match="quantization_config 'fp8' is not implemented"):
        ModelConfig.from_dict(raw | {"quantization_config": {"quant_method": "fp8"}})


def test_a_lack_of_disk_is_said_before_anything_is_written(
    tiny_v2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ResourceError, match="bytes of disk, 1,000 are free"):
        quantise_folder(tiny_v2_folder, tmp_path / "new", FORCED)
    assert list(tmp_path.iterdir()) == []


def test_a_files_bytes_cannot_be_a_hub_weight(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = make_model_folder(tmp_path / "m", TINY_LITE, shards=0)
    save_file({"model.norm.weight": torch.zeros(48, dtype=torch.uint8)}, source / "model.safetensors")
    with pytest.raises(CheckpointError, match="type U8"):
        load_model(source)


def test_the_packed_source_has_every_tensor(folder: Path) -> None:
    config = ModelConfig.from_folder(folder)
    weights, _ = load_block(folder, config)
    source = packed_source(weights, config)
    assert {name for name, _ in source.top()} == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert all(name.startswith("model.layers.1.") for name, _ in source.layer(1))


def test_the_verb(tiny_lite_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text(SAMPLE_TEXT, encoding="utf-8")
    arguments = ["quantize", str(tiny_lite_folder), str(tmp_path / "new"), "--recipe", "int8", "--text", str(text)]
    assert run([*arguments, "--force"]) == 0
    output = capsys.readouterr().out
    assert "int8" in output
    assert "KL 0.0" in output
    assert run([*arguments, "--force", "--json", "--calibrate", str(text)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["tensors"]["layers.1.experts_down"]["format"] == "int8"
    assert 0 < report["tensors"]["layers.1.experts_down"]["error"] < 0.02
    assert run([*arguments[:-1], str(tmp_path / "none.txt")]) == 2
    assert "cannot be read" in capsys.readouterr().err
