"""Sums: additions and subtractions up to 999 as people ask for them, of operand pairs that no training data holds.

A pair is held out by a hash of its two numbers, whatever is asked of them and in whatever order, so that whoever makes
training data leaves it out by asking `held_out` before the first line is written. Numbers under 20 are never held out:
a worked-out sum is made of sums of digits, and a borrowing one of differences from up to 19.
"""

from __future__ import annotations

import functools
import hashlib

from leadline.eval.answers import last_number
from leadline.eval.task import Generation, Item, Setup, Task
from leadline.eval.tasks.arithmetic import solve

LARGEST = 999
SMALLEST_HELD_OUT = 20  # of the larger number of a pair
KEPT = {2: 100, 3: 2}
"""How many of a thousand pairs are held out, by the digits of the larger number."""
ASKED = {2: 400, 3: 600}
"""How many of those the task asks; the others stay unseen too."""

QUESTIONS = {
    "+": (
        "What is {a} + {b}?",
        "What is {a} plus {b}?",
        "How much is {a} + {b}?",
        "{a} + {b} = ?",
        "Add {a} and {b}.",
        "Please calculate {a} + {b}.",
        "{a} + {b} 等于多少？",
        "{a} 加 {b} 是多少？",
    ),
    "-": (
        "What is {a} - {b}?",
        "What is {a} minus {b}?",
        "How much is {a} - {b}?",
        "{a} - {b} = ?",
        "Subtract {b} from {a}.",
        "Please calculate {a} - {b}.",
        "{a} - {b} 等于多少？",
        "{a} 减 {b} 是多少？",
    ),
}


def held_out(a: int, b: int) -> bool:
    """Whether these two numbers are kept for evaluation: never teach their sum or their difference."""
    larger = max(a, b)
    return SMALLEST_HELD_OUT <= larger <= LARGEST and _hash(a, b) % 1000 < KEPT[len(str(larger))]


def _hash(a: int, b: int) -> int:
    """A number that the pair names, in either order."""
    return int.from_bytes(hashlib.blake2b(f"{min(a, b)} {max(a, b)}".encode(), digest_size=8).digest(), "big")


@functools.cache
def pairs() -> tuple[tuple[int, int], ...]:
    """(smaller, larger) of the thousand pairs that are asked, the same every time."""
    found: list[tuple[int, int]] = []
    for digits, count in ASKED.items():
        numbers = range(max(SMALLEST_HELD_OUT, 10 ** (digits - 1)), 10**digits)
        kept = [(small, large) for large in numbers for small in range(large + 1) if held_out(small, large)]
        found += sorted(kept, key=lambda pair: _hash(*pair) // 1000)[:count]
    return tuple(found)


def load(setup: Setup) -> list[Item]:
    """Half additions, half differences that are not negative, each in one of the wordings, all by the pair's hash."""
    return [_item(small, large) for small, large in pairs()]


def _item(small: int, large: int) -> Item:
    draw = _hash(small, large) // 1_000_000
    operation = "+-"[draw % 2]
    a, b = (small, large) if operation == "+" and draw // 2 % 2 else (large, small)
    wordings = QUESTIONS[operation]
    digits = len(str(large))
    return Item(
        f"{a}{operation}{b}",
        wordings[draw // 4 % len(wordings)].format(a=a, b=b),
        f" {solve(a, operation, b)}",
        group=f"{digits} digits {'plus' if operation == '+' else 'minus'}",
        facts={"result": str(solve(a, operation, b))},
    )


def right(answer: str, result: int) -> bool:
    """The last number of an answer counts: what is worked out ends in it."""
    return last_number(answer.replace("−", "-")) == result


def mark(item: Item, answer: str) -> float:
    return float(right(answer, int(item.facts["result"])))


TASK = Task(
    name="sums",
    about="sums of 1,000 pairs of numbers up to 999, held out by hash, asked in English and Chinese",
    load=load,
    method=Generation(mark, max_tokens=96, chat=True),
    metric="EM",
    chance=0.001,  # a number up to 999
    needs_data=False,
)
