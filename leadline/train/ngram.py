"""A Kneser-Ney n-gram model over token ids: the baseline that a trained model has to beat on held-out bits per byte.

Interpolated modified Kneser-Ney (Chen and Goodman, 1998): the highest order counts occurrences, each lower order counts
in how many different contexts an n-gram was seen, and three discounts an order are estimated from the counts of counts.
Every document is one sequence: contexts never reach over its BOS. An n-gram is packed into one 64-bit key, so that
counting is sorting. Where that is one bit short, as with five tokens of 13 bits, the upper half of the vocabulary (the
late merges of a BPE, the rare tokens) counts as one token in the oldest place, and only there.

The invariant: for every context the probabilities over the whole vocabulary sum to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from leadline.errors import DataError

Keys = npt.NDArray[np.uint64]
Ids = npt.NDArray[np.unsignedinteger]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Level:
    """One order: its n-grams with discounted probabilities, its contexts with the weight of the order below."""

    grams: Keys
    discounted: Floats
    contexts: Keys
    backoff: Floats


@dataclass(frozen=True)
class NGramModel:
    """Levels from order 1 up; `bits` a token in a key."""

    levels: tuple[Level, ...]
    bits: int
    vocab_size: int

    @property
    def order(self) -> int:
        return len(self.levels)


def pack(ids: Ids, starts: Ints, order: int, bits: int) -> Keys:
    """The n-gram that ends at every token but the documents' first; before a document stands its BOS, repeated."""
    oldest = (1 << min(bits, 64 - (order - 1) * bits)) - 1
    position = np.arange(len(ids)) - np.repeat(starts[:-1], np.diff(starts))
    keys = np.zeros(len(ids), dtype=np.uint64)
    for back in range(order - 1, -1, -1):
        token = ids[np.arange(len(ids)) - np.minimum(back, position)]
        if back == order - 1:
            token = np.minimum(token, oldest)
        keys = (keys << np.uint64(bits)) | token.astype(np.uint64)
    return np.asarray(keys[position > 0])


def train_ngram(ids: Ids, starts: Ints, *, order: int, vocab_size: int) -> NGramModel:
    """Count and discount; `starts` are the documents' starts and the end, as in a shard's index."""
    bits = max(1, (vocab_size - 1).bit_length())
    if order * bits > 65:
        raise DataError(f"{order} tokens of {bits} bits do not fit a key of 64 bits; take a lower order")
    grams, counts = np.unique(pack(ids, starts, order, bits), return_counts=True)
    levels = [make_level(grams, counts, bits)]
    for size in range(order - 1, 0, -1):
        suffix = grams & np.uint64((1 << size * bits) - 1)
        grams, counts = np.unique(suffix, return_counts=True)
        levels.append(make_level(grams, counts, bits))
    return NGramModel(levels=tuple(reversed(levels)), bits=bits, vocab_size=vocab_size)


def make_level(grams: Keys, counts: Ints, bits: int) -> Level:
    """Discounted probabilities of the n-grams, and the mass that each context leaves for the order below."""
    discount = discounts(counts)[np.minimum(counts, 3)]
    contexts, first = np.unique(grams >> np.uint64(bits), return_index=True)
    total = np.add.reduceat(counts, first).astype(np.float64)
    held_back = np.add.reduceat(discount, first)
    sizes = np.diff(np.append(first, len(grams)))
    return Level(
        grams=grams,
        discounted=(counts - discount) / np.repeat(total, sizes),
        contexts=contexts,
        backoff=held_back / total,
    )


def discounts(counts: Ints) -> Floats:
    """D(0..3+) from the counts of counts; a half where there are too few of them to estimate."""
    n1, n2, n3, n4 = (int((counts == many).sum()) for many in (1, 2, 3, 4))
    if min(n1, n2, n3, n4) == 0:
        return np.array([0.0, 0.5, 0.5, 0.5])
    y = n1 / (n1 + 2 * n2)
    estimated = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return np.array([0.0, *(min(max(d, 0.05), most - 0.05) for most, d in enumerate(estimated, start=1))])


def look_up(keys: Keys, values: Floats, wanted: Keys, missing: float) -> Floats:
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], missing)


def probabilities(model: NGramModel, grams: Keys) -> Floats:
    """p(last token | the tokens before it) for packed n-grams of the model's order."""
    p = np.full(len(grams), 1.0 / model.vocab_size)
    for size, level in enumerate(model.levels, start=1):
        gram = grams & np.uint64((1 << min(size * model.bits, 64)) - 1)
        seen = look_up(level.grams, level.discounted, gram, 0.0)
        p = seen + look_up(level.contexts, level.backoff, gram >> np.uint64(model.bits), 1.0) * p
    return p


def total_bits(model: NGramModel, ids: Ids, starts: Ints) -> float:
    """-log2 p of all documents, EOS included, BOS not."""
    return float(-np.log2(probabilities(model, pack(ids, starts, model.order, model.bits))).sum())


def distinct_documents(ids: Ids, starts: Ints) -> tuple[Ids, Ints]:
    """Each document once: copies (a source's `repeat`) would pass for evidence and spoil the discounts."""
    seen: set[bytes] = set()
    kept = []
    for first, last in pairwise(starts.tolist()):
        document = ids[first:last]
        if (key := document.tobytes()) not in seen:
            seen.add(key)
            kept.append(document)
    return np.concatenate(kept), np.concatenate([[0], np.cumsum([len(document) for document in kept])]).astype(np.int64)


def ngram_baseline(folder: Path, manifest: dict[str, Any], *, order: int = 5) -> float:
    """Bits per byte on the `valid` shard of a built corpus, of an n-gram model trained on its `train` shard."""
    split = {
        name: (
            np.fromfile(folder / f"{name}.bin", dtype=manifest.get("dtype", "<u2")),
            np.load(folder / f"{name}.idx.npy"),
        )
        for name in ("train", "valid")
    }
    vocab_size = int(manifest["tokenizer"]["vocab_size"])
    model = train_ngram(*distinct_documents(*split["train"]), order=order, vocab_size=vocab_size)
    return total_bits(model, *split["valid"]) / int(manifest["splits"]["valid"]["bytes"])
