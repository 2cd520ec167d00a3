"""A model back into a folder that the hub's other readers know, bit for bit under the official names.

Invariant: a folder appears whole or not at all. Everything is written beside it under a hidden name, flushed to the
disk and renamed into place; a full disk or Ctrl-C leaves what was there before.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from leadline.checkpoint.folder import INDEX, SINGLE
from leadline.checkpoint.machine import check_space
from leadline.checkpoint.names import tensor_shapes
from leadline.checkpoint.safetensors import Tensor, header_bytes
from leadline.checkpoint.weights import memory_of, tensor_of
from leadline.errors import DISK_FULL, CheckpointError, LeadlineError, ResourceError
from leadline.model.reward import RewardModel
from leadline.model.transformer import DeepseekV2

Network = DeepseekV2 | RewardModel
MAX_SHARD_BYTES = 4 << 30
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "generation_config.json",
    "LICENSE",
)
"""What a folder made from another one keeps of it."""

_OURS = {"config.json", "leadline.json", INDEX, *COPIED}


def save_model(
    model: Network,
    folder: Path,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    dtype: torch.dtype | None = None,
    tokenizer_from: Path | None = None,
    generation: Mapping[str, Any] | None = None,
) -> None:
    """Write `model` to `folder`; a model folder already there stays until the new one is complete.

    `dtype` None keeps each tensor as it is. From `tokenizer_from`, the folder the model came from, the tokenizer, the
    generation defaults and the licence are copied; `generation` overrides the defaults.
    """
    tensors = stored_tensors(model, dtype)
    kinds = {tensor.dtype for tensor in tensors}
    config = {**model.config.to_dict(), "torch_dtype": kinds.pop() if len(kinds) == 1 else model.config.dtype}
    with replacing(folder) as new:
        check_space(folder, sum(tensor.size for tensor in tensors))
        _write_json(new / "config.json", config)
        for name in COPIED:
            if tokenizer_from is not None and (tokenizer_from / name).is_file():
                shutil.copyfile(tokenizer_from / name, new / name)
        if generation is not None:
            _write_json(new / "generation_config.json", generation)
        write_weights(model, new, tensors, max_shard_bytes)


def stored_tensors(model: Network, dtype: torch.dtype | None = None) -> list[Tensor]:
    """The official tensors of a model as the files will hold them."""
    parameters, tensors = dict(model.named_parameters()), []
    for name, shape in tensor_shapes(model.config).items():
        kind = dtype or tensor_of(parameters, name, model.config).dtype
        tensors.append(Tensor(name, str(kind).removeprefix("torch."), shape))
    return tensors


def write_weights(model: Network, folder: Path, tensors: Sequence[Tensor], max_shard_bytes: int) -> None:
    """model.safetensors, or numbered shards of at most `max_shard_bytes` with their index."""
    shards = split(tensors, max_shard_bytes)
    if len(shards) == 1:
        _write_file(model, folder / SINGLE, shards[0])
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_file(model, folder / file, shard)
        weight_map |= {tensor.name: file for tensor in shard}
    total = sum(tensor.size for tensor in tensors)
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def split(tensors: Sequence[Tensor], max_shard_bytes: int) -> list[list[Tensor]]:
    """Tensors in order into shards; a tensor larger than a shard has one of its own."""
    shards: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.size > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.size
    return shards


def _write_file(model: Network, path: Path, tensors: Sequence[Tensor]) -> None:
    parameters = dict(model.named_parameters())
    with path.open("wb", buffering=0) as file:
        _write_all(file.fileno(), memoryview(header_bytes(tensors)))
        for tensor in tensors:
            values = tensor_of(parameters, tensor.name, model.config)
            stored = values.to(device="cpu", dtype=getattr(torch, tensor.dtype)).contiguous()
            _write_all(file.fileno(), memory_of(stored))
        os.fsync(file.fileno())


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to write to, which becomes `folder` when the block ends well and disappears when it does not."""
    folder = folder.absolute()
    _check_replaceable(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise _write_error(folder, error) from None
    try:
        new.chmod(0o755)  # mkdtemp's own mode would hide the model from the user's group
        yield new
        sync(new)
        _swap(new, folder)
    except OSError as error:
        raise _write_error(folder, error) from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _check_replaceable(folder: Path) -> None:
    """Only what a model is made of is ever replaced: a file of the user's own would be lost with the folder."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file, not a folder")
    foreign = sorted(p.name for p in folder.iterdir() if p.name not in _OURS and p.suffix != ".safetensors")
    if foreign:
        raise CheckpointError(f"{folder} holds {foreign[0]}, which is no part of a model; choose another folder")


def _swap(new: Path, folder: Path) -> None:
    if not folder.exists():
        new.rename(folder)
    else:
        old = new.with_name(f"{new.name}.old")
        folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    sync(folder.parent)


def sync(path: Path) -> None:
    """Have a file on the disk, or a folder's own entries: a rename in it is durable only then."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_error(folder: Path, error: OSError) -> LeadlineError:
    if error.errno in DISK_FULL:
        return ResourceError(f"{folder} was not written, the disk is full ({error.strerror}); nothing was changed")
    return CheckpointError(f"{folder} cannot be written: {error.strerror or error}")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
