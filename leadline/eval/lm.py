"""LM: what an evaluation asks of a language model, and the two ways to get it.

`EngineLM` runs leadline's own engine in this process; few-shot prompts are computed once and shared through the prefix
cache. `HttpLM` asks any OpenAI-compatible server. A third, `Perfect` or `Random` of `leadline.eval.fake`, is for tests.

Invariant: answers come back in the order of the requests, one each, whatever ran together.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from leadline.errors import ContextLengthExceeded, EngineError, InvalidRequest, ModelNotFound, NotFound, UserError

if TYPE_CHECKING:
    from leadline.client.http import Client, Reply
    from leadline.engine.llm import LLM
    from leadline.engine.types import RequestOutput

Question = TypeVar("Question")
Answer = TypeVar("Answer")
Window = tuple[int, tuple[int, ...], int]
"""Whose it is, its ids, and which of them is the first to score."""

CONCURRENCY = 8
KEPT_CONTEXTS = 1000
SAMPLED = 16  # numbers of a tensor that tell it from another
CHARACTERS_PER_TOKEN = 4.0  # a guess, where nobody counts


@dataclasses.dataclass(frozen=True, slots=True)
class Ask:
    """A text to continue greedily; with `chat`, a user's message to answer, after the earlier `turns`."""

    prompt: str
    stop: tuple[str, ...] = ()
    max_tokens: int = 256
    chat: bool = False
    turns: tuple[str, ...] = ()  # user, assistant, user, assistant, ...

    @property
    def messages(self) -> list[dict[str, str]]:
        roles = ("user", "assistant")
        texts = (*self.turns, self.prompt)
        return [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """`text` as the continuation of `context`, to be scored. The context may be empty."""

    context: str
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Score:
    """The log-probability of a span in nats, over `tokens` tokens; `greedy` when each was the likeliest."""

    logprob: float
    tokens: int
    greedy: bool

    def __add__(self, other: Score) -> Score:
        return Score(self.logprob + other.logprob, self.tokens + other.tokens, self.greedy and other.greedy)


class LM(Protocol):
    """`context_length` None: unknown. `count` is the number of tokens of a text, an estimate where nobody counts.
    `weights` tells two models of one name apart; empty where nobody knows."""

    @property
    def name(self) -> str: ...

    @property
    def weights(self) -> str: ...

    @property
    def context_length(self) -> int | None: ...

    def count(self, text: str) -> int: ...

    def generate(self, asks: Sequence[Ask]) -> list[str]: ...

    def loglikelihood(self, spans: Sequence[Span]) -> list[Score]: ...


class EngineLM:
    """leadline's engine in this process."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm

    @property
    def name(self) -> str:
        return self.llm.engine.info.model

    @functools.cached_property
    def weights(self) -> str:
        """A hash over a few numbers of every tensor: training changes them all."""
        digest = hashlib.sha256()
        for name, tensor in self.llm.engine.model_runner.model.named_parameters():
            numbers = tensor.detach().flatten()[:SAMPLED].float().tolist()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {numbers}".encode())
        return digest.hexdigest()[:16]

    @property
    def context_length(self) -> int | None:
        return self.llm.engine.limit

    def count(self, text: str) -> int:
        return len(self.llm.tokenizer.encode(text))

    # ---- generation --------------------------------------------------------------------------------------------

    def generate(self, asks: Sequence[Ask]) -> list[str]:
        answers: dict[int, str] = {}
        for chat in (False, True):
            places = [place for place, ask in enumerate(asks) if ask.chat == chat]
            for place, output in zip(places, self._generate([asks[place] for place in places], chat), strict=True):
                if output.finish_reason == "error":
                    raise EngineError(output.outputs[0].error or "the engine gave no answer")
                answers[place] = output.text
        return [answers[place] for place in range(len(asks))]

    def _generate(self, asks: Sequence[Ask], chat: bool) -> list[RequestOutput]:
        from leadline.engine.types import SamplingParams

        if not asks:
            return []
        params = [SamplingParams(temperature=0.0, max_tokens=ask.max_tokens, stop=ask.stop) for ask in asks]
        if chat:
            return self.llm.chat([ask.messages for ask in asks], params)
        return self.llm.generate([ask.prompt for ask in asks], params)

    # ---- log-likelihood ----------------------------------------------------------------------------------------

    def loglikelihood(self, spans: Sequence[Span]) -> list[Score]:
        """Spans longer than the context are scored in windows, each with as much before it as half a context holds."""
        windows = [
            (place, ids, start) for place, span in enumerate(spans) for ids, start in self._windows(*self._encode(span))
        ]
        first, rest = _leaders(windows, self.llm.engine.cache.page_size)
        scores = [Score(0.0, 0, True)] * len(spans)
        for group in (first, rest):
            for (place, _, _), score in zip(group, self._score(group), strict=True):
                scores[place] += score
        return scores

    def _encode(self, span: Span) -> tuple[tuple[int, ...], int]:
        """The ids of context and text together, and where the text's begin: at the first that the context alone would
        not have had, for a token may reach over the seam."""
        whole = self.llm.tokenizer.encode_prompt(span.context + span.text).ids
        alone = self.llm.tokenizer.encode_prompt(span.context).ids
        shared = next((i for i, (a, b) in enumerate(zip(whole, alone, strict=False)) if a != b), len(alone))
        return whole, min(max(shared, 1), len(whole))

    def _windows(self, ids: tuple[int, ...], start: int) -> Iterator[tuple[tuple[int, ...], int]]:
        """Each id from `start` on is scored in exactly one window; every window begins as the first, with BOS."""
        limit = self.llm.engine.limit - 1
        while start < len(ids):
            begin = 0 if len(ids) <= limit else max(0, min(start - limit // 2, len(ids) - limit))
            end = min(len(ids), begin + limit)
            yield ids[:1] + ids[begin + 1 : end], start - begin
            start = end

    def _score(self, windows: Sequence[Window]) -> list[Score]:
        from leadline.engine.types import SamplingParams

        params = [
            SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, prompt_logprobs_from=start)
            for _, _, start in windows
        ]
        outputs = self.llm.generate([ids for _, ids, _ in windows], params) if windows else []
        return [_prompt_score(output) for output in outputs]


def _prompt_score(output: RequestOutput) -> Score:
    if output.finish_reason == "error":
        raise EngineError(output.outputs[0].error or "the engine gave no answer")
    entries = [entry for entry in output.prompt_logprobs if entry is not None]
    return Score(sum(e.logprob for e in entries), len(entries), all(e.rank == 1 for e in entries))


def _leaders(windows: Sequence[Window], page: int) -> tuple[list[Window], list[Window]]:
    """The first window with each first page of tokens, and the others, which then find that page and what follows it in
    the prefix cache."""
    seen: set[tuple[int, ...]] = set()
    first: list[Window] = []
    rest: list[Window] = []
    for window in windows:
        key = window[1][:page]
        (rest if key in seen else first).append(window)
        seen.add(key)
    return first, rest


@dataclasses.dataclass(frozen=True, slots=True)
class EchoedToken:
    text: str
    logprob: float | None
    greedy: bool


class HttpLM:
    """An OpenAI-compatible server; `model` None is the first it names."""

    def __init__(self, client: Client, model: str | None = None, *, concurrency: int = CONCURRENCY) -> None:
        self.client = client
        self.concurrency = concurrency
        self.model = model or _first_model(client)
        self._contexts: dict[str, list[EchoedToken]] = {}
        self._most = 0  # max_tokens of a request that wants nothing but the prompt's log-probabilities

    @property
    def name(self) -> str:
        return self.model

    @property
    def weights(self) -> str:
        return ""

    @property
    def context_length(self) -> int | None:
        return None

    def count(self, text: str) -> int:
        return math.ceil(len(text) / CHARACTERS_PER_TOKEN)

    def generate(self, asks: Sequence[Ask]) -> list[str]:
        return self._many(self._answer, asks)

    def _answer(self, ask: Ask) -> str:
        fields: dict[str, Any] = {"model": self.model, "temperature": 0, "max_tokens": ask.max_tokens}
        fields["stop"] = list(ask.stop) or None
        if ask.chat:
            return self.client.chat(ask.messages, **fields).text
        try:
            return self.client.complete(ask.prompt, **fields).text
        except (NotFound, ModelNotFound) as error:
            raise type(error)(f"{error.message}; a server without /completions can be asked with --chat") from None

    def loglikelihood(self, spans: Sequence[Span]) -> list[Score]:
        """By `echo` with `logprobs` on /completions; a document that does not fit is scored in halves."""
        return self._many(self._span, spans)

    def _span(self, span: Span) -> Score:
        try:
            return self._score(span)
        except ContextLengthExceeded:
            if span.context or len(span.text) < 2:
                raise
            middle = span.text.rfind(" ", 1, len(span.text) // 2 + 1)
            middle = middle if middle > 0 else len(span.text) // 2
            return self._span(Span("", span.text[:middle])) + self._span(Span("", span.text[middle:]))

    def _score(self, span: Span) -> Score:
        """The text's tokens begin at the first that the context alone would not have had."""
        whole = self._tokens(span.context + span.text)
        alone = self._context(span.context)
        start = next((i for i, (a, b) in enumerate(zip(whole, alone, strict=False)) if a.text != b.text), len(alone))
        scored = [token for token in whole[start:] if token.logprob is not None]
        return Score(sum(token.logprob or 0.0 for token in scored), len(scored), all(t.greedy for t in scored))

    def _context(self, context: str) -> list[EchoedToken]:
        """Kept, since each choice of a question asks for the same."""
        if context not in self._contexts:
            if len(self._contexts) > KEPT_CONTEXTS:
                self._contexts.clear()
            self._contexts[context] = self._tokens(context) if context else []
        return self._contexts[context]

    def _tokens(self, prompt: str) -> list[EchoedToken]:
        try:
            reply = self._echo(prompt)
        except ContextLengthExceeded:
            raise
        except (InvalidRequest, ModelNotFound, NotFound) as error:
            raise self._unable(error.message) from None
        tokens = echoed_tokens(reply.raw["choices"][0].get("logprobs") or {})
        tokens = tokens[: len(tokens) - self._most]
        if not any(token.logprob is not None for token in tokens[1:]) and len(tokens) != 1:
            raise self._unable("its answer holds none")
        return tokens

    def _echo(self, prompt: str) -> Reply:
        """Nothing but the prompt, or with one token more where a server insists on one."""
        fields = {"model": self.model, "echo": True, "logprobs": 1, "temperature": 0}
        try:
            return self.client.complete(prompt, max_tokens=self._most, **fields)
        except ContextLengthExceeded:
            raise
        except InvalidRequest:
            if self._most:
                raise
            reply = self.client.complete(prompt, max_tokens=1, **fields)
            self._most = 1
            return reply

    def _unable(self, reason: str) -> UserError:
        return UserError(
            f"{self.client.base_url} gives no log-probabilities of a prompt ({reason}), which tasks of choice and bits "
            f"per byte need: /completions with echo and logprobs; choose tasks that generate, or another server"
        )

    def _many(self, ask: Callable[[Question], Answer], questions: Sequence[Question]) -> list[Answer]:
        """Some at a time; after a failure no more are begun."""
        with ThreadPoolExecutor(max_workers=self.concurrency) as pool:
            futures = [pool.submit(ask, question) for question in questions]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _first_model(client: Client) -> str:
    names = client.models()
    if not names:
        raise UserError(f"{client.base_url} names no model; give one with --model")
    return names[0]


def echoed_tokens(logprobs: Mapping[str, Any]) -> list[EchoedToken]:
    """The body's parallel lists as one; the first token of all has no log-probability."""
    values = logprobs.get("token_logprobs") or []
    tops = logprobs.get("top_logprobs") or [None] * len(values)
    return [
        EchoedToken(text, value, value is not None and value >= max((top or {}).values(), default=value) - 1e-6)
        for text, value, top in zip(logprobs.get("tokens") or [], values, tops, strict=True)
    ]
