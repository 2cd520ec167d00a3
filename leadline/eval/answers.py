"""What an answer says: numbers, boxed expressions, the words after "the answer is", code between marks.

The scorers here also serve as rewards in training, so each is a plain function of texts.
"""

from __future__ import annotations

import re
import threading
from fractions import Fraction

SECONDS = 5  # for two expressions to be compared

_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")
_ANSWER_IS = re.compile(r"answer is:?\s*(.+?)(?:\.\s*$|\.\s|\n|$)", re.IGNORECASE | re.MULTILINE)
_FINAL = re.compile(r"final answer is:?\s*\$?(.+?)\$?\.?\s*(?:I hope it is correct|\n|$)", re.IGNORECASE)


def number(text: str) -> Fraction | None:
    """A number as people write it: $1,200.50 or -3."""
    cleaned = text.replace(",", "").replace("$", "")
    try:
        return Fraction(cleaned)
    except (ValueError, ZeroDivisionError):
        return None


def last_number(text: str) -> Fraction | None:
    found = _NUMBER.findall(text)
    return number(found[-1]) if found else None


def answer_number(text: str) -> Fraction | None:
    """The number after "the answer is", or else the last one."""
    stated = _ANSWER_IS.findall(text)
    first = _NUMBER.search(stated[0]) if stated else None
    return number(first.group()) if first else last_number(text)


def stated_answer(text: str) -> str:
    """The words after the first "answer is", without the full stop; else the last line."""
    found = _ANSWER_IS.search(text)
    if found:
        return found.group(1).strip().rstrip(".")
    lines = text.strip().splitlines()
    return lines[-1].strip().rstrip(".") if lines else ""


def boxed(text: str) -> str | None:
    r"""What the last \boxed{} holds, braces balanced."""
    start = max(text.rfind(r"\boxed{"), text.rfind(r"\fbox{"))
    if start < 0:
        return None
    opened = text.index("{", start)
    depth = 0
    for place in range(opened, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[opened + 1 : place]
    return None


def final_expression(text: str) -> str:
    """The expression after "The final answer is", or else in the last box."""
    found = _FINAL.search(text)
    return found.group(1).strip() if found else (boxed(text) or "")


def same_expression(given: str, right: str) -> bool:
    """Whether two LaTeX expressions mean the same, by math-verify; alike texts are, whatever they mean."""
    if plain(given) == plain(right):
        return bool(plain(given))
    if not given.strip():
        return False
    from math_verify import parse, verify

    # Its timers need signals, which only the main thread may set.
    seconds = SECONDS if threading.current_thread() is threading.main_thread() else None
    gold, answer = (parse(f"${text}$", parsing_timeout=seconds) for text in (right, given))
    return bool(verify(gold, answer, timeout_seconds=seconds))


def plain(expression: str) -> str:
    """Without what only changes how an expression looks."""
    text = re.sub(r"\\(?:left|right|,|!|;|:|quad|displaystyle)(?![a-zA-Z])", "", expression)
    text = text.replace("dfrac", "frac").replace("tfrac", "frac").replace("$", "")
    return re.sub(r"\s+", "", text).rstrip(".")


def code_block(text: str) -> str:
    """The first fenced block of an answer, or all of it."""
    found = re.search(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", text, re.DOTALL)
    return found.group(1) if found else text
