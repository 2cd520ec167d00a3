"""Saving is whole or not at all: a full disk, an interruption, a folder that is not ours."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from leadline.checkpoint.machine import check_space
from leadline.checkpoint.safetensors import Tensor
from leadline.checkpoint.save import replacing, save_model, split
from leadline.checkpoint.weights import load_weights
from leadline.errors import CheckpointError, ResourceError
from leadline.model.transformer import DeepseekV2
from tests.fixtures import TINY_V2


@pytest.fixture(scope="module")
def model(tiny_v2_folder: Path) -> DeepseekV2:
    with torch.device("meta"):
        empty = DeepseekV2(TINY_V2)
    return load_weights(empty, tiny_v2_folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Stands for a full disk: the system refuses to let any file grow beyond `size`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("existing", [False, True], ids=["new", "replaced"])
def test_a_full_disk_leaves_what_was_there(model: DeepseekV2, tmp_path: Path, existing: bool) -> None:
    folder = tmp_path / "saved"
    if existing:
        save_model(model, folder)
    before = contents(folder)
    with largest_file(100_000), pytest.raises(ResourceError, match="disk is full") as caught:
        save_model(model, folder)
    assert str(folder) in caught.value.message
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == (["saved"] if existing else [])


def test_an_interruption_leaves_what_was_there(
    model: DeepseekV2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("leadline.checkpoint.save.write_weights", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_model(model, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_known_to_be_too_small_is_refused_with_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"needs 1,152,921,504,606,846,976 bytes of disk, [\d,]+ are free"):
        check_space(tmp_path / "not" / "there" / "yet", 1 << 60)


def test_replacing_takes_nothing_from_the_old_model(model: DeepseekV2, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    save_model(model, folder, max_shard_bytes=50_000)
    save_model(model, folder, generation={"temperature": 0.5})
    assert sorted(contents(folder)) == ["config.json", "generation_config.json", "model.safetensors"]


def test_a_folder_with_other_things_in_it_is_left_alone(model: DeepseekV2, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"notes\.txt, which is no part of a model"):
        save_model(model, tmp_path)
    with pytest.raises(CheckpointError, match="is a file, not a folder"):
        save_model(model, tmp_path / "notes.txt")
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_a_place_that_cannot_be_written(model: DeepseekV2, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_model(model, tmp_path / "file" / "model")


def test_saved_folders_are_readable_by_others(model: DeepseekV2, tmp_path: Path) -> None:
    save_model(model, tmp_path / "saved")
    assert (tmp_path / "saved").stat().st_mode & 0o777 == 0o755


def test_a_type_of_ones_own(model: DeepseekV2, tmp_path: Path) -> None:
    save_model(model, tmp_path / "wide", dtype=torch.float32)
    with torch.device("meta"):
        empty = DeepseekV2(TINY_V2)
    wide = load_weights(empty, tmp_path / "wide", dtype=torch.bfloat16)
    assert '"torch_dtype": "float32"' in (tmp_path / "wide" / "config.json").read_text()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), wide.parameters(), strict=True))


def test_shards_keep_order_and_size() -> None:
    tensors = [Tensor(str(i), "float32", (n,)) for i, n in enumerate((1, 2, 9, 1, 1))]
    assert [[tensor.name for tensor in shard] for shard in split(tensors, 12)] == [["0", "1"], ["2"], ["3", "4"]]


KILLED = """
import os, signal, sys
from pathlib import Path
from leadline.checkpoint.save import replacing

with replacing(Path(sys.argv[1])) as new:
    (new / "config.json").write_text("{}")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_save_leaves_no_model_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "saved")], env=environment, check=False)
    assert not (tmp_path / "saved").exists()
    with replacing(tmp_path / "saved") as new:
        (new / "config.json").write_text("{}")
    assert (tmp_path / "saved" / "config.json").exists()
