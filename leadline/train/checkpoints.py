"""Training checkpoints: safetensors and JSON only, written whole or not at all.

    OUT/checkpoints/step-00000500/{state.json, optimizer.safetensors}

A folder gets its final name by a rename after everything in it is on disk, so whatever bears the name is complete.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from leadline.errors import DataError


@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a resumed run needs beside the tensors; `recipe` refuses a resume under another one."""

    step: int
    tokens: int
    recipe: str


def save(folder: Path, state: TrainState, tensors: dict[str, Tensor], keep: int) -> None:
    """Write `step-N` under `folder` and delete all but the newest `keep`."""
    final = folder / f"step-{state.step:08d}"
    partial = folder / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial / "optimizer.safetensors")
    (partial / "state.json").write_text(json.dumps(dataclasses.asdict(state)), encoding="utf-8")
    for path in (*partial.iterdir(), partial):
        _sync(path)
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    _sync(folder)
    for old in complete(folder)[:-keep]:
        shutil.rmtree(old)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints, oldest first."""
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def load(path: Path) -> tuple[TrainState, dict[str, Tensor]]:
    """Read one checkpoint; a damaged one is a `DataError` that names it."""
    try:
        state = TrainState(**json.loads((path / "state.json").read_text(encoding="utf-8")))
        return state, load_file(path / "optimizer.safetensors")
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise DataError(f"checkpoint {path} is damaged: {error}; delete it to resume from the one before") from None
