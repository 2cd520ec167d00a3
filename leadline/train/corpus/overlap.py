"""Decontamination: no document of the corpus holds a piece of an evaluation set.

A piece is a run of words, thirteen unless the recipe says otherwise; a word is a run of letters and digits in whatever
case, or one Chinese character. An evaluation file is JSON or JSON lines, of which every text counts, wherever it is, or
any other text file.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from leadline.errors import DataError

WORD = re.compile(r"[\u3400-\u9fff\u3040-\u30ff]|[^\W_\u3400-\u9fff\u3040-\u30ff]+")

Pieces = npt.NDArray[np.uint64]


@functools.lru_cache(maxsize=1 << 20)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def pieces(text: str, words: int) -> Pieces:
    """The hashes of every run of so many words, repeated ones once."""
    found = WORD.findall(text.lower())
    hashes = np.fromiter(map(_word_hash, found), dtype=np.uint64, count=len(found))
    runs = np.zeros(max(0, len(hashes) - words + 1), dtype=np.uint64)
    for place in range(words):
        runs = runs * np.uint64(0x9E3779B97F4A7C15) + hashes[place : place + len(runs)]
    return np.unique(runs)


class EvaluationSets:
    """All pieces of all evaluation files, sorted."""

    def __init__(self, files: Iterable[Path], words: int) -> None:
        self.words = words
        found = [pieces(text, words) for path in files for text in evaluation_texts(path)]
        self.pieces = np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.uint64)

    def meets(self, text: str) -> bool:
        """Whether the text holds a piece."""
        if not len(self.pieces):
            return False
        own = pieces(text, self.words)
        places = np.searchsorted(self.pieces, own)
        return bool((self.pieces[np.minimum(places, len(self.pieces) - 1)] == own).any())


def evaluation_texts(path: Path) -> Iterator[str]:
    """Every text of a file."""
    try:
        raw = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the evaluation file {path}: {error}") from None
    if path.suffix == ".jsonl":
        for number, line in enumerate(raw.split("\n"), start=1):
            if line.strip():
                yield from _texts(_parsed(line, f"{path}, line {number}"))
    elif path.suffix == ".json":
        yield from _texts(_parsed(raw, str(path)))
    else:
        yield raw


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: broken JSON: {error}") from None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
