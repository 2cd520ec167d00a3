"""`leadline pull ID --quantize RECIPE`: a hub's model in fewer bits, never on this disk in many.

One shard at a time is downloaded, checked, quantised into its places in the new file, and removed. A run that ended in
the middle, however it ended, is continued: what is done is in a journal beside the file, and a shard whose download
broke off goes on from where it was.

Invariant: the disk never holds more than the result and one shard; memory never more than the result and one tensor;
the folder appears under its name when it is whole and checksummed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from leadline.checkpoint.folder import INDEX, is_ignored
from leadline.checkpoint.hub import HuggingFace, ModelScope, RemoteFile, Repository, download
from leadline.checkpoint.machine import check_space
from leadline.checkpoint.names import tensor_shapes
from leadline.checkpoint.pack import Damage, Packer, active_bits, read_tensors
from leadline.checkpoint.progress import progress_bar
from leadline.checkpoint.quantise import make_report, write_folder
from leadline.checkpoint.quantised import (
    FILE,
    VERSION,
    checksums,
    create_file,
    data_offset,
    is_quantised,
    model_digest,
    read_manifest,
)
from leadline.checkpoint.quantised import open_block as open_block_at
from leadline.checkpoint.recipes import Recipe
from leadline.checkpoint.regions import Region, regions, total_bytes
from leadline.checkpoint.safetensors import read_header
from leadline.checkpoint.save import COPIED, sync
from leadline.checkpoint.source import Source
from leadline.errors import CheckpointError, Conflict
from leadline.model.config import DTYPE_BYTES, ModelConfig

if TYPE_CHECKING:
    import httpx2

_JOURNAL = "pull.json"
_SMALL = {"config.json", INDEX, *COPIED}


class Hub(Protocol):
    """What a pull asks of a hub; `leadline.checkpoint.hub` has two."""

    @property
    def name(self) -> str: ...

    def repository(self) -> Repository: ...

    def client(self) -> httpx2.Client: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Estimate:
    """What a pull will take, in bytes, before it begins; `tokens_per_second` at most, when the bandwidth is known."""

    name: str
    recipe: Recipe
    licence: str
    parameters: int
    download: int
    disk: int
    memory: int
    active_bits: float
    tokens_per_second: float | None = None


@dataclasses.dataclass
class Journal:
    """What is done: shards by name, and the damage that quantising them did."""

    key: str
    shards: list[str]
    tensors: list[str]
    damage: dict[str, list[float]]


class Pulled:
    """A hub's model as a source that is only ever kept in fewer bits."""

    def __init__(self, hub: HuggingFace | ModelScope, recipe: Recipe) -> None:
        self.hub, self.recipe = hub, recipe
        self.folder = quantised_folder(hub.name, recipe)

    @property
    def name(self) -> str:
        return self.hub.name

    @property
    def reference(self) -> str:
        return self.hub.reference

    @property
    def download_folder(self) -> Path | None:
        return self.folder

    def read_config(self) -> ModelConfig:
        return ModelConfig.from_folder(self.folder) if is_quantised(self.folder) else self.hub.read_config()

    def fetch(self, *, progress: bool | None = None) -> Path:
        return pull(self.hub, self.read_config(), self.recipe, progress=progress)


def in_fewer_bits(source: Source, recipe: Recipe) -> Source:
    """A hub's model is pulled shard by shard; a folder here stays what it is."""
    return Pulled(source, recipe) if isinstance(source, HuggingFace | ModelScope) else source


