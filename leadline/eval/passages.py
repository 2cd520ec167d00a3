"""Questions on a passage, asked after others on it: RACE, DROP and CMRC (appendix G, tables 20, 21 and 33)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Question = TypeVar("Question")


def others(questions: Sequence[Question], place: int, count: int) -> list[Question]:
    """`count` questions of the same passage as examples for the one at `place`: those before it, the nearest when they
    are more, and then those after it."""
    before, after = questions[:place], questions[place + 1 :]
    return [*before[max(0, len(before) - count) :], *after][:count]
