"""Batches: what a pass is made of, and packed documents for pre-training (section 3.1.2).

A batch is a function of its index alone: batch i holds the same tokens whenever and by how many processes it is made,
so a resumed run goes on with exactly what it would have seen.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leadline.errors import ConfigError, DataError
from leadline.train.corpus import sha256_of

EXEMPT_STREAM = 0x2204
"""Keeps these draws apart from those of the documents' order."""

Fragment = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]  # tokens, targets, weights


@dataclasses.dataclass(frozen=True)
class Batch:
    """Flat tokens of one pass. Attention stays within `documents`; balance is counted within `rows`.

    tokens_T, targets_T   int64
    weights_T             float32, 0 where the target is not trained on
    documents, rows       offsets, as `ForwardBatch.starts`
    index                 which pass of training it is, counted from the start; tokens are dropped by it
    counts                False where a process makes a pass only to take part
    """

    tokens_T: Tensor
    targets_T: Tensor
    weights_T: Tensor
    documents: tuple[int, ...]
    rows: tuple[int, ...]
    index: int = 0
    counts: bool = True

    @property
    def trained_tokens(self) -> float:
        """What the pass weighs in the step's loss."""
        return float(self.weights_T.sum())

    @property
    def sequences(self) -> int:
        """What it weighs in the step's balance."""
        return (len(self.rows) - 1) * self.counts

    def uncounted(self) -> Batch:
        """The same pass, of no weight."""
        return dataclasses.replace(self, weights_T=torch.zeros_like(self.weights_T), counts=False)


class DataSource(Protocol):
    """Where a trainer gets its passes from; `index` counts micro-batches from the start of training."""

    def batch(self, index: int) -> Batch: ...


class Feed:
    """The passes of each step, by `make`. With `ahead` the next step's are made while this one runs: a GPU does not
    wait for them, and what they hold depends on the step alone."""

    def __init__(self, make: Callable[[int], list[Batch]], *, ahead: bool) -> None:
        self.make = make
        self._maker = ThreadPoolExecutor(1, "batches") if ahead else None
        self._next: tuple[int, Future[list[Batch]]] | None = None

    def take(self, step: int) -> list[Batch]:
        """The passes of step 0, 1, ..."""
        if self._maker is None:
            return self.make(step)
        known, self._next = self._next, None
        batches = known[1].result() if known is not None and known[0] == step else self.make(step)
        self._next = (step + 1, self._maker.submit(self.make, step + 1))
        return batches


def exempt_sequences(seed: int, index: int, sequences: int, share: float) -> NDArray[np.bool_]:
    """Which sequences of a pass keep every token (section 2.2.4): drawn by the pass's number."""
    return np.random.default_rng((seed, EXEMPT_STREAM, index)).random(sequences) < share


def make_batch(rows: list[list[Fragment]]) -> Batch:
    """Lay rows of fragments end to end."""
    fragments = [fragment for row in rows for fragment in row]
    documents = np.cumsum([0, *(len(fragment[0]) for fragment in fragments)])
    ends = np.cumsum([0, *(sum(len(fragment[0]) for fragment in row) for row in rows)])
    tokens, targets, weights = (np.concatenate([fragment[i] for fragment in fragments]) for i in range(3))
    return Batch(
        torch.from_numpy(tokens.astype(np.int64)),
        torch.from_numpy(targets.astype(np.int64)),
        torch.from_numpy(weights.astype(np.float32)),
        tuple(documents.tolist()),
        tuple(ends.tolist()),
    )


