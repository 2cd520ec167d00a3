"""A checkpoint under its name is whole: whatever fails, the ones before it stay."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from leadline.errors import DataError, ResourceError
from leadline.train import checkpoints
from leadline.train.checkpoints import TrainState, complete, load, save

TENSORS = {"master.w": torch.arange(6.0).view(2, 3).t(), "step.w": torch.tensor(3.0)}


def at(step: int) -> TrainState:
    return TrainState(step, step * 8, "recipe")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save(tmp_path, at(5), TENSORS, keep=2)
    state, tensors = load(tmp_path / "step-00000005")
    assert state == at(5)
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_the_newest_are_kept_in_order(tmp_path: Path) -> None:
    for step in (5, 50, 500, 5000):
        save(tmp_path, at(step), TENSORS, keep=2)
    assert names(tmp_path) == ["step-00000500", "step-00005000"]
    assert complete(tmp_path)[-1].name == "step-00005000"
    assert complete(tmp_path / "nowhere") == []


def test_a_step_that_is_there_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, at(5), TENSORS, keep=1)
    monkeypatch.setattr(checkpoints, "save_file", None)
    save(tmp_path, at(5), TENSORS, keep=1)
    assert names(tmp_path) == ["step-00000005"]


def test_what_a_kill_left_is_swept_away(tmp_path: Path) -> None:
    save(tmp_path, at(5), TENSORS, keep=2)
    shutil.copytree(tmp_path / "step-00000005", tmp_path / ".step-00000007.partial")
    (tmp_path / ".step-00000007.partial/state.json").unlink()
    assert [path.name for path in complete(tmp_path)] == ["step-00000005"]
    save(tmp_path, at(8), TENSORS, keep=2)
    assert names(tmp_path) == ["step-00000005", "step-00000008"]


def test_an_old_one_loses_its_name_before_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill in the middle of deleting leaves nothing that looks complete."""
    save(tmp_path, at(1), TENSORS, keep=1)
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **options: None)
    save(tmp_path, at(2), TENSORS, keep=1)
    assert [path.name for path in complete(tmp_path)] == ["step-00000002"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full: No space left"),
        (OSError(errno.EACCES, "Permission denied"), "Permission denied"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "No space left on device"),
    ],
)
def test_a_write_that_fails_is_one_line_and_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    save(tmp_path, at(5), TENSORS, keep=1)

    def fail(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoints, "save_file", fail)
    with pytest.raises(ResourceError) as caught:
        save(tmp_path, at(6), TENSORS, keep=1)
    assert said in caught.value.message
    assert caught.value.message.endswith("the newest complete checkpoint is step-00000005")
    assert names(tmp_path) == ["step-00000005"]
    load(tmp_path / "step-00000005")


def test_a_full_disk_for_real(tmp_path: Path) -> None:
    """The system refuses to let a file grow past a limit, as it does on a full disk."""
    code = f"""
import pathlib, resource, torch
from leadline.errors import ResourceError
from leadline.train.checkpoints import TrainState, save
folder = pathlib.Path({str(tmp_path)!r})
save(folder, TrainState(5, 40, "r"), {{"w": torch.ones(1000)}}, keep=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    save(folder, TrainState(6, 48, "r"), {{"w": torch.ones(100_000)}}, keep=1)
except ResourceError as error:
    print(error.message)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert "step-00000006 was not written" in done.stdout, done.stderr
    assert "File too large" in done.stdout
    assert names(tmp_path) == ["step-00000005"]
    assert load(tmp_path / "step-00000005")[1]["w"].sum() == 1000


def _truncate(folder: Path) -> None:
    os.truncate(folder / "optimizer.safetensors", 60)


def _empty(folder: Path) -> None:
    (folder / "optimizer.safetensors").write_bytes(b"")


def _remove(folder: Path) -> None:
    (folder / "optimizer.safetensors").unlink()


def _garble_state(folder: Path) -> None:
    (folder / "state.json").write_text('{"step": 5')


def _strange_state(folder: Path) -> None:
    (folder / "state.json").write_text('{"epoch": 5}')


def _list_state(folder: Path) -> None:
    (folder / "state.json").write_text("[]")


@pytest.mark.parametrize("damage", [_truncate, _empty, _remove, _garble_state, _strange_state, _list_state])
def test_a_damaged_one_is_named(tmp_path: Path, damage: object) -> None:
    save(tmp_path, at(5), TENSORS, keep=1)
    assert callable(damage)
    damage(tmp_path / "step-00000005")
    with pytest.raises(DataError, match=r"step-00000005 is damaged: .*; delete it to resume from the one before"):
        load(tmp_path / "step-00000005")
