"""Scheduler: who runs in the next pass, and with how many tokens.

Continuous batching: every pass takes one token of each decoding sequence first, then fills the token budget with chunks
of prompts, so that a long prompt never holds up an answer. Waiting requests start in order of priority, then arrival,
and none overtakes the head of the queue, so that small requests never starve a large one. When pages run out the lowest
in that order gives its pages back and is recomputed later.

Invariants: a sequence fits the cache when it is alone, so the first in order always proceeds and every request ends;
all pages are held by running sequences; the waiting queue is sorted by rank. No torch.
"""

from __future__ import annotations

import bisect
import dataclasses
import time
from collections.abc import Iterable
from typing import Protocol

from leadline.engine.blocks import BlockManager, extend_keys, root_key
from leadline.engine.sequence import Sequence, Status
from leadline.errors import ConfigError, EngineOverloaded


@dataclasses.dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """`max_num_batched_tokens` bounds a pass, `max_num_seqs` the running sequences, `max_waiting` the queue."""

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 1024
    max_waiting: int = 1024

    def __post_init__(self) -> None:
        if self.max_num_seqs < 1 or self.max_waiting < 1:
            raise ConfigError("max_num_seqs and max_waiting must be at least 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} is less than max_num_seqs {self.max_num_seqs}: "
                f"every running sequence needs a token a pass"
            )


class SecondFloor(Protocol):
    """Where full pages are kept beside memory: the disk."""

    def load(self, key: bytes, page: int) -> bool: ...

    def save(self, key: bytes, page: int) -> None: ...

    def forget(self, keys: Iterable[bytes]) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """`length` tokens of `sequence` from `start` on; `samples` when they reach its end."""

    sequence: Sequence
    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def samples(self) -> bool:
        return self.end == len(self.sequence.ids)


@dataclasses.dataclass(frozen=True, slots=True)
class ScheduledBatch:
    """One pass: the chunks, decoding ones first."""

    chunks: tuple[Chunk, ...] = ()

    @property
    def tokens(self) -> int:
        return sum(chunk.length for chunk in self.chunks)

    def __bool__(self) -> bool:
        return bool(self.chunks)