def quantised_folder(name: str, recipe: Recipe) -> Path:
    """Where a pulled model is kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "leadline" / "quantised" / f"{name.replace('/', '--')}-{recipe}"


def estimate(
    hub: Hub, config: ModelConfig, repository: Repository, recipe: Recipe, bandwidth: float | None = None
) -> Estimate:
    found = regions(config, recipe)
    shards = shard_files(repository)
    bits = active_bits(found, config)
    active = config.parameters(active=True)
    largest = max((shard.size for shard in shards), default=0)
    tensor = max((region.parameters // region.count for region in found.values()), default=0)
    return Estimate(
        name=hub.name,
        recipe=recipe,
        licence=repository.licence,
        parameters=config.parameters(),
        download=sum(file.size for file in repository.files),
        disk=total_bytes(found) + largest,
        memory=total_bytes(found) + tensor * DTYPE_BYTES[config.dtype],
        active_bits=bits,
        tokens_per_second=None if bandwidth is None else bandwidth / (active * bits / 8),
    )


def pull(
    hub: Hub, config: ModelConfig, recipe: Recipe, target: Path | None = None, *, progress: bool | None = None
) -> Path:
    """The quantised folder, made or there already. Raises `ResourceError` before anything is downloaded that does not
    fit, `ConnectionFailed` when a download broke off too often: the same again continues it."""
    target = target or quantised_folder(hub.name, recipe)
    if is_quantised(target) and read_manifest(target, config).recipe == recipe:
        return target
    if target.exists():
        raise CheckpointError(f"{target} is there already and is no {recipe} of this model")
    repository = hub.repository()
    work = target.with_name(f".{target.name}.partial")
    work.mkdir(parents=True, exist_ok=True)
    with _alone(work):
        _pull(hub, config, repository, recipe, work, progress)
        work.rename(target)
        sync(target.parent)
    return target


@contextlib.contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Two processes must not write one file: the second is told."""
    with (work / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Conflict(f"another process is pulling into {work}") from None
        yield


def _pull(
    hub: Hub, config: ModelConfig, repository: Repository, recipe: Recipe, work: Path, progress: bool | None
) -> None:
    found, shards = regions(config, recipe), shard_files(repository)
    journal = _read_journal(work, f"{VERSION} {recipe} {model_digest(config)} {repository.revision}")
    block = _open(work, found, journal)
    left = [shard for shard in shards if shard.path not in journal.shards]
    check_space(work, _missing_bytes(work, found, left))
    packer = Packer(config, recipe, block)
    packer.damage |= {name: Damage(*sums) for name, sums in journal.damage.items()}
    total = sum(file.size for file in repository.files if file.path not in journal.shards)
    with hub.client() as client, progress_bar(f"pulling {hub.name}", total, progress) as advance:
        for file in (file for file in repository.files if file.path in _SMALL):
            if not (work / file.path).is_file():
                download(client, repository.url(file.path), work / file.path, file, advance)
        for shard in left:
            path = work / shard.path
            if not path.is_file():
                download(client, repository.url(shard.path), path, shard, advance)
            _pack_shard(path, packer, journal)
            _note(work, journal, shard, packer)
            path.unlink()
    _check_complete(config, journal, hub.name)
    report = make_report(config, recipe, found, packer.damage, None)
    (work / INDEX).unlink(missing_ok=True)
    write_folder(work, work, config, report, checksums(block, found))
    for name in (_JOURNAL, ".lock"):
        (work / name).unlink(missing_ok=True)


def shard_files(repository: Repository) -> list[RemoteFile]:
    """The weights, in the order of their names."""
    return sorted((file for file in repository.files if file.path.endswith(".safetensors")), key=lambda file: file.path)


def _pack_shard(path: Path, packer: Packer, journal: Journal) -> None:
    shapes = tensor_shapes(packer.config)
    entries = [entry for entry in read_header(path).values() if not is_ignored(entry.name, packer.config)]
    for entry in entries:
        if entry.shape != shapes.get(entry.name):
            raise CheckpointError(f"{path.name}: {entry.name} of shape {list(entry.shape)} is not this architecture's")
    for name, weight in read_tensors(entries):
        packer.add(name, weight)
    journal.tensors += [entry.name for entry in entries]


def _check_complete(config: ModelConfig, journal: Journal, name: str) -> None:
    missing = [tensor for tensor in tensor_shapes(config) if tensor not in set(journal.tensors)]
    if missing:
        raise CheckpointError(f"{name} lacks {missing[0]} and {len(missing) - 1} other tensors")


# ---- what survives a kill ------------------------------------------------------------------------------------------


def _read_journal(work: Path, key: str) -> Journal:
    """The journal of an earlier run for the very same result; else an empty folder and a new one."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        journal = Journal(**json.loads((work / _JOURNAL).read_text()))
        if journal.key == key:
            return journal
    for path in work.iterdir():
        if path.name != ".lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    journal = Journal(key, [], [], {})
    _write_journal(work, journal)
    return journal


def _open(work: Path, found: Mapping[str, Region], journal: Journal) -> Tensor:
    path = work / FILE
    if journal.shards and path.is_file():
        return open_block_at(path, data_offset(found), total_bytes(found))
    journal.shards, journal.tensors, journal.damage = [], [], {}
    return create_file(path, found)


def _missing_bytes(work: Path, found: Mapping[str, Region], left: list[RemoteFile]) -> int:
    """Disk that is still to be taken: what the sparse file lacks, and one shard."""
    taken = (work / FILE).stat().st_blocks * 512
    return max(total_bytes(found) - taken, 0) + max((shard.size for shard in left), default=0)


def _note(work: Path, journal: Journal, shard: RemoteFile, packer: Packer) -> None:
    """A shard is done: first its weights go to the disk, then the word."""
    with (work / FILE).open("r+b") as file:
        os.fsync(file.fileno())
    journal.shards.append(shard.path)
    journal.damage = {name: [damage.weights, damage.errors] for name, damage in packer.damage.items()}
    _write_journal(work, journal)


def _write_journal(work: Path, journal: Journal) -> None:
    new = work / f"{_JOURNAL}.new"
    with new.open("w") as file:
        json.dump(dataclasses.asdict(journal), file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(work / _JOURNAL)
