"""What a model folder holds, checked before a byte of memory is taken.

Invariant: `weight_entries` gives exactly the tensors of `tensor_shapes`, each once, each of its shape, all within the
folder; anything else is one line that names the file and the tensor. No torch here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from leadline.checkpoint.names import is_derived, tensor_shapes
from leadline.checkpoint.safetensors import Entry, read_header
from leadline.errors import CheckpointError
from leadline.model.config import ModelConfig

MANIFEST = "leadline.json"  # of a quantised folder
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def weight_entries(folder: Path, config: ModelConfig) -> list[Entry]:
    """The tensors to load, file by file in the order of their bytes, so that reading is sequential."""
    index = _read_index(folder)
    files = sorted(set(index.values())) if index is not None else [_single_file(folder)]
    paths = {file: _inside(folder, file) for file in files}
    entries: dict[str, Entry] = {}
    for file, path in paths.items():
        for name, entry in read_header(path).items():
            _check_indexed(index, name, file, entry.path)
            if name in entries:
                raise CheckpointError(f"{name} is in {entries[name].path} and in {entry.path}")
            entries[name] = entry
    wanted = tensor_shapes(config)
    kept = {name: entry for name, entry in entries.items() if not is_ignored(name, config)}
    _check_names(folder, wanted, kept, index)
    for name, entry in kept.items():
        if entry.shape != wanted[name]:
            shapes = f"{list(entry.shape)}, config.json asks for {list(wanted[name])}"
            raise CheckpointError(f"{entry.path}: {name} has the shape {shapes}")
    return list(kept.values())


def is_ignored(name: str, config: ModelConfig) -> bool:
    """Rotary tables of old checkpoints; the copy of a tied head, which is the embedding by definition."""
    return is_derived(name) or (config.tie_word_embeddings and name == "lm_head.weight")


def _check_names(
    folder: Path, wanted: Iterable[str], found: Mapping[str, Entry], index: Mapping[str, str] | None
) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        where = folder / (index or {}).get(missing[0], INDEX if index is not None else SINGLE)
        raise CheckpointError(f"{where} lacks {missing[0]}{_and_more(missing)}")
    extra = sorted(found.keys() - set(wanted))
    if extra:
        path = found[extra[0]].path
        raise CheckpointError(f"{path} holds {extra[0]}, which this architecture does not have{_and_more(extra)}")


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1:,} more)" if len(names) > 1 else ""


def _check_indexed(index: Mapping[str, str] | None, name: str, file: str, path: Path) -> None:
    if index is not None and index.get(name) != file:
        told = f"puts it in {index[name]}" if name in index else "does not name it"
        raise CheckpointError(f"{path} holds {name}, but {INDEX} {told}")


def _read_index(folder: Path) -> dict[str, str] | None:
    path = folder / INDEX
    if not path.is_file():
        return None
    raw = read_json(path)
    weights = raw.get("weight_map")
    if not isinstance(weights, dict) or not all(isinstance(file, str) for file in weights.values()):
        raise CheckpointError(f"{path} has no weight_map of names to files")
    return weights


def _single_file(folder: Path) -> str:
    if (folder / SINGLE).is_file():
        return SINGLE
    if any(folder.glob("pytorch_model*.bin")):
        raise CheckpointError(f"{folder} holds pickled weights (.bin), which can run code; convert them to safetensors")
    raise CheckpointError(f"{folder} has no weights: neither {INDEX} nor {SINGLE} is there")


def _inside(folder: Path, file: str) -> Path:
    """The shard's path; a name that points out of the folder is refused, and so is a link that does."""
    name = PurePosixPath(file)
    if name.is_absolute() or ".." in name.parts or "\\" in file or name.suffix != ".safetensors":
        raise CheckpointError(f"{folder / INDEX}: the shard name {file!r} leaves the folder or is no safetensors file")
    path = folder / name
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; {INDEX} names it")
    home, target = folder.resolve(), path.resolve()
    if not any(target.is_relative_to(root) for root in (home, *_hub_blobs(home))):
        raise CheckpointError(f"{path} is a link to {target}, outside the folder")
    return path


def _hub_blobs(folder: Path) -> list[Path]:
    """The hub's cache keeps files in `blobs` and links to them from `snapshots/REVISION`: those links may leave."""
    return [folder.parent.parent / "blobs"] if folder.parent.name == "snapshots" else []


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or one line that names the file."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return raw
