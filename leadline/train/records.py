"""OUT/metrics.jsonl: what a run told, a JSON line a record, each with its step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

from leadline.errors import DataError, ResourceError


class Records:
    """The file while a run writes to it. A record that was told is there after any kill."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: IO[bytes] | None = None

    def open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("ab", buffering=0)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()

    def write(self, record: dict[str, Any]) -> None:
        """Raise `ResourceError` where the disk is full."""
        assert self.file is not None
        try:
            self.file.write(json.dumps(record).encode() + b"\n")
        except OSError as error:
            raise ResourceError(f"{self.path} cannot be written: {error.strerror}; the checkpoints are whole") from None

    def rewind(self, step: int) -> None:
        """Drop the records of later steps than `step`, which are done again, and a line that a kill tore."""
        if not self.path.exists():
            return
        kept = [line for line in self.path.read_bytes().split(b"\n") if 0 <= _step_of(line) <= step]
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_bytes(b"".join(line + b"\n" for line in kept))
        partial.replace(self.path)


def read_records(path: Path) -> list[dict[str, Any]]:
    """The whole records of a metrics file; a line that a kill tore is left out."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    return [json.loads(line) for line in lines if _step_of(line) >= 0]


def _step_of(line: bytes) -> int:
    """The step a record is about, -1 for what is no record."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1
