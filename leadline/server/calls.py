"""Reading calls back out of an answer, piece by piece as it streams. Its grammar has seen to the form."""

from __future__ import annotations

import dataclasses
import re

from leadline.server.tools import CALL, CALL_END

_OPENING = re.compile(r'\n\{"name": "([\w-]+)", "arguments": ', re.ASCII)


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Some of an answer: text of its own, or of call number `call`, which `name` opens."""

    text: str
    call: int | None = None
    name: str | None = None


class CallReader:
    """Takes one answer apart while it streams. Of the text before a call the whitespace at its end is not given out."""

    def __init__(self) -> None:
        self.calls = 0  # opened
        self._held = ""
        self._read = self._text
        self._depth = 0
        self._quoted = self._escaped = False

    def push(self, text: str) -> list[Piece]:
        self._held += text
        pieces: list[Piece] = []
        while self._read(pieces):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        """The answer ends here: what was held back as the possible beginning of a call was none."""
        held, self._held = self._held, ""
        return [Piece(held)] if held and self._read == self._text and not self.calls else []

    @property
    def complete(self) -> bool:
        """Whether there were calls, and the last one has been read to its end."""
        return self.calls > 0 and self._read == self._text

    # Each reads what it can and says whether the next one may find something.

    def _text(self, pieces: list[Piece]) -> bool:
        text, mark, rest = self._held.partition(CALL)
        safe = text.rstrip() if mark else _before_mark(text)
        if safe:
            pieces.append(Piece(safe))
        self._held = rest if mark else self._held[len(safe) :]
        if mark:
            self._read = self._opening
        return bool(mark)

    def _opening(self, pieces: list[Piece]) -> bool:
        if (match := _OPENING.match(self._held)) is None:
            return False
        pieces.append(Piece("", self.calls, match[1]))
        self.calls += 1
        self._held = self._held[match.end() :]
        self._read = self._arguments
        return True

    def _arguments(self, pieces: list[Piece]) -> bool:
        end = self._end_of_object()
        text, self._held = self._held[:end], self._held[end:]
        if text:
            pieces.append(Piece(text, self.calls - 1))
        if end == 0 or self._depth:
            return False
        self._read = self._closing
        return True

    def _closing(self, pieces: list[Piece]) -> bool:
        if not self._held.startswith(CALL_END):
            return False
        self._held = self._held[len(CALL_END) :]
        self._read = self._text
        return True

    def _end_of_object(self) -> int:
        """How far what is held belongs to the arguments: to the brace that closes them, or all of it."""
        for place, character in enumerate(self._held):
            if self._quoted:
                self._quoted = self._escaped or character != '"'
                self._escaped = character == "\\" and not self._escaped
            elif character == '"':
                self._quoted = True
            else:
                self._depth += (character in "{[") - (character in "}]")
                if self._depth == 0 and character == "}":
                    return place + 1
        return len(self._held)


def _before_mark(text: str) -> str:
    """As much of a text as no call's mark can still begin in, nor the whitespace before one."""
    for length in range(min(len(CALL) - 1, len(text)), 0, -1):
        if text.endswith(CALL[:length]):
            return text[:-length].rstrip()
    return text.rstrip()
