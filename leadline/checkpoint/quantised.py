"""A quantised folder: configuration, tokenizer, one file of weights in kernel layout, and a manifest.

    config.json            the model's, with a quantization_config that other readers refuse by name
    packed.safetensors     every region as a vector of bytes, each on a cache line: what the kernels read, in place
    leadline.json          version, recipe, what each region is, its checksum, how far the model is from the original

Invariant: weights are used only when manifest, configuration and file agree, and a file that was never checked here has
the manifest's checksums.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import mmap
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from leadline import __version__
from leadline.checkpoint.folder import MANIFEST, read_json
from leadline.checkpoint.recipes import Recipe, check_recipe
from leadline.checkpoint.regions import Region, Weights, regions, total_bytes
from leadline.checkpoint.safetensors import BYTES, Entry, header_bytes, read_header, read_into
from leadline.checkpoint.safetensors import Tensor as Stored
from leadline.errors import CheckpointError
from leadline.model.config import ModelConfig
from leadline.ops.cpu import mapped
from leadline.ops.cpu.memory import allocate

FILE = "packed.safetensors"
VERSION = 2
"""Of layout and recipes: a folder of another one is made anew."""

ALWAYS_CHECKED_BYTES = 256 << 20
"""A file up to this size is checked at every load, a larger one when it has changed since it was checked last."""

COPIED_AT_ONCE_BYTES = 256 << 20

_PAGE = 4096
Placement = Literal["auto", "map", "copy"]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """`checksums` by region; `report` is what `leadline quantize` found."""

    recipe: Recipe
    model: str
    checksums: Mapping[str, str]
    bits_per_weight: float
    report: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {"version": VERSION, "leadline": __version__, **dataclasses.asdict(self)}


def is_quantised(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def model_digest(config: ModelConfig) -> str:
    """What of a configuration decides the weights' places."""
    return hashlib.blake2b(json.dumps(config.to_dict(), sort_keys=True).encode(), digest_size=16).hexdigest()


def read_manifest(folder: Path, config: ModelConfig) -> Manifest:
    """The folder's manifest, which must be of this version and for this configuration."""
    path = folder / MANIFEST
    raw = read_json(path)
    if raw.get("version") != VERSION:
        found = f"layout version {raw.get('version')!r}, this leadline reads {VERSION}"
        raise CheckpointError(f"{path}: quantised by leadline {raw.get('leadline', '?')} in {found}; quantise it again")
    try:
        manifest = Manifest(
            check_recipe(raw["recipe"]),
            str(raw["model"]),
            {str(name): str(value) for name, value in raw["checksums"].items()},
            float(raw["bits_per_weight"]),
            dict(raw["report"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(f"{path} is damaged") from None
    if manifest.model != model_digest(config):
        raise CheckpointError(f"{path} is for another model than the config.json beside it")
    return manifest


def check_folder(folder: Path, config: ModelConfig) -> tuple[Manifest, dict[str, Region], dict[str, Entry]]:
    """Everything that can be known without reading the weights."""
    manifest = read_manifest(folder, config)
    wanted = regions(config, manifest.recipe)
    entries = read_header(folder / FILE, BYTES)
    sizes = {name: entry.size for name, entry in entries.items()}
    expected = {name: region.size for name, region in wanted.items()}
    if sizes != expected or manifest.checksums.keys() != expected.keys():
        wrong = next(iter({*sizes.items()} ^ {*expected.items()}), (MANIFEST, 0))[0]
        raise CheckpointError(
            f"{folder / FILE} is not {manifest.recipe} of this model: {wrong} is missing or misplaced"
        )
    first = next(iter(entries.values())).offset
    if any(entries[name].offset - first != region.offset for name, region in wanted.items()) or first % _PAGE:
        raise CheckpointError(f"{folder / FILE} has its regions in other places than this version expects")
    return manifest, wanted, entries


# ---- writing -----------------------------------------------------------------------------------------------------


def create_file(path: Path, wanted: Mapping[str, Region]) -> Tensor:
    """The file at its full size, and its weights as a block of bytes that are written through."""
    header = _header(wanted)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + total_bytes(wanted))
    return open_block(path, len(header), total_bytes(wanted))


def _header(wanted: Mapping[str, Region]) -> bytes:
    return header_bytes([Stored(name, "uint8", (region.size,)) for name, region in wanted.items()], _PAGE)


def data_offset(wanted: Mapping[str, Region]) -> int:
    """Where in the file the weights begin: a page's beginning."""
    return len(_header(wanted))


def open_block(path: Path, offset: int, size: int) -> Tensor:
    """A file's bytes from a page's beginning on, shared with the file."""
    with path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), size, offset=offset)
    return torch.frombuffer(mapped, dtype=torch.uint8)


