"""Server-sent events, read: bytes in, the data of whole events out. Lines end at LF, CR or both, and nowhere else."""

from __future__ import annotations

import re

_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventDecoder:
    """Bytes may be cut anywhere, inside a character too; an event is given out once the empty line after it came."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[str]:
        held = self._rest + chunk
        cut = len(held) - 1 if held.endswith(b"\r") else len(held)  # an LF may still belong to this CR
        *lines, rest = _LINE_END.split(held[:cut])
        self._rest = rest + held[cut:]
        return [event for line in lines if (event := self._line(line)) is not None]

    def _line(self, line: bytes) -> str | None:
        if line:
            field, _, value = line.partition(b":")
            if field == b"data":
                self._data.append(value.removeprefix(b" "))
            return None
        data, self._data = self._data, []
        return b"\n".join(data).decode("utf-8", errors="replace") if data else None
