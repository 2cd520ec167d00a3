"""Sequence: one answer on its way. A request for `n` answers is `n` sequences that share the prompt's pages.

Two lengths matter: `len(ids)` is what is known, `computed` is how much of it has its rows in the cache. Prefill, decode
and recomputation after a preemption are one thing: run `ids[computed:]`, and sample when it reaches the end.

Invariant: `computed < len(ids)` while unfinished (the last known token has always still to be run), and `pages` has
room for `computed` tokens.
"""

from __future__ import annotations

import enum
import secrets
from typing import Protocol

from leadline.engine.grammar import Constraint
from leadline.engine.types import EngineOutput, EngineRequest, FinishReason, SamplingParams, TokenLogprob, Usage
from leadline.tokenizer.stream import ByteVocabulary, StreamDecoder


class Status(enum.Enum):
    """WAITING holds no pages; RUNNING does; FINISHED never runs again."""

    WAITING = enum.auto()
    RUNNING = enum.auto()
    FINISHED = enum.auto()


class Decoder(Protocol):
    """What a sequence needs of a streaming decoder."""

    @property
    def stopped(self) -> str | None: ...

    def push(self, token_id: int) -> str: ...

    def finish(self) -> str: ...


class Vocabulary(ByteVocabulary, Protocol):
    """What an engine needs of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_id(self) -> int: ...


class Sequence:
    """One answer: its ids, its pages, its stops. The scheduler moves `status` and `pages`, the engine the rest."""

    def __init__(
        self, request: EngineRequest, index: int, *, limit: int, decoder: Decoder, eos_ids: frozenset[int] = frozenset()
    ) -> None:
        self.request = request
        self.request_id = request.request_id
        self.index = index
        self.params = request.params
        self.prompt_tokens = len(request.prompt_ids)
        self.ids: list[int] = list(request.prompt_ids)
        self.limit = limit
        self.decoder = decoder
        self.eos_ids = frozenset() if request.params.ignore_eos else eos_ids
        self.stop_ids = frozenset(request.params.stop_token_ids)
        self.seed = secrets.randbits(64) if request.params.seed is None else request.params.seed
        self.plain = _plain(request.params)
        self.leader: Sequence | None = None  # the sibling whose prompt pages this one waits for
        self.constraint: Constraint | None = None  # the grammar's place
        # the scheduler's
        self.status = Status.WAITING
        self.arrival = 0
        self.computed = 0
        self.pages: list[int] = []
        self.page_keys: list[bytes] = []  # of full pages, as far as they are known
        self.published = 0  # full pages offered to the prefix cache
        self.started = False
        self.cached_tokens = 0  # found when it started; what a preemption finds again is not counted
        # results
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self.error: str | None = None
        self.routed_experts: list[tuple[tuple[int, ...], ...]] = []
        self.prompt_logprobs: list[TokenLogprob | None] = []

    # ---- lengths -----------------------------------------------------------------------------------------------

    @property
    def key(self) -> tuple[str, int]:
        return self.request_id, self.index

    @property
    def remaining(self) -> int:
        """Known tokens that have still to be run; 1 while decoding."""
        return len(self.ids) - self.computed

    @property
    def generated(self) -> int:
        return len(self.ids) - self.prompt_tokens

    @property
    def finished(self) -> bool:
        return self.status is Status.FINISHED

    @property
    def rank(self) -> tuple[int, int]:
        """Who goes first: greater priority, then earlier arrival. Smaller ranks win."""
        return -self.request.priority, self.arrival

    @property
    def reusable_tokens(self) -> int:
        """How much the prefix cache may give. The last token is always run, for what follows it; so is every token that
        the answer tells about: row p scores token p + 1."""
        if self.params.return_routed_experts:
            return 0
        last = len(self.ids) - 1
        if self.params.prompt_logprobs is None:
            return last
        return min(last, max(self.params.prompt_logprobs_from - 1, 0))

    @property
    def prompt_ready(self) -> bool:
        """Whether siblings that wait for this sequence's prompt pages may start."""
        return self.finished or self.computed >= self.prompt_tokens

    @property
    def usage(self) -> Usage:
        return Usage(self.prompt_tokens, self.generated, self.cached_tokens)

    # ---- one more token ----------------------------------------------------------------------------------------

    def forbidden(self) -> frozenset[int]:
        """Tokens that may not be sampled yet: those that would end an answer shorter than `min_tokens`."""
        return self.eos_ids | self.stop_ids if self.generated < self.params.min_tokens else frozenset()

    def append(self, token_id: int) -> str:
        """Add a sampled token; the text it makes safe to show. Finishes the sequence when it ends the answer."""
        self.ids.append(token_id)
        if token_id in self.eos_ids or token_id in self.stop_ids:
            text = self.decoder.push(token_id) if self.params.include_stop else ""
            return text + self.finish("stop", None if token_id in self.eos_ids else token_id)
        text = self.decoder.push(token_id)
        if self.decoder.stopped is not None:
            return text + self.finish("stop", self.decoder.stopped)
        if len(self.ids) >= self.limit or self.generated == self.params.max_tokens:
            return text + self.finish("length")
        return text

    def finish(self, reason: FinishReason, stop_reason: str | int | None = None, error: str | None = None) -> str:
        """End the answer; the text that was held back."""
        self.status = Status.FINISHED
        self.finish_reason, self.stop_reason, self.error = reason, stop_reason, error
        return self.decoder.finish()

    def output(
        self, text: str, token_ids: tuple[int, ...] = (), logprobs: tuple[TokenLogprob, ...] = ()
    ) -> EngineOutput:
        """What this step added, with the totals so far."""
        prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
        if self.prompt_logprobs and self.generated == len(token_ids):  # the first output
            prompt_logprobs = tuple(self.prompt_logprobs)
        return EngineOutput(
            self.request_id,
            self.index,
            text,
            token_ids,
            logprobs,
            self.finish_reason,
            self.stop_reason,
            self.usage,
            self.error,
            prompt_logprobs,
            tuple(self.routed_experts) if self.finished else (),
        )


def make_sequences(
    request: EngineRequest, vocabulary: ByteVocabulary, *, limit: int, eos_ids: frozenset[int]
) -> list[Sequence]:
    """The `n` sequences of a request; all but the first wait for the first one's prompt pages."""
    sequences = [
        Sequence(request, index, limit=limit, eos_ids=eos_ids, decoder=_decoder(request.params, vocabulary))
        for index in range(request.params.n)
    ]
    for sibling in sequences[1:]:
        sibling.leader = sequences[0]
    return sequences


def _plain(params: SamplingParams) -> bool:
    """Whether these parameters always choose the likeliest token of the untouched row."""
    adjusted = params.logit_bias or params.grammar is not None or params.logprobs is not None
    penalties = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
    return params.greedy and penalties == (1.0, 0.0, 0.0) and not adjusted


def _decoder(params: SamplingParams, vocabulary: ByteVocabulary) -> StreamDecoder:
    return StreamDecoder(
        vocabulary,
        params.stop,
        include_stop=params.include_stop,
        skip_special_tokens=params.skip_special_tokens,
        min_tokens=params.min_tokens,
    )
