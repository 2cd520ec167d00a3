"""PageStore: full pages of the latent cache on the disk, each in a file of its own under its key.

A page key is a chain of hashes over model, format, salt and ids (`leadline.engine.blocks`), so a file's name says what
it holds and nothing ever has to be invalidated: another model, format or account has other keys. Files carry a checksum
over key and content; what does not match, is expired or cannot be read is removed and counts as not there.

    ROOT/NAMESPACE/about.json      which model and format, for a person who looks
    ROOT/NAMESPACE/ab/abcd...      one page: magic, key, length, checksum, bytes
    ROOT/pins/NAME.json            a named context whose pages stay

Latents can be turned back into what was said, so folders are 0700 and files 0600. A file appears whole under its name
or not at all; several processes may share the folder. The last use of a page is its file's time.

Invariant: `get` returns the very bytes that were put under the key, or None. No torch here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from leadline.errors import ConfigError, NotFound, ResourceError

VERSION = 1
LIMIT_BYTES = 4 << 30
TTL_SECONDS = 30 * 24 * 3600.0
FREE_BYTES = 1 << 30
"""Disk that is left to others: with less than this free, nothing is written."""

_HEADER = struct.Struct("<8s32sQ32s")
_MAGIC = b"LLPAGE\x00" + bytes([VERSION])
_NAME = re.compile(r"[\w][\w.-]{0,63}")
_TRIM_TO = 0.9  # of the limit: a full store is not trimmed again for every page
_STALE_SECONDS = 600.0  # a half-written file this old belongs to nobody


def default_root() -> Path:
    """`leadline/pages` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leadline" / "pages"


@dataclasses.dataclass(frozen=True, slots=True)
class Pin:
    """A named context: its pages are kept whatever their age and the store's size."""

    name: str
    model: str
    namespace: str
    tokens: int
    keys: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Holding:
    """What the store has of one model and format."""

    namespace: str
    model: str
    format: str
    pages: int
    bytes: int