def checksum(block: Tensor, region: Region) -> str:
    data = block[region.offset : region.offset + region.nbytes].numpy().data
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def checksums(block: Tensor, wanted: Mapping[str, Region]) -> dict[str, str]:
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        return dict(zip(wanted, pool.map(lambda region: checksum(block, region), wanted.values()), strict=True))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    text = json.dumps(manifest.to_dict(), indent=1)
    (folder / MANIFEST).write_text(f"{text}\n", encoding="utf-8")


def config_of(config: ModelConfig, recipe: Recipe) -> dict[str, Any]:
    """config.json of a quantised folder."""
    method = {"quant_method": "leadline", "version": VERSION, "recipe": recipe}
    return {**config.to_dict(), "quantization_config": method}


# ---- reading -----------------------------------------------------------------------------------------------------


def load_block(folder: Path, config: ModelConfig, placement: Placement = "auto") -> tuple[Weights, Manifest]:
    """The folder's weights, checked: mapped from the file, copied into memory of their own, or, where that would take
    long, the one at first and the other while they are in use."""
    manifest, wanted, entries = check_folder(folder, config)
    first = next(iter(entries.values())).offset
    size = total_bytes(wanted)
    if placement == "map":
        block = _mapped(folder / FILE, first, size)
    elif placement == "auto" and size > COPIED_AT_ONCE_BYTES and mapped.supported():
        block = mapped.map_moving(folder / FILE, first, size)
    else:
        block = allocate(size)
        _read(entries, wanted, block)
    if size <= ALWAYS_CHECKED_BYTES or not _stamp(folder).is_file():
        _check(folder, block, wanted, manifest)
    return views(block, wanted), manifest


def views(block: Tensor, wanted: Mapping[str, Region]) -> Weights:
    return {name: region.view(block) for name, region in wanted.items()}


def _mapped(path: Path, offset: int, size: int) -> Tensor:
    """Private: nothing that is done to the tensors reaches the file."""
    with path.open("rb") as file:
        flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
        found = mmap.mmap(file.fileno(), size, flags, mmap.PROT_READ | mmap.PROT_WRITE, offset=offset)
    return torch.frombuffer(found, dtype=torch.uint8)


def _read(entries: Mapping[str, Entry], wanted: Mapping[str, Region], block: Tensor) -> None:
    """Two readers: one thread's copy out of the page cache is slower than memory."""

    def read(name: str) -> None:
        region, entry = wanted[name], entries[name]
        with entry.path.open("rb", buffering=0) as file:
            read_into(file, entry, block[region.offset : region.offset + region.size].numpy().data)

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as pool:
        list(pool.map(read, wanted))


def _check(folder: Path, block: Tensor, wanted: Mapping[str, Region], manifest: Manifest) -> None:
    for name, found in checksums(block, wanted).items():
        if found != manifest.checksums[name]:
            raise CheckpointError(f"{folder / FILE} is damaged: {name} has the wrong checksum; quantise it again")
    stamp = _stamp(folder)
    with contextlib.suppress(OSError):
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.touch()


def _stamp(folder: Path) -> Path:
    """A file whose being there says that these very files were checked before."""
    digest = hashlib.blake2b(digest_size=16)
    for path in (folder / FILE, folder / MANIFEST):
        stat = path.stat()
        digest.update(f"{path.resolve()}\0{stat.st_ino}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "leadline" / "checked" / digest.hexdigest()
