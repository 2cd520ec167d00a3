"""From ids to text, one id at a time.

Ids stand for bytes, and a character may be spread over several ids: what is given out never ends inside a character,
nor inside what may become a stop string, and joined together it is what `Tokenizer.decode` gives for all ids at once.
Neither the work an id takes nor what is kept grows with the text before it.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol


class ByteVocabulary(Protocol):
    """What decoding needs of a tokenizer."""

    @property
    def special_ids(self) -> frozenset[int]: ...

    def token_bytes(self, token_id: int, /) -> bytes: ...


class StreamDecoder:
    """The text of one sequence, as it grows.

    The text ends where a stop string is first complete: before it, or after it with `include_stop`; of two that are
    complete at the same character, the longer counts. During the first `min_tokens` ids stop strings are not looked
    for.
    """

    def __init__(
        self,
        tokenizer: ByteVocabulary,
        stop: Sequence[str] = (),
        *,
        include_stop: bool = False,
        skip_special_tokens: bool = True,
        min_tokens: int = 0,
    ) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._matcher = StopMatcher(stop, include_stop=include_stop)
        self._unmatched = min_tokens

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text."""
        return self._matcher.stopped

    def push(self, token_id: int) -> str:
        """The text that is certain now. Nothing comes after a stop string."""
        token = b"" if token_id in self._skipped else self._tokenizer.token_bytes(token_id)
        text = self._utf8.decode(token)
        if self._unmatched > 0 and self.stopped is None:
            self._unmatched -= 1
            return text
        return self._matcher.push(text)

    def finish(self) -> str:
        """What was held back; a character that was cut off becomes U+FFFD."""
        text = self._matcher.push(self._utf8.decode(b"", final=True))
        return text + self._matcher.finish()


class StopMatcher:
    """Finds the first complete stop string in a growing text and holds back what may become one.

    For each stop string it knows how much of it the text ends with (Knuth, Morris and Pratt), so a character takes
    constant time and where the text is cut never depends on how it was divided.
    """

    def __init__(self, stop: Sequence[str], *, include_stop: bool = False) -> None:
        self.stopped: str | None = None
        self._include_stop = include_stop
        self._stops = sorted((text for text in set(stop) if text), key=lambda text: (-len(text), text))
        self._fallbacks = [_fallbacks(text) for text in self._stops]
        self._matched = [0] * len(self._stops)
        self._held = ""

    def push(self, text: str) -> str:
        if self.stopped is not None:
            return ""
        if not self._stops:
            return text
        for index, character in enumerate(text):
            if (stop := self._advance(character)) is not None:
                return self._cut(stop, self._held + text[: index + 1])
        return self._release(self._held + text, max(self._matched))

    def finish(self) -> str:
        """The text ends here: nothing more can complete a stop string."""
        return self._release(self._held, 0)

    def _advance(self, character: str) -> str | None:
        """Take one character; the longest stop string that it completes."""
        found = None
        for which, stop in enumerate(self._stops):
            matched = self._matched[which]
            while matched and stop[matched] != character:
                matched = self._fallbacks[which][matched - 1]
            matched += stop[matched] == character
            self._matched[which] = matched
            if matched == len(stop):
                found = found or stop
                self._matched[which] = 0
        return found

    def _cut(self, stop: str, text: str) -> str:
        self.stopped = stop
        self._held = ""
        return text if self._include_stop else text[: -len(stop)]

    def _release(self, text: str, held: int) -> str:
        cut = len(text) - held
        self._held = text[cut:]
        return text[:cut]


def _fallbacks(text: str) -> list[int]:
    """For each prefix of `text`, the length of its longest proper prefix that is also its suffix."""
    lengths = [0]
    for character in text[1:]:
        length = lengths[-1]
        while length and text[length] != character:
            length = lengths[length - 1]
        lengths.append(length + (text[length] == character))
    return lengths
