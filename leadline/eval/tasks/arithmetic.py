"""Arithmetic: sums, differences and products that no training data holds. Made here, no data needed.

Which operands are held out is decided by a hash of the sum itself, so that whoever makes training data can leave them
out by asking `held_out`, before the first line of it is written.
"""

from __future__ import annotations

import hashlib
import random

from leadline.eval.answers import last_number
from leadline.eval.task import Generation, Item, Setup, Task

ITEMS = 1000
KINDS = (("+", 1), ("-", 1), ("*", 1), ("+", 2), ("-", 2), ("*", 2), ("+", 3), ("-", 3))  # operation, digits
WORDS = {"+": "plus", "-": "minus", "*": "times"}
SHARE = 10  # percent


def held_out(a: int, operation: str, b: int) -> bool:
    """Whether a sum is kept for evaluation; never teach it."""
    return int.from_bytes(hashlib.sha256(f"{a}{operation}{b}".encode()).digest()[:4], "big") % 100 < SHARE


def solve(a: int, operation: str, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b}[operation]


def question(a: int, operation: str, b: int) -> str:
    return f"What is {a} {operation} {b}?"


def load(setup: Setup) -> list[Item]:
    known = "".join(f"Q: {question(a, o, b)}\nA: {solve(a, o, b)}\n\n" for a, o, b in _shots(setup.shots))
    return [
        Item(
            f"{a}{operation}{b}",
            question(a, operation, b) if setup.chat else f"{known}Q: {question(a, operation, b)}\nA:",
            f" {solve(a, operation, b)}",
            group=f"{digits} digit{'s' if digits > 1 else ''} {WORDS[operation]}",
            facts={"result": str(solve(a, operation, b))},
        )
        for digits, a, operation, b in sums()
    ]


def _shots(count: int) -> list[tuple[int, str, int]]:
    """Of each operation in turn, none of them held out."""
    draw = random.Random(1)
    found: list[tuple[int, str, int]] = []
    while len(found) < count:
        a, operation, b = draw.randint(1, 99), "+-*"[len(found) % 3], draw.randint(1, 99)
        if not held_out(a, operation, b):
            found.append((a, operation, b))
    return found


def sums() -> list[tuple[int, int, str, int]]:
    """(digits, a, operation, b): held out, all different, the same every time. Of small sums there are fewer."""
    draw = random.Random(0)
    found: dict[tuple[int, str, int], int] = {}
    for place, (operation, digits) in enumerate(KINDS):
        low, high = (0, 9) if digits == 1 else (10 ** (digits - 1), 10**digits - 1)
        pairs = [(a, b) for a in range(low, high + 1) for b in range(low, high + 1)] if digits < 3 else []
        drawn = pairs or [(draw.randint(low, high), draw.randint(low, high)) for _ in range(20 * ITEMS)]
        kept = list(dict.fromkeys((a, operation, b) for a, b in drawn if held_out(a, operation, b)))
        draw.shuffle(kept)
        for each in kept[: -(-(ITEMS - len(found)) // (len(KINDS) - place))]:
            found[each] = digits
    return [(digits, a, operation, b) for (a, operation, b), digits in found.items()]


def mark(item: Item, answer: str) -> float:
    """The first line counts: in a chat the last number of it, as in "12 + 30 = 42"."""
    lines = answer.strip().splitlines()
    return float(bool(lines) and last_number(lines[0].replace("−", "-")) == int(item.facts["result"]))


TASK = Task(
    name="arithmetic",
    about="sums that were held out by hash, one to three digits",
    load=load,
    method=Generation(mark, stop=("\n",), max_tokens=32),
    shots=3,
    metric="EM",
    needs_data=False,
)
