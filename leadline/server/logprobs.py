"""Log-probabilities as the two endpoints show them, given out with the text they belong to.

The engine reports a token when it samples it, but its text may be held back (half a character, the beginning of a stop
string) or never come (the stop string itself, EOS). A token is shown once the text has reached it, so that the tokens
shown spell the text shown; one that the text's end cuts through is shown whole.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Sequence
from typing import Any

from leadline.engine.types import FinishReason, TokenLogprob

LEAST = -9999.0  # as OpenAI writes what is impossible


class Aligner:
    """One choice's text and tokens in step; with `strip_space` both lose the one space that opens a chat answer."""

    def __init__(self, hidden: frozenset[int], *, strip_space: bool) -> None:
        self._hidden = hidden
        self._strip_text = self._strip_token = strip_space
        self._held: deque[TokenLogprob] = deque()
        self._text_end = self._token_end = 0  # in bytes

    def push(
        self, text: str, logprobs: Sequence[TokenLogprob], finish_reason: FinishReason | None
    ) -> tuple[str, tuple[TokenLogprob, ...]]:
        shown = self._reached(text, logprobs, finish_reason) if logprobs or self._held else ()
        if self._strip_text and text:
            self._strip_text = False
            text = text.removeprefix(" ")
        return text, shown

    def _reached(
        self, text: str, logprobs: Sequence[TokenLogprob], finish_reason: FinishReason | None
    ) -> tuple[TokenLogprob, ...]:
        self._held.extend(entry for entry in logprobs if entry.token_id not in self._hidden)
        self._text_end += len(text.encode("utf-8"))
        shown: list[TokenLogprob] = []
        while self._held and (self._token_end < self._text_end or finish_reason == "length"):
            entry = self._held.popleft()
            self._token_end += len(entry.text_bytes)
            shown.append(self._stripped(entry))
        return tuple(shown)

    def _stripped(self, entry: TokenLogprob) -> TokenLogprob:
        if not self._strip_token:
            return entry
        self._strip_token = False
        return dataclasses.replace(entry, text_bytes=entry.text_bytes.removeprefix(b" "))


def chat_logprobs(entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    """{"content": [{token, logprob, bytes, top_logprobs}], "refusal": null}"""
    content = [{**_entry(entry), "top_logprobs": [_entry(other) for other in entry.top]} for entry in entries]
    return {"content": content, "refusal": None}


@dataclasses.dataclass(frozen=True, slots=True)
class ShownToken:
    """A token of a raw completion: `width` is how many characters of the text it takes up."""

    text: str
    width: int
    logprob: TokenLogprob | None  # None: the first token of a prompt follows nothing


def completion_logprobs(tokens: Sequence[ShownToken], offset: int) -> dict[str, Any]:
    """{tokens, token_logprobs, top_logprobs, text_offset}; `offset` is where in the text the first token stands."""
    offsets = list(itertools.accumulate((token.width for token in tokens), initial=offset))[:-1]
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob and _number(token.logprob) for token in tokens],
        "top_logprobs": [token.logprob and _top(token.logprob) for token in tokens],
        "text_offset": offsets,
    }


def _top(entry: TokenLogprob) -> dict[str, float]:
    """Of several tokens that look alike the likeliest is kept."""
    return {_text(other): _number(other) for other in reversed(entry.top or (entry,))}


def _entry(entry: TokenLogprob) -> dict[str, Any]:
    return {"token": _text(entry), "logprob": _number(entry), "bytes": list(entry.text_bytes)}


def _number(entry: TokenLogprob) -> float:
    """JSON has no infinity: what cannot be said is very unlikely."""
    return max(entry.logprob, LEAST)


def _text(entry: TokenLogprob) -> str:
    return entry.text_bytes.decode("utf-8", errors="replace")
