"""Where a benchmark's data comes from: a folder in its official layout, or a data set of the Hugging Face hub.

`--data DIR` may be the benchmark's own folder or one that holds a folder of the benchmark's name. Tables are read from
CSV, JSON, JSON lines (plain or gzipped) and Parquet alike, as rows of named columns.

Invariant: nothing that was downloaded is ever run, and files are read in the order of their names.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from leadline.errors import ConnectionFailed, DataError

Row = dict[str, Any]
_TABLES = (".csv", ".json", ".jsonl", ".jsonl.gz", ".parquet")


@dataclasses.dataclass(frozen=True)
class Source:
    """The data of the benchmark `name`: what was given with --data, or else what the hub has."""

    name: str
    given: Path | None = None
    hub: str = ""
    hub_files: tuple[str, ...] = ()  # which of the hub's files; none: all
    folders: tuple[str, ...] = ()  # other names of its folder
    download: Callable[[str, tuple[str, ...]], Path] | None = None  # None: huggingface_hub's, for tests another

    @property
    def folder(self) -> Path:
        """The benchmark's folder; downloads it when nothing was given."""
        if self.given is None:
            return self._downloaded()
        if not self.given.is_dir():
            raise DataError(f"{self.given} is not a folder", param="data")
        own = (self.given / name for name in (self.name, *self.folders))
        return next((folder for folder in own if folder.is_dir()), self.given)

    def _downloaded(self) -> Path:
        if not self.hub:
            raise DataError(
                f"{self.name} is not on the hub in its official layout: give the folder of its files with --data",
                param="data",
            )
        folder = (self.download or _snapshot)(self.hub, self.hub_files)
        return _unpacked(folder, self.name)

    def files(self, *patterns: str) -> list[Path]:
        """The files of the first pattern that any matches; none: an empty list."""
        folder = self.folder
        for pattern in patterns:
            found = sorted(path for path in folder.glob(pattern) if path.is_file())
            if found:
                return found
        return []

    def tables(self, *patterns: str, columns: tuple[str, ...] = ()) -> list[tuple[str, list[Row]]]:
        """(file's stem, rows) of each file of the first pattern that matches any. `columns` names those of CSV files
        without a header."""
        found = self.files(*patterns)
        if not found:
            raise DataError(f"{self.name} expects {' or '.join(patterns)} in {self.folder}", param="data")
        return [(path.name.split(".")[0], read_table(path, columns)) for path in found]

    def rows(self, *patterns: str) -> list[Row]:
        return [row for _, rows in self.tables(*patterns) for row in rows]


def read_table(path: Path, columns: tuple[str, ...] = ()) -> list[Row]:
    """Rows of named columns; the file and, where there are lines, the line are named in what is wrong."""
    if not path.name.endswith(_TABLES):
        raise DataError(f"{path} is none of {', '.join(_TABLES)}")
    try:
        if path.suffix == ".parquet":
            return _parquet(path)
        text = _text(path)
        if path.suffix == ".csv":
            return _csv(text, columns)
        return list(_json(text, path))
    except (OSError, EOFError, ValueError, csv.Error, zlib.error) as error:  # pyarrow's are ValueErrors
        raise DataError(f"cannot read {path}: {error}") from None


def _text(path: Path) -> str:
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")


def _csv(text: str, columns: tuple[str, ...]) -> list[Row]:
    return list(csv.DictReader(io.StringIO(text, newline=""), columns or None))


def _json(text: str, path: Path) -> Iterator[Row]:
    """One document, a list of rows, or a row a line (split at line feeds only: rows may hold U+2028)."""
    try:
        whole = json.loads(text)
    except ValueError:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield _row(line, f"{path}:{number}")
        return
    yield from whole if isinstance(whole, list) else [whole]


def _row(line: str, place: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{place} is not a JSON object")
    return row


def _parquet(path: Path) -> list[Row]:
    import pyarrow.parquet

    rows: list[Row] = pyarrow.parquet.read_table(path).to_pylist()
    return rows


def text_of(row: Row, *names: str, place: str) -> str:
    """The first of these columns that the row has, as text."""
    for name in names:
        if row.get(name) is not None:
            return str(row[name])
    raise DataError(f"{place} has no {' or '.join(names)}")


def pick(rows: Sequence[Row], column: str, openings: Sequence[str], count: int) -> list[Row]:
    """The rows that open so, in this order, and the first others when those do not suffice."""
    known = [next((row for row in rows if row[column].startswith(opening)), None) for opening in openings]
    found = [row for row in known if row is not None]
    return [*found, *(row for row in rows if row not in found)][:count]


def _snapshot(hub: str, files: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub, repo_type="dataset", allow_patterns=list(files) or None))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ConnectionFailed(f"cannot get {hub} from the hub ({reason}); give its files with --data") from None


def _unpacked(folder: Path, name: str) -> Path:
    """Data sets that are one archive are unpacked beside the other caches; `zipfile` keeps names inside the folder."""
    archives = sorted(folder.glob("*.zip"))
    if not archives or any(path.suffix in (".csv", ".jsonl") for path in folder.iterdir()):
        return folder
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leadline" / "eval" / name
    with zipfile.ZipFile(archives[-1]) as archive:
        archive.extractall(cache)
    return cache
