"""Folders that are not the model they claim to be: one line that names the file and the tensor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from leadline.checkpoint.folder import INDEX, SINGLE, weight_entries
from leadline.errors import CheckpointError
from leadline.model.config import ModelConfig
from tests.fixtures import TINY_LITE, TINY_V2, make_model_folder, random_tensors, write_weights

NAME = "model.layers.1.mlp.experts.2.up_proj.weight"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def sharded(tiny_v2_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_v2_folder, tmp_path / "model")


def change_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """The model as one file with its tensors changed."""
    tensors = random_tensors(TINY_V2)
    change(tensors)
    for path in folder.glob("model*"):
        path.unlink()
    write_weights(folder, tensors)


def refusal(folder: Path, config: ModelConfig = TINY_V2) -> str:
    with pytest.raises(CheckpointError) as caught:
        weight_entries(folder, config)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_entries_come_file_by_file_in_the_order_of_their_bytes(sharded: Path) -> None:
    entries = weight_entries(sharded, TINY_V2)
    assert entries == sorted(entries, key=lambda entry: (entry.path, entry.offset))


def test_a_missing_tensor(sharded: Path) -> None:
    rewrite(sharded, lambda tensors: tensors.pop(NAME))
    assert f"{sharded / SINGLE} lacks {NAME}" in refusal(sharded)


def test_a_missing_tensor_is_looked_for_where_the_index_puts_it(sharded: Path) -> None:
    tensors = random_tensors(TINY_V2)
    write_weights(sharded, {name: tensor for name, tensor in tensors.items() if name != NAME}, 2)
    change_index(sharded, lambda names: names.update({NAME: SECOND}))
    assert f"{sharded / SECOND} lacks {NAME}" in refusal(sharded)


def test_an_extra_tensor(sharded: Path) -> None:
    rewrite(sharded, lambda tensors: tensors.update({"model.layers.3.extra.weight": torch.zeros(2)}))
    message = refusal(sharded)
    assert SINGLE in message
    assert "model.layers.3.extra.weight, which this architecture does not have" in message


def test_a_misshapen_tensor(sharded: Path) -> None:
    rewrite(sharded, lambda tensors: tensors.update({NAME: torch.zeros(64, 32)}))
    assert f"{sharded / SINGLE}: {NAME} has the shape [64, 32], config.json asks for [32, 64]" in refusal(sharded)


def test_another_models_weights(sharded: Path) -> None:
    assert "model.layers.0.self_attn.q_proj.weight" in refusal(sharded, TINY_LITE)


def test_a_truncated_shard(sharded: Path) -> None:
    data = (sharded / SECOND).read_bytes()
    (sharded / SECOND).write_bytes(data[:-100])
    message = refusal(sharded)
    assert f"{sharded / SECOND} is truncated" in message
    assert "ends 100 bytes after the file" in message


def test_a_missing_shard(sharded: Path) -> None:
    (sharded / SECOND).unlink()
    assert refusal(sharded) == f"{sharded / SECOND} is missing; {INDEX} names it"


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    shutil.copyfile(sharded / FIRST, sharded / "model-copy.safetensors")
    (sharded / INDEX).write_text(json.dumps({"weight_map": {"a": FIRST, "b": "model-copy.safetensors"}}))
    assert "does not name it" in refusal(sharded)


def test_a_tensor_in_another_shard_than_the_index_says(sharded: Path) -> None:
    change_index(sharded, lambda names: names.update({"model.embed_tokens.weight": SECOND}))
    message = refusal(sharded)
    assert f"{FIRST} holds model.embed_tokens.weight, but {INDEX} puts it in {SECOND}" in message


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a/../../b.safetensors", "..\\x.safetensors", "run.py", "", "."]
)
def test_a_shard_name_that_leaves_the_folder(sharded: Path, name: str) -> None:
    shutil.copyfile(sharded / FIRST, sharded.parent / "model.safetensors")
    change_index(sharded, lambda names: names.update({NAME: name}))
    message = refusal(sharded)
    assert INDEX in message
    assert repr(name) in message


def test_a_shard_that_links_out_of_the_folder(sharded: Path) -> None:
    shutil.move(sharded / SECOND, sharded.parent / "elsewhere.safetensors")
    (sharded / SECOND).symlink_to(sharded.parent / "elsewhere.safetensors")
    assert f"{sharded / SECOND} is a link to" in refusal(sharded)


def test_the_hubs_cache_links_to_its_blobs(sharded: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "0123abcd"
    blobs = tmp_path / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in sharded.iterdir():
        shutil.move(path, blobs / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    assert weight_entries(snapshot, TINY_V2)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"metadata": {}}'])
def test_a_damaged_index(sharded: Path, text: str) -> None:
    (sharded / INDEX).write_text(text)
    assert str(sharded / INDEX) in refusal(sharded)


def test_no_weights_at_all(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "m", TINY_V2, shards=0)
    assert "has no weights" in refusal(folder)
    (folder / "pytorch_model-00001-of-00002.bin").write_bytes(b"x")
    assert "pickled weights" in refusal(folder)


def test_rotary_tables_of_old_checkpoints_are_left_in_the_file(sharded: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(sharded, lambda tensors: tensors.update({name: torch.ones(4)}))
    assert name not in {entry.name for entry in weight_entries(sharded, TINY_V2)}
