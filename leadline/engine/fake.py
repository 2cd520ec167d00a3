"""FakeEngine: an engine without a model, for tests of whatever talks to an engine.

Everything but the choice of tokens is real: the checks, the streaming decoder, stops, lengths, `n`, usage. The tokens
spell out a fixed answer and then EOS. Prompts seen before count as cached, page by page and salt by salt, as in the
engine.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from leadline.engine.checks import check_request
from leadline.engine.grammar import ConstraintProvider
from leadline.engine.sequence import Sequence, Vocabulary, make_sequences
from leadline.engine.types import EngineInfo, EngineOutput, EngineRequest, EngineStats, TokenLogprob
from leadline.errors import EngineDead, EngineOverloaded

ANSWER = " A lead line is what sailors let down to find the depth of the water."
PAGE = 64

Answer = Callable[[EngineRequest, int], str]


class FakeTokenizer(Vocabulary, Protocol):
    """As much of a tokenizer as a fake engine uses."""

    def encode(self, text: str) -> list[int]: ...


class FakeEngine:
    """Implements `EngineProtocol`. `answer` is the text, or a function of the request and the answer's index.

    `tokens_per_second` None is as fast as the event loop. `error_after` k: each answer fails with an error after k
    tokens. `kill()` makes it dead: running streams and later submits raise `EngineDead`. With `constraints`, where the
    grammar does not allow the answer's next token, any that it allows is taken.
    """

    def __init__(
        self,
        tokenizer: FakeTokenizer,
        *,
        model: str = "fake",
        answer: str | Answer = ANSWER,
        tokens_per_second: float | None = None,
        first_token_seconds: float = 0.0,
        context_length: int = 4096,
        max_requests: int = 1024,
        error_after: int | None = None,
        constraints: ConstraintProvider | None = None,
    ) -> None:
        self.constraints = constraints
        self.tokenizer = tokenizer
        self.answer = answer
        self.seconds_per_token = 0.0 if tokens_per_second is None else 1.0 / tokens_per_second
        self.first_token_seconds = first_token_seconds
        self.max_requests = max_requests
        self.error_after = error_after
        self.dead = self.closing = False
        self._idle = asyncio.Event()
        self.running: dict[str, list[Sequence]] = {}
        self.requests: list[EngineRequest] = []  # every one that was accepted, for tests to look at
        self._cancelled: set[str] = set()
        self._seen: set[tuple[bytes, tuple[int, ...]]] = set()
        self._counts = dict.fromkeys(("finished", "cancelled", "prompt", "cached", "generated", "steps"), 0)
        self._info = EngineInfo(
            model=model,
            context_length=context_length,
            vocab_size=tokenizer.vocab_size,
            cache_bytes_per_token=31104,
            cache_tokens=context_length * 16,
            dtype="float32",
            device="cpu",
            parameters=1000,
            active_parameters=100,
        )

    @property
    def info(self) -> EngineInfo:
        return self._info

    def submit(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        if self.dead:
            raise EngineDead("the engine has stopped")
        if self.closing or len(self.running) >= self.max_requests:
            raise EngineOverloaded("the engine is shutting down" if self.closing else "too many requests are waiting")
        check_request(request, self._info, grammars=True, adapters=True)
        return self._stream(request)

    def cancel(self, request_id: str) -> None:
        if request_id in self.running:
            self._cancelled.add(request_id)

    def kill(self) -> None:
        self.dead = True

    def stats(self) -> EngineStats:
        counts = self._counts
        return EngineStats(
            running=len(self.running),
            pages_total=self._info.cache_tokens // PAGE,
            pages_free=self._info.cache_tokens // PAGE,
            pages_cached=len(self._seen),
            requests_finished=counts["finished"],
            requests_cancelled=counts["cancelled"],
            prompt_tokens=counts["prompt"],
            cached_tokens=counts["cached"],
            generated_tokens=counts["generated"],
            steps=counts["steps"],
            alive=not self.dead,
        )

    async def close(self) -> None:
        self.closing = True
        self._idle.clear()
        if self.running and not self.dead:
            await self._idle.wait()

    # ---- one request -------------------------------------------------------------------------------------------

    async def _stream(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        if self.constraints is not None and request.params.grammar is not None:
            await asyncio.to_thread(self.constraints.prepare, request.params.grammar)
        sequences = self._start(request)
        scripts = [self._script(request, sequence.index) for sequence in sequences]
        try:
            await asyncio.sleep(self.first_token_seconds)
            due = asyncio.get_running_loop().time()
            while active := [sequence for sequence in sequences if not sequence.finished]:
                self._counts["steps"] += 1
                for sequence in active:
                    yield self._advance(sequence, scripts[sequence.index])
                due += self.seconds_per_token
                await self._pause(due)
        finally:
            self._finish(request, sequences)

    async def _pause(self, due: float) -> None:
        """Until the next token is due, on the loop's clock; who was late catches up."""
        await asyncio.sleep(max(due - asyncio.get_running_loop().time(), 0.0))

    def _start(self, request: EngineRequest) -> list[Sequence]:
        info = self._info
        eos = frozenset({self.tokenizer.eos_id})
        sequences = make_sequences(request, self.tokenizer, limit=info.context_length, eos_ids=eos)
        cached = self._cached_tokens(request)
        for sequence in sequences:
            sequence.cached_tokens = cached
            if self.constraints is not None and request.params.grammar is not None:
                sequence.constraint = self.constraints.start(request.params.grammar)
        self.running[request.request_id] = sequences
        self.requests.append(request)
        self._counts["prompt"] += len(request.prompt_ids)
        self._counts["cached"] += cached
        return sequences

    def _cached_tokens(self, request: EngineRequest) -> int:
        ids, cached, known = request.prompt_ids, 0, True
        for end in range(PAGE, len(ids), PAGE):
            key = (request.cache_salt, ids[:end])
            known = known and key in self._seen
            cached = end if known else cached
            self._seen.add(key)
        return cached

    def _script(self, request: EngineRequest, index: int) -> list[int]:
        text = self.answer if isinstance(self.answer, str) else self.answer(request, index)
        return self.tokenizer.encode(text)

    def _advance(self, sequence: Sequence, script: list[int]) -> EngineOutput:
        if self.dead:
            raise EngineDead("the engine has stopped")
        if sequence.request_id in self._cancelled:
            return sequence.output(sequence.finish("cancelled"))
        if sequence.generated == self.error_after:
            error = f"request {sequence.request_id}: the model's numbers are not finite"
            return sequence.output(sequence.finish("error", error=error))
        token = self._token(sequence, script)
        if sequence.constraint is not None:
            token = _allowed_token(sequence, token)
            sequence.constraint.accept(token)
        self._counts["generated"] += 1
        logprobs = self._logprobs(sequence, token)
        return sequence.output(sequence.append(token), (token,), logprobs)

    def _token(self, sequence: Sequence, script: list[int]) -> int:
        """The script, then EOS; over and over where EOS does not end the answer."""
        place = sequence.generated
        if place >= len(script) and (sequence.params.ignore_eos or sequence.forbidden()):
            return script[place % len(script)]
        return script[place] if place < len(script) else self.tokenizer.eos_id

    def _logprobs(self, sequence: Sequence, token: int) -> tuple[TokenLogprob, ...]:
        wanted = sequence.params.logprobs
        if wanted is None:
            return ()
        others = [(token + step) % self.tokenizer.vocab_size for step in range(wanted)]
        top = tuple(self._logprob(other, rank) for rank, other in enumerate(others, 1))
        chosen = self._logprob(token, 1)
        return (TokenLogprob(chosen.token_id, chosen.text_bytes, chosen.logprob, 1, top),)

    def _logprob(self, token: int, rank: int) -> TokenLogprob:
        return TokenLogprob(token, self.tokenizer.token_bytes(token), -0.25 * rank, rank)

    def _finish(self, request: EngineRequest, sequences: list[Sequence]) -> None:
        self.running.pop(request.request_id, None)
        if not self.running:
            self._idle.set()
        self._cancelled.discard(request.request_id)
        whole = all(sequence.finished and sequence.finish_reason != "cancelled" for sequence in sequences)
        self._counts["finished" if whole else "cancelled"] += 1


def _allowed_token(sequence: Sequence, wanted: int) -> int:
    """`wanted` where the grammar allows it, else one that seed and place name, as far from it as chance has it."""
    assert sequence.constraint is not None
    bits = sequence.constraint.allowed()
    if bits[wanted >> 3] >> (wanted & 7) & 1:
        return wanted
    allowed = [token for token in range(8 * len(bits)) if bits[token >> 3] >> (token & 7) & 1]
    return random.Random(f"{sequence.seed} {sequence.index} {sequence.generated}").choice(allowed)
