"""The safetensors file format, read and written by its specification: 8 bytes of header length, JSON, raw bytes.

The reader takes bytes with plain reads, never through a memory map: pages of a mapped file count as the process's
memory, and a model would be held twice while it loads. It trusts nothing: every offset is checked against the file
before a byte is used.

Invariant: `read_header` returns only entries that lie in the file, one after the other without gap or overlap, each as
long as its shape and type say. No torch here.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from leadline.errors import CheckpointError

# The format's name of each element type -> ours (torch's), and its bytes.
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
BYTES = {"U8": "uint8"}
"""Only in our own quantised folders: a weight of the hub's is never a byte."""

FORMAT_NAMES = {ours: theirs for theirs, ours in (DTYPES | BYTES).items()}
ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "uint8": 1}

MAX_HEADER_BYTES = 100_000_000  # the specification's own limit
_LENGTH_BYTES = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file. `offset` counts from the beginning of the file; `dtype` is torch's name."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def read_header(path: Path, kinds: Mapping[str, str] = DTYPES) -> dict[str, Entry]:
    """Every tensor of the file, in the order of its bytes; `kinds` are the types it may hold. Raises `CheckpointError`
    naming the file and the tensor."""
    try:
        with path.open("rb") as file:
            file_size = os.fstat(file.fileno()).st_size
            raw, start = _read_json(file, file_size, path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    entries = [_entry(path, name, value, start, kinds) for name, value in raw.items() if name != "__metadata__"]
    entries.sort(key=lambda entry: (entry.offset, entry.size))
    _check_layout(path, entries, start, file_size)
    return {entry.name: entry for entry in entries}


def _read_json(file: BinaryIO, file_size: int, path: Path) -> tuple[dict[str, Any], int]:
    """The header's object, and where the tensors' bytes begin."""
    if file_size < _LENGTH_BYTES:
        raise CheckpointError(f"{path} is truncated: {file_size} bytes are no safetensors file")
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if length > min(file_size - _LENGTH_BYTES, MAX_HEADER_BYTES):
        raise CheckpointError(f"{path} is damaged or truncated: its header claims {length:,} of {file_size:,} bytes")
    try:
        raw = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has a damaged header: {error}") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} has a damaged header: it is not a JSON object")
    return raw, _LENGTH_BYTES + length


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is in it twice")
    return values


def _entry(path: Path, name: str, value: Any, start: int, kinds: Mapping[str, str]) -> Entry:
    try:
        kind, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
        numbers = [*shape, begin, end]
    except (TypeError, KeyError, ValueError):
        raise CheckpointError(f"{path}: {name} has a damaged header entry") from None
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise CheckpointError(f"{path}: {name} has sizes or offsets that are not whole numbers")
    if kind not in kinds:
        raise CheckpointError(f"{path}: {name} is of type {kind}, which is not one of {', '.join(kinds)}")
    expected = math.prod(shape) * ITEM_BYTES[kinds[kind]]
    if end - begin != expected:
        raise CheckpointError(f"{path}: {name} takes {end - begin:,} bytes, its shape {list(shape)} {expected:,}")
    return Entry(path, name, kinds[kind], shape, start + begin, end - begin)


def _check_layout(path: Path, entries: Sequence[Entry], start: int, file_size: int) -> None:
    position = start
    for entry in entries:
        if entry.offset != position:
            fault = "overlaps the tensor before it" if entry.offset < position else "leaves a gap before it"
            raise CheckpointError(f"{path}: {entry.name} {fault}")
        position += entry.size
        if position > file_size:
            missing = position - file_size
            raise CheckpointError(f"{path} is truncated: {entry.name} ends {missing:,} bytes after the file does")
    if position != file_size:
        raise CheckpointError(f"{path} has {file_size - position:,} bytes after its last tensor")


def read_into(file: BinaryIO, entry: Entry, buffer: memoryview, start: int = 0) -> None:
    """Fill `buffer` with the tensor's bytes from `start` on; `file` was opened without buffering."""
    file.seek(entry.offset + start)
    done = 0
    while done < len(buffer):
        try:
            count: int | None = file.readinto(buffer[done:])  # type: ignore[attr-defined]
        except OSError as error:
            raise CheckpointError(f"{entry.path}: {entry.name} cannot be read: {error.strerror or error}") from None
        if not count:  # it was long enough when the header was checked
            raise CheckpointError(f"{entry.path} is truncated: {entry.name} ends after the file does")
        done += count


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """What `header_bytes` needs to know of a tensor that will be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def header_bytes(tensors: Iterable[Tensor], align: int = 8) -> bytes:
    """The beginning of a file that holds these tensors in this order; the first one begins at a multiple of `align`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        offsets = [position, position + tensor.size]
        header[tensor.name] = {
            "dtype": FORMAT_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
        position += tensor.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + _LENGTH_BYTES) % align)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text
