"""A check and how it ended.

Invariant: nothing that a folder or a server does ends the report; whatever it runs into is that one check's failure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Literal

from leadline.errors import LeadlineError

State = Literal["pass", "fail", "skip"]


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """`detail` says what was compared, what differs, or why it does not apply."""

    name: str
    state: State
    detail: str


class CheckFailed(Exception):
    """What was expected and what was found."""


class NotApplicable(Exception):
    """Why this check says nothing about this model."""


def run_check(name: str, function: Callable[[], str]) -> Check:
    """`function` returns what it compared, or raises."""
    try:
        return Check(name, "pass", function())
    except NotApplicable as reason:
        return Check(name, "skip", str(reason))
    except (CheckFailed, LeadlineError) as fault:
        return Check(name, "fail", str(fault))
    except Exception as fault:  # the folder's fault or ours: either way not a pass
        return Check(name, "fail", f"{type(fault).__name__}: {fault}")


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise CheckFailed(message)


def all_passed(checks: Iterable[Check]) -> bool:
    return all(check.state != "fail" for check in checks)
