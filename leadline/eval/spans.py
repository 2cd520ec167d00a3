"""Answers of a few words against the right ones: exact match, and DROP's F1 over sets of words.

What counts as the same follows the benchmarks' own scorers: case, punctuation and, in English, articles do not count.
"""

from __future__ import annotations

import functools
import re
import string
import unicodedata
from collections.abc import Iterable, Sequence

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def exact(answer: str, rights: Iterable[str]) -> bool:
    """Whether an English answer is one of the right ones."""
    said = normal(answer)
    return bool(said) and any(said == normal(right) for right in rights)


def normal(text: str) -> str:
    """In small letters, without punctuation and articles, words one space apart."""
    kept = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", kept).split())


def exact_chinese(answer: str, rights: Iterable[str]) -> bool:
    """Whether a Chinese answer is one of the right ones, spaces and punctuation aside."""
    said = _letters(answer)
    return bool(said) and any(said == _letters(right) for right in rights)


def _letters(text: str) -> str:
    return "".join(char for char in text.lower() if not char.isspace() and unicodedata.category(char)[0] not in "PS")


# ---- DROP ---------------------------------------------------------------------------------------------------------


def f1(said: Sequence[str], right: Sequence[str]) -> float:
    """The mean F1 of the best pairing of what was said with the right spans, from 0 to 1; an unpaired span counts 0."""
    given, wanted = [words(text) for text in said], [words(text) for text in right]
    scores = [[_overlap(a, b) for b in wanted] for a in given]

    @functools.cache
    def best(row: int, taken: int) -> float:
        if row == len(given):
            return 0.0
        paired = (scores[row][at] + best(row + 1, taken | 1 << at) for at in range(len(wanted)) if not taken >> at & 1)
        return max(best(row + 1, taken), *paired) if len(wanted) > taken.bit_count() else best(row + 1, taken)

    return best(0, 0) / max(len(given), len(wanted), 1)


def words(text: str) -> frozenset[str]:
    """The different words of a span, numbers as numbers: 5.0 and 5 are one."""
    parts = (_word(part) for part in re.split(r"[\s-]+", text.lower()))
    return frozenset(part for part in parts if part)


def _word(part: str) -> str:
    value = _value(part.strip(string.punctuation.replace("-", "")).replace(",", ""))
    return str(value) if value is not None else normal(part)


def _value(text: str) -> float | None:
    try:
        return float(text) if text[:1].isdigit() or text[:1] == "." else None
    except ValueError:
        return None


def _overlap(said: frozenset[str], right: frozenset[str]) -> float:
    """F1 of two sets of words; 0 where the right one has numbers and none of them was said."""
    numbers = {word for word in right if _value(word) is not None}
    common = len(said & right)
    if not common or (numbers and not numbers & said):
        return 0.0
    return 2 * common / (len(said) + len(right))
