"""JSONL files of what a stage learns from: a record a line, and the order in which each epoch goes over them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from leadline.errors import DataError

Record = TypeVar("Record")


def read_lines(path: Path) -> list[tuple[str, bytes]]:
    """("file:line", line) of every line that is not blank; lines end at "\\n" only. None is a `DataError`."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    kept = [(f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not kept:
        raise DataError(f"{path} is empty")
    return kept


class Epochs(Generic[Record]):
    """Records in an endless row; every epoch has an order of its own, drawn by its number alone."""

    def __init__(self, records: Sequence[Record], seed: int) -> None:
        self.records, self.seed = records, seed
        self._order = functools.lru_cache(maxsize=2)(self._shuffle)  # a step lies in at most a few epochs

    def step(self, step: int, count: int) -> list[Record]:
        """The records of step 0, 1, ... of `count` each."""
        places = (divmod(place, len(self.records)) for place in range(step * count, (step + 1) * count))
        return [self.records[self._order(epoch)[place]] for epoch, place in places]

    def _shuffle(self, epoch: int) -> list[int]:
        order: list[int] = np.random.default_rng((self.seed, epoch)).permutation(len(self.records)).tolist()
        return order