class PackedCorpus:
    """A corpus folder as an endless row of shuffled, packed documents; each pass over it has an order of its own.

    A row is `sequence_length` consecutive tokens; a document that does not fit goes on in the next, without its past.
    """

    def __init__(self, folder: Path, split: str, sequence_length: int, rows: int, seed: int = 0) -> None:
        self.tokens, self.starts = _load_split(folder, split)
        self.length, self.rows, self.seed = sequence_length, rows, seed
        self._order = functools.lru_cache(maxsize=2)(self._shuffle)  # a batch lies in at most two epochs
        self.rows_per_epoch = len(self.tokens) // sequence_length
        if self.rows_per_epoch < 1:
            raise DataError(f"{folder}/{split}.bin holds {len(self.tokens)} tokens, less than one row")

    def batch(self, index: int) -> Batch:
        return make_batch([self.row(index * self.rows + i) for i in range(self.rows)])

    def row(self, index: int) -> list[Fragment]:
        """Row `index` of the endless stream."""
        epoch, row = divmod(index, self.rows_per_epoch)
        order, offsets = self._order(epoch)
        begin, end = row * self.length, (row + 1) * self.length
        fragments = []
        place = int(np.searchsorted(offsets, begin, side="right")) - 1
        while offsets[place] < end:
            document, offset = order[place], offsets[place]
            first, last = max(begin, offset) - offset, min(end, offsets[place + 1]) - offset
            fragments.append(self.fragment(document, int(first), int(last)))
            place += 1
        return fragments

    def fragment(self, document: int, first: int, last: int) -> Fragment:
        """Tokens first..last of a document; the target of its very last token does not exist and weighs nothing."""
        start, end = self.starts[document], self.starts[document + 1]
        tokens = self.tokens[start + first : start + last].astype(np.int64)
        targets = self.tokens[start + first + 1 : min(start + last + 1, end)].astype(np.int64)
        weights = np.ones(len(tokens), dtype=np.float32)
        if len(targets) < len(tokens):
            targets = np.append(targets, 0)
            weights[-1] = 0.0
        return tokens, targets, weights

    def describe(self) -> str:
        """One line for the log."""
        return f"{len(self.tokens):,} tokens in {len(self.starts) - 1:,} documents"

    def _shuffle(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The documents of one epoch in their order, and where each begins in that epoch's stream."""
        lengths = np.diff(self.starts)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(lengths))
        return order, np.concatenate(([0], np.cumsum(lengths[order])))


def _load_split(folder: Path, split: str) -> tuple[NDArray[np.unsignedinteger], NDArray[np.int64]]:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        starts = np.load(folder / f"{split}.idx.npy", allow_pickle=False)
        kind = {"<u2": np.uint16, "<u4": np.uint32}[manifest.get("dtype", "<u2")]
        tokens = np.memmap(folder / f"{split}.bin", dtype=np.dtype(kind).newbyteorder("<"), mode="r")
        expected = manifest["splits"][split]["tokens"]
        offsets = starts.astype(np.int64)
        ordered = offsets[0] == 0 and offsets[-1] == expected and bool((np.diff(offsets) >= 0).all())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError) as error:
        raise DataError(f"{folder} is not a corpus folder: {error}") from None
    if len(tokens) != expected:
        raise DataError(f"{folder}/{split}.bin holds {len(tokens)} tokens, its manifest says {expected}")
    if not ordered:
        raise DataError(f"{folder}/{split}.idx.npy does not divide the {expected} tokens of {split}.bin into documents")
    return tokens, offsets


def check_tokenizer(folder: Path, tokenizer: Path) -> None:
    """Refuse a corpus whose ids another tokenizer made: they would train without an error and mean nothing."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        wanted = manifest["tokenizer"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} is not a corpus folder: {error}") from None
    if sha256_of([tokenizer / "tokenizer.json"]) != wanted:
        raise ConfigError(f"{folder} was made with another tokenizer than {tokenizer}; build it again with this one")


def held_out(folder: Path, split: str, sequence_length: int, limit: int) -> tuple[list[Batch], int]:
    """The split as batches of whole documents, cut at `sequence_length` tokens, and its bytes (see corpus/build.py).

    With `limit` only the first documents up to that many tokens, and their share of the bytes.
    """
    corpus = PackedCorpus(folder, split, 1, rows=1)  # read by document, so that a short split will do
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["splits"][split]
    batches: list[Batch] = []
    row: list[Fragment] = []
    seen = 0
    for document, (start, end) in enumerate(zip(corpus.starts, corpus.starts[1:], strict=False)):
        if limit and seen >= limit:
            break
        length = int(end - start)
        cuts = range(0, length, sequence_length)
        row.extend(corpus.fragment(document, first, min(first + sequence_length, length)) for first in cuts)
        seen += length
        if sum(len(fragment[0]) for fragment in row) >= 8 * sequence_length:
            batches.append(make_batch([row]))
            row = []
    if row:
        batches.append(make_batch([row]))
    return batches, round(manifest["bytes"] * seen / manifest["tokens"])
