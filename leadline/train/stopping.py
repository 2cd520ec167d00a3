"""How every run is stopped: a signal asks, and the loop finishes its step, saves and leaves."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any

STDERR = 2
SAID = b"stopping: this step is finished and saved; Ctrl-C again leaves at once\n"


class Stopping:
    """A context in which SIGTERM and Ctrl-C only set `asked`; a second Ctrl-C does not wait."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stopping:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        """Says so past Python's buffers, which may be in use."""
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        os.write(STDERR, SAID)
