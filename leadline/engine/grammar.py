"""Grammars: what may come next in an answer that must have a form. llguidance compiles them and keeps the place.

A grammar is compiled once and kept; each answer walks through a copy of its own. What a step gets is a bit for each
token, so nothing here knows what a logit is. Control tokens never match a grammar's text, whatever their names spell;
EOS is allowed where the grammar may end, and nothing but EOS where it must. Compiling may take a second and lets other
threads run meanwhile; fuel bounds it, not a clock, so that the same grammar is always accepted or always not.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from leadline.engine.types import Grammar
from leadline.errors import EngineError, InvalidRequest

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

KEPT = 64  # compiled grammars
FORCED = 16  # tokens without a choice that a new grammar is followed through
# Enough for OpenAI's own limits on schemas; the fuel of the first stage is about a tenth of a second on one core.
MAX_LEXER_FUEL, MAX_STEP_FUEL, MAX_ITEMS, MAX_STATES, MAX_SYMBOLS = 1_000_000, 400_000, 50_000, 50_000, 200_000
# Between JSON's signs: nothing, a space, or a new line and its indentation. Weak models never leave endless whitespace.
WHITESPACE = r"( |\n[ ]{0,20})?"


class Constraint(Protocol):
    """A grammar's place in one answer."""

    def allowed(self) -> bytes:
        """A bit for each token, the lowest first: whether it may come next. Tokens past the end may not."""
        ...

    def accept(self, token_id: int) -> None:
        """The answer goes on with this token."""
        ...


class ConstraintProvider(Protocol):
    """Makes constraints from grammars; `InvalidRequest` for one that it cannot read."""

    def prepare(self, grammar: Grammar) -> None:
        """The slow part of `start`, for a thread that may take its time. Any number of threads may call it."""
        ...

    def start(self, grammar: Grammar) -> Constraint: ...


class GrammarVocabulary(Protocol):
    """What grammars need of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def bos_id(self) -> int: ...

    @property
    def eos_id(self) -> int: ...

    @property
    def control_ids(self) -> frozenset[int]: ...

    def token_bytes(self, token_id: int, /) -> bytes: ...

    def encode(self, text: str) -> list[int]: ...


class GrammarProvider:
    """`ConstraintProvider` over llguidance. The library is loaded with the first grammar."""

    def __init__(self, vocabulary: GrammarVocabulary, eos_ids: Iterable[int] = ()) -> None:
        self.vocabulary = vocabulary
        self.eos_ids = sorted({vocabulary.eos_id, *eos_ids})
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._compiling = threading.Lock()  # one at a time: each takes a core
        self._keeping = threading.Lock()  # never held for long: the engine's own thread waits for it

    def prepare(self, grammar: Grammar) -> None:
        with self._compiling:
            if self._copy(grammar) is None:
                self._keep(grammar, self._compile(grammar))

    def start(self, grammar: Grammar) -> Constraint:
        while (matcher := self._copy(grammar)) is None:
            self.prepare(grammar)
        return Walk(matcher)

    def _copy(self, grammar: Grammar) -> LLMatcher | None:
        with self._keeping:
            if grammar not in self._compiled:
                return None
            self._compiled.move_to_end(grammar)
            return self._compiled[grammar].deep_copy()

    def _keep(self, grammar: Grammar, matcher: LLMatcher) -> None:
        with self._keeping:
            self._compiled[grammar] = matcher
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)

    def _compile(self, grammar: Grammar) -> LLMatcher:
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(
            initial_lexer_fuel=MAX_LEXER_FUEL,
            step_lexer_fuel=MAX_STEP_FUEL,
            step_max_items=MAX_ITEMS,
            max_lexer_states=MAX_STATES,
            max_grammar_size=MAX_SYMBOLS,
        )
        self._tokenizer = self._tokenizer or self._make_tokenizer()
        matcher = LLMatcher(self._tokenizer, _source(grammar), log_level=0, limits=limits)
        probe = matcher.deep_copy()
        allowed = _bits(probe)  # the first step's work is a part of compiling
        for _ in range(FORCED):  # what is impossible shows at the first choice
            if allowed.bit_count() != 1 or not probe.consume_token(allowed.bit_length() - 1):
                break
            allowed = 0 if probe.is_stopped() else _bits(probe)
        if probe.is_error():
            raise InvalidRequest(f"the grammar cannot be used: {_reason(probe.get_error())}", param="grammar")
        return matcher

    def _make_tokenizer(self) -> LLTokenizer:
        from llguidance import LLTokenizer, TokenizerWrapper

        size = self.vocabulary.vocab_size
        return LLTokenizer(TokenizerWrapper(_Spelling(self.vocabulary)), n_vocab=size, eos_token=self.eos_ids)


class Walk:
    """One answer's way through a grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def allowed(self) -> bytes:
        bits = self._matcher.compute_bitmask()
        self._check()
        return bits

    def accept(self, token_id: int) -> None:
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise EngineError(f"the grammar cannot go on: {_reason(self._matcher.get_error())}")


class _Spelling:
    """A vocabulary in the words of llguidance's `TokenizerWrapper`."""

    def __init__(self, vocabulary: GrammarVocabulary) -> None:
        self.eos_token_id = vocabulary.eos_id
        self.bos_token_id = vocabulary.bos_id
        self.tokens = [vocabulary.token_bytes(token_id) for token_id in range(vocabulary.vocab_size)]
        self.special_token_ids = sorted(vocabulary.control_ids)
        self._encode = vocabulary.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text.decode() if isinstance(text, bytes) else text)


def _source(grammar: Grammar) -> str:
    from llguidance import LLMatcher

    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.text)
    if grammar.kind == "lark":
        return LLMatcher.grammar_from_lark(grammar.text)
    schema = '{"type": "object"}' if grammar.kind == "json_object" else grammar.text
    try:
        return LLMatcher.grammar_from_json_schema(json.loads(schema), defaults={"whitespace_pattern": WHITESPACE})
    except ValueError as error:
        raise InvalidRequest(f"the JSON schema cannot be read: {error}", param="grammar") from None


def _bits(matcher: LLMatcher) -> int:
    return int.from_bytes(matcher.compute_bitmask(), "little")


def _reason(error: str) -> str:
    """llguidance's own words in one line, without its state and the listings of the source, which are indented."""
    if "NoExtension" in error:
        return "no text matches it"
    text = " ".join(line for line in error.partition("<state>")[0].splitlines() if line and not line.startswith("  "))
    return text.rpartition("failed to compile JSON schema: ")[2].strip()[:300]