class PageStore:
    """One namespace of the folder `root` to read and write, and the whole folder to keep within `limit` bytes.

    Any thread may call `get`; `put`, `remove` and `trim` are for one thread at a time.
    """

    def __init__(
        self,
        root: Path,
        namespace: str = "none",
        *,
        about: dict[str, str] | None = None,
        limit: int = LIMIT_BYTES,
        ttl: float = TTL_SECONDS,
        reserve: int = FREE_BYTES,
    ) -> None:
        self.root, self.folder = root, root / namespace
        self.namespace, self.about = namespace, about or {}
        self.limit, self.ttl, self.reserve = limit, ttl, reserve
        self._sizes: dict[Path, tuple[float, int]] | None = None  # last use and size, as last seen
        self._total = 0

    # ---- pages -------------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> memoryview | None:
        """The page's bytes, and a note that it was used."""
        path = self._path(key)
        try:
            used = path.stat().st_mtime
            raw = path.read_bytes()
        except OSError:
            return None
        payload = _checked(raw, key)
        if payload is None or (self._expired(used) and key.hex() not in self._pinned()):
            _remove(path)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return payload

    def put(self, key: bytes, payload: bytes | memoryview) -> bool:
        """Keep a page; False when it was there or there is no room for it. Raises OSError when the disk fails."""
        path = self._path(key)
        size = _HEADER.size + len(payload)
        if path.exists() or size > self.limit or not self._has_room(size):
            return False
        if not self.folder.is_dir():
            self._make_namespace()
        path.parent.mkdir(mode=0o700, exist_ok=True)
        _write(path, _HEADER.pack(_MAGIC, key, len(payload), _digest(key, payload)), payload)
        self._seen()[path] = (time.time(), size)
        self._total += size
        if self._total > self.limit:
            self.trim()
        return True

    def remove(self, key: bytes) -> None:
        path = self._path(key)
        _remove(path)
        if self._sizes is not None and (known := self._sizes.pop(path, None)) is not None:
            self._total -= known[1]

    def _path(self, key: bytes) -> Path:
        name = key.hex()
        return self.folder / name[:2] / name

    def _expired(self, used: float) -> bool:
        return time.time() - used > self.ttl

    def _has_room(self, size: int) -> bool:
        home = next(path for path in (self.root, *self.root.parents) if path.exists())
        return shutil.disk_usage(home).free - size > self.reserve

    def _make_namespace(self) -> None:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root.chmod(0o700)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        _write(self.folder / "about.json", json.dumps(self.about).encode())

    # ---- size and age ------------------------------------------------------------------------------------------

    def trim(self) -> None:
        """Remove what has expired, then the least recently used down to nine tenths of the limit; never what is
        pinned."""
        self._sizes = None  # other processes read and write here too
        files, pinned = self._seen(), self._pinned()
        target = self.limit if self._total <= self.limit else self.limit * _TRIM_TO
        loose = sorted((used, path) for path, (used, _) in files.items() if path.name not in pinned)
        for used, path in loose:
            if not self._expired(used) and self._total <= target:
                break
            _remove(path)
            self._total -= files.pop(path)[1]

    def _seen(self) -> dict[Path, tuple[float, int]]:
        """Every page of the folder with its last use and size; looked for once, then kept."""
        if self._sizes is None:
            self._sizes = {path: (stat.st_mtime, stat.st_size) for path, stat in _pages(self.root)}
            self._total = sum(size for _, size in self._sizes.values())
        return self._sizes

    # ---- named contexts ----------------------------------------------------------------------------------------

    def pin(self, name: str, keys: Sequence[bytes], *, model: str, tokens: int) -> Pin:
        """Keep these pages, which are in the store, under a name. A name is used once."""
        path = self._pin_path(name)
        if path.exists():
            raise ConfigError(f"a context named {name!r} is pinned already; unpin it first")
        missing = [key for key in keys if not self._path(key).exists()]
        if missing:
            raise ResourceError(f"{len(missing)} of {len(keys)} pages are not on the disk; is there room for them?")
        held = sum(self._path(key).stat().st_size for key in keys)
        held += sum(size for found, (_, size) in self._seen().items() if found.name in self._pinned())
        if held > self.limit * _TRIM_TO:
            raise ResourceError(f"pinned pages would take {held:,} bytes of the {self.limit:,} that the cache may have")
        pin = Pin(name, model, self.namespace, tokens, tuple(key.hex() for key in keys))
        path.parent.mkdir(mode=0o700, exist_ok=True)
        _write(path, json.dumps(dataclasses.asdict(pin)).encode())
        return pin

    def unpin(self, name: str) -> None:
        if not _remove(self._pin_path(name)):
            raise NotFound(f"no context named {name!r} is pinned")

    def pins(self) -> list[Pin]:
        """Named contexts in the order of their names; a damaged file is none."""
        found = (_read_pin(path) for path in sorted((self.root / "pins").glob("*.json")))
        return [pin for pin in found if pin is not None]

    def _pin_path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name!r} is no name for a context: up to 64 letters, digits, dots, dashes")
        return self.root / "pins" / f"{name}.json"

    def _pinned(self) -> set[str]:
        return {key for pin in self.pins() for key in pin.keys}

    # ---- for a person ------------------------------------------------------------------------------------------

    def holdings(self) -> list[Holding]:
        """What is kept, by model and format."""
        counts: dict[str, list[int]] = {}
        for path, stat in _pages(self.root):
            count = counts.setdefault(path.parent.parent.name, [0, 0])
            count[0] += 1
            count[1] += stat.st_size
        return [self._holding(namespace, *count) for namespace, count in sorted(counts.items())]

    def _holding(self, namespace: str, pages: int, size: int) -> Holding:
        about: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            about = json.loads((self.root / namespace / "about.json").read_text())
        return Holding(namespace, str(about.get("model", "?")), str(about.get("format", "?")), pages, size)

    def clear(self) -> tuple[int, int]:
        """Remove every page and every pin, of all models: (files, bytes)."""
        held = self.holdings()
        if self.root.is_dir():
            for folder in self.root.iterdir():
                shutil.rmtree(folder, ignore_errors=True)
        self._sizes = None
        return sum(each.pages for each in held), sum(each.bytes for each in held)


def namespace_of(*fields: str) -> str:
    """A folder's name for one model in one format."""
    digest = hashlib.blake2b(digest_size=10)
    for field in (str(VERSION), *fields):
        digest.update(len(field.encode()).to_bytes(8, "little") + field.encode())
    return digest.hexdigest()


def _digest(key: bytes, payload: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(key, digest_size=32)
    digest.update(payload)
    return digest.digest()


def _checked(raw: bytes, key: bytes) -> memoryview | None:
    """The content of a page's file, if it is whole and belongs to the key."""
    if len(raw) < _HEADER.size:
        return None
    magic, name, length, digest = _HEADER.unpack_from(raw)
    payload = memoryview(raw)[_HEADER.size :]
    whole = magic == _MAGIC and name == key and length == len(payload)
    return payload if whole and _digest(key, payload) == digest else None


def _write(path: Path, *parts: bytes | memoryview) -> None:
    """The whole file or none. Not synced: after a power cut the checksum finds what the disk has lost."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            for part in parts:
                file.write(part)
        new.replace(path)
    except OSError:
        _remove(new)
        raise


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True


def _pages(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every page's file; what a killed process left half-written is removed on the way."""
    for folder in root.glob("*/[0-9a-f][0-9a-f]"):
        with contextlib.suppress(OSError):
            for entry in list(os.scandir(folder)):
                with contextlib.suppress(OSError):
                    stat = entry.stat(follow_symlinks=False)
                    if not entry.name.startswith("."):
                        yield Path(entry.path), stat
                    elif time.time() - stat.st_mtime > _STALE_SECONDS:
                        _remove(Path(entry.path))


def _read_pin(path: Path) -> Pin | None:
    try:
        raw = json.loads(path.read_text())
        return Pin(raw["name"], raw["model"], raw["namespace"], int(raw["tokens"]), _hex_keys(raw["keys"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _hex_keys(keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(str(key) for key in keys)
