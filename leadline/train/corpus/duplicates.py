"""Documents that were there before: the same to the byte, or nearly (MinHash, Broder 1997).

A near duplicate shares at least a given part of its shingles, runs of eight letters or digits whatever lies between
them, with a document that was kept: Jaccard similarity |A and B| / |A or B|. A signature holds the least of 128 hash
functions over a document's shingles; two signatures agree in about as many places as their documents are similar.
Signatures are cut into bands, and only documents that agree in a whole band are compared.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import numpy.typing as npt

from leadline.train.corpus.read import Document

HASHES = 128
SHINGLE = 8  # letters and digits
AT_ONCE = 4096  # shingles, so that the products stay in the cache
MARGIN = 0.08  # how far under the threshold a band already catches half

Signature = npt.NDArray[np.uint32]


def document_key(document: Document) -> int:
    """64 bits that stand for the document: equal documents are one, and the split and the order are read off it."""
    canonical = document if isinstance(document, str) else json.dumps(document, ensure_ascii=False, sort_keys=True)
    return int.from_bytes(hashlib.blake2b(canonical.encode(), digest_size=8).digest(), "little")


def is_valid_split(key: int, permille: int) -> bool:
    """Held out or not: by hash, so that a document keeps its side when others come or go."""
    return key % 1000 < permille


def shingles(text: str) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of every run of SHINGLE letters or digits, case and all else aside."""
    letters = "".join(filter(str.isalnum, text.lower())) or " "
    codes = np.frombuffer(letters.encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    width = min(SHINGLE, len(codes))
    hashes = np.zeros(len(codes) - width + 1, dtype=np.uint64)
    for place in range(width):
        hashes = hashes * np.uint64(0x100000001B3) + codes[place : place + len(hashes)]
    return np.unique(_mixed(hashes))


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Every bit of the result hangs on every bit of the value (splitmix64's end)."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


def _functions() -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """The 128 hash functions: multiply by an odd number, add, take the upper half."""
    draw = np.random.Generator(np.random.PCG64(2204))
    factors = draw.integers(0, 1 << 63, HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    return factors[:, None], draw.integers(0, 1 << 63, HASHES, dtype=np.uint64)[:, None]


FACTORS, TERMS = _functions()


def signature(text: str) -> Signature:
    """(128,): the least value of each hash function over the text's shingles."""
    values, least = shingles(text), np.full(HASHES, 0xFFFFFFFF, dtype=np.uint32)
    for start in range(0, len(values), AT_ONCE):
        hashed = (values[None, start : start + AT_ONCE] * FACTORS + TERMS) >> np.uint64(32)
        least = np.minimum(least, hashed.min(1).astype(np.uint32))
    return least


def band_rows(threshold: float) -> int:
    """Rows a band: the most whose bands still catch half of the documents a little less similar than `threshold`."""
    fitting = [rows for rows in (1, 2, 4, 8, 16, 32) if (rows / HASHES) ** (1 / rows) <= max(threshold - MARGIN, 0.05)]
    return max(fitting, default=1)


class NearDuplicates:
    """The signatures of what was kept, found again by their bands."""

    def __init__(self, threshold: float) -> None:
        self.threshold, self.rows = threshold, band_rows(threshold)
        self.kept: list[Signature] = []
        self._bands: dict[bytes, list[int]] = {}

    def _keys(self, new: Signature) -> list[bytes]:
        """A band and its place."""
        cuts = range(0, HASHES, self.rows)
        return [bytes([start]) + new[start : start + self.rows].tobytes() for start in cuts]

    def has(self, new: Signature) -> bool:
        """Whether a document like it was kept."""
        near = {place for key in self._keys(new) for place in self._bands.get(key, ())}
        return any(float((self.kept[place] == new).mean()) >= self.threshold for place in sorted(near))

    def add(self, new: Signature) -> None:
        for key in self._keys(new):
            self._bands.setdefault(key, []).append(len(self.kept))
        self.kept.append(new)
