"""Training checkpoints: safetensors and JSON only, written whole or not at all.

    OUT/checkpoints/step-00000500/{state.json, optimizer.safetensors}

A folder gets its final name by a rename after everything in it is on the disk and loses it by a rename before anything
in it is deleted, so whatever bears the name is complete.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from pathlib import Path
from types import TracebackType

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from leadline.checkpoint.save import sync
from leadline.errors import DISK_FULL, ConfigError, DataError, ResourceError


@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a resumed run needs beside the tensors; `recipe` refuses a resume under another one."""

    step: int
    tokens: int
    recipe: str


def save(folder: Path, state: TrainState, tensors: dict[str, Tensor], keep: int) -> None:
    """Write `step-N` under `folder`, unless it is there, and delete all but the newest `keep`."""
    final = folder / f"step-{state.step:08d}"
    _sweep(folder)
    if not final.exists():
        try:
            _write(final, state, tensors)
        except (OSError, SafetensorError) as error:
            _sweep(folder)
            raise ResourceError(f"{final} was not written ({_reason(error)}); {_newest(folder)}") from None
    for old in complete(folder)[:-keep]:
        old.rename(_hidden(old))
    _sweep(folder)


class Writer:
    """Saves in a thread of its own while training goes on. Used as a context, whose end waits; what failed is raised at
    the next call. One checkpoint at a time: a save waits for the one before."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self._thread: threading.Thread | None = None
        self._failure: ResourceError | None = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join()

    def save(self, state: TrainState, tensors: dict[str, Tensor]) -> None:
        """Copy the tensors now and write the copies; the next step changes the originals."""
        self.wait()
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        self._thread = threading.Thread(target=self._save, args=(state, copies), name="checkpoint")
        self._thread.start()

    def _save(self, state: TrainState, tensors: dict[str, Tensor]) -> None:
        try:
            save(self.folder, state, tensors, self.keep)
        except ResourceError as error:
            self._failure = error

    def wait(self) -> None:
        """Return when nothing is being written, or raise why it was not."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure


def _write(final: Path, state: TrainState, tensors: dict[str, Tensor]) -> None:
    partial = _hidden(final)
    partial.mkdir(parents=True)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, partial / "optimizer.safetensors")
    (partial / "state.json").write_text(json.dumps(dataclasses.asdict(state)), encoding="utf-8")
    for path in (*partial.iterdir(), partial):
        sync(path)
    partial.rename(final)
    sync(final.parent)


def _hidden(step: Path) -> Path:
    """The name of a checkpoint that is being written or deleted."""
    return step.with_name(f".{step.name}.partial")


def _sweep(folder: Path) -> None:
    """What a kill left half-written or half-deleted."""
    for partial in folder.glob(".step-*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def _reason(error: OSError | SafetensorError) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return f"the disk is full: {error.strerror}" if error.errno in DISK_FULL else str(error.strerror)
    return str(error)


def _newest(folder: Path) -> str:
    found = complete(folder)
    return f"the newest complete checkpoint is {found[-1].name}" if found else "there is no checkpoint yet"


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


def newest(found: list[Path], recipe: str) -> tuple[TrainState, dict[str, Tensor]] | None:
    """What a run goes on from: the last of `found`, and only under the recipe that it was written under."""
    if not found:
        return None
    state, tensors = load(found[-1])
    if state.recipe != recipe:
        raise ConfigError(f"{found[-1]} was written under another recipe; choose another `out`, or delete it")
    return state, tensors