class Scheduler:
    """Holds every unfinished sequence. `schedule` says what to run, `commit` that it was run, `finish` gives pages
    back."""

    def __init__(
        self, config: SchedulerConfig, blocks: BlockManager, *, model: str = "", cache_format: str = ""
    ) -> None:
        self.config = config
        self.blocks = blocks
        self.model, self.cache_format = model, cache_format
        self.disk: SecondFloor | None = None
        self.running: list[Sequence] = []  # sorted by rank
        self.waiting: list[Sequence] = []  # sorted by rank
        self.preemptions = 0
        self._arrivals = 0

    # ---- coming and going --------------------------------------------------------------------------------------

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Queue new sequences; `EngineOverloaded` and no change when the queue is full."""
        new = list(sequences)
        if len(self.waiting) + len(new) > max(self.config.max_waiting, len(new)):
            raise EngineOverloaded(f"{len(self.waiting)} requests are waiting already; try again later")
        for sequence in new:
            self._arrivals += 1
            sequence.arrival = self._arrivals
            bisect.insort(self.waiting, sequence, key=_rank)

    def finish(self, sequence: Sequence) -> None:
        """Give a finished or cancelled sequence's pages back. What a failed one computed is not to be met again."""
        sequence.status = Status.FINISHED
        if sequence.error is not None:
            self.blocks.forget(sequence.pages)
            if self.disk is not None:
                self.disk.forget(sequence.page_keys[: sequence.published])
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        self._free(sequence)

    def expired(self, now: float | None = None) -> list[Sequence]:
        """Those whose deadline has passed."""
        timed = [s for s in (*self.running, *self.waiting) if s.request.deadline is not None]
        if not timed:
            return []
        now = time.monotonic() if now is None else now
        return [s for s in timed if s.request.deadline is not None and s.request.deadline <= now]

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    # ---- one pass ----------------------------------------------------------------------------------------------

    def schedule(self) -> ScheduledBatch:
        """Choose the next pass and make room for it in the cache."""
        self._give_way()
        budget = self.config.max_num_batched_tokens
        chunks = self._decodes()
        budget -= len(chunks)
        for sequence in self.running:
            if sequence.remaining > 1 and budget > 0:
                chunks.append(self._chunk(sequence, budget))
                budget -= chunks[-1].length
        while budget > 0 and (admitted := self._admit()) is not None:
            chunks.append(self._chunk(admitted, budget))
            budget -= chunks[-1].length
        return ScheduledBatch(tuple(chunks))

    def commit(self, batch: ScheduledBatch) -> None:
        """The pass was run: its rows are in the cache. Publishes the pages that it filled."""
        for chunk in batch.chunks:
            sequence = chunk.sequence
            if sequence.status is Status.RUNNING:
                sequence.computed = chunk.end
                self._publish(sequence)

    def _chunk(self, sequence: Sequence, budget: int) -> Chunk:
        return Chunk(sequence, sequence.computed, min(sequence.remaining, budget))

    def _decodes(self) -> list[Chunk]:
        """One token of each decoding sequence, best rank first; the worst give way when pages run out."""
        return [
            Chunk(sequence, sequence.computed, 1)
            for sequence in list(self.running)
            if sequence.remaining == 1 and sequence.status is Status.RUNNING and self._make_room(sequence)
        ]

    def _make_room(self, sequence: Sequence) -> bool:
        """A page for one more token, at the cost of those of worse rank; False when it had to give way itself."""
        while not self.blocks.grow(sequence.pages, len(sequence.ids)):
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._free(sequence)
        sequence.status = Status.WAITING
        bisect.insort(self.waiting, sequence, key=_rank)
        self.preemptions += 1

    def _give_way(self) -> None:
        """Start waiting requests of greater priority than the worst of the running, which makes room for them."""
        while (head := self._head()) is not None and self.running:
            if self.running[-1].request.priority >= head.request.priority:
                return
            if self._admit() is None:
                self._preempt(self.running[-1])

    def _head(self) -> Sequence | None:
        """The first in the queue; siblings whose prompt is being computed for them are not in it yet."""
        return next((s for s in self.waiting if s.leader is None or s.leader.prompt_ready), None)

    def _admit(self) -> Sequence | None:
        """Start the first in the queue, if it can have a place and pages for all its known tokens."""
        sequence = self._head()
        if sequence is None or len(self.running) == self.config.max_num_seqs:
            return None
        self._match(sequence)
        if not self.blocks.grow(sequence.pages, len(sequence.ids)):
            self._free(sequence)
            return None
        self._restore(sequence)
        self.waiting.remove(sequence)
        bisect.insort(self.running, sequence, key=_rank)
        sequence.status = Status.RUNNING
        if not sequence.started:
            sequence.started, sequence.cached_tokens = True, sequence.computed
        return sequence

    # ---- pages -------------------------------------------------------------------------------------------------

    def _match(self, sequence: Sequence) -> None:
        """Take what the prefix cache knows of its tokens, the last token never."""
        usable = sequence.reusable_tokens // self.blocks.page_size
        if not usable or not self.blocks.prefix_cache:
            return
        self._extend_keys(sequence, usable)
        sequence.pages = self.blocks.match_prefix(sequence.page_keys[:usable])
        self.blocks.acquire(sequence.pages)
        sequence.published = len(sequence.pages)
        sequence.computed = sequence.published * self.blocks.page_size

    def _restore(self, sequence: Sequence) -> None:
        """Read from the disk what follows the prefix that memory knows, until a page is not there."""
        if self.disk is None or not self.blocks.prefix_cache:
            return
        for place in range(sequence.published, sequence.reusable_tokens // self.blocks.page_size):
            page, key = sequence.pages[place], sequence.page_keys[place]
            if not self.disk.load(key, page):
                break
            self.blocks.publish(page, key)
            sequence.published += 1
        sequence.computed = sequence.published * self.blocks.page_size

    def _publish(self, sequence: Sequence) -> None:
        full = sequence.computed // self.blocks.page_size
        if full == sequence.published or not self.blocks.prefix_cache:
            return
        self._extend_keys(sequence, full)
        for page in range(sequence.published, full):
            self.blocks.publish(sequence.pages[page], sequence.page_keys[page])
            if self.disk is not None:
                self.disk.save(sequence.page_keys[page], sequence.pages[page])
        sequence.published = full

    def _extend_keys(self, sequence: Sequence, pages: int) -> None:
        if len(sequence.page_keys) < pages:
            root = root_key(self.model, self.cache_format, sequence.request.cache_salt, sequence.params.adapter)
            extend_keys(sequence.page_keys, root, sequence.ids, pages, self.blocks.page_size)

    def _free(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.pages)
        sequence.pages = []
        sequence.computed = sequence.published = 0

    def check_integrity(self) -> None:
        """Assert the invariants of the queues and, through them, of the pages."""
        assert self.running == sorted(self.running, key=_rank)
        assert self.waiting == sorted(self.waiting, key=_rank)
        assert all(s.status is Status.RUNNING and s.remaining > 0 for s in self.running)
        assert all(s.status is Status.WAITING and not s.pages for s in self.waiting)
        assert len(self.running) <= self.config.max_num_seqs
        self.blocks.check_integrity([s.pages for s in self.running])


def _rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.rank
