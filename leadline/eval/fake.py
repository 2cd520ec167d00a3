"""Two language models without a model: one that knows the answers and one that knows nothing.

Every task is tested with both: the first must score what is perfect, the second what chance gives.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Sequence

from leadline.eval.lm import Ask, Score, Span
from leadline.eval.task import Item

WORDS = "depth line sailor water sand mud seven fathoms anchor 12 47 (B) True no".split()


class Perfect:
    """Answers as the items say; a judge of this kind gives the best mark."""

    name = "perfect"
    weights = ""
    context_length: int | None = 4096

    def __init__(self, items: Iterable[Item]) -> None:
        self.answers = {}
        for item in items:
            self.answers[item.prompt] = item.answer
            if item.completion:
                self.answers[item.prompt + item.answer] = item.completion
            for turn in item.turns:
                self.answers[turn] = item.answer

    def count(self, text: str) -> int:
        return len(text.encode())

    def generate(self, asks: Sequence[Ask]) -> list[str]:
        return [self.answers.get(ask.prompt, "[[10]]") for ask in asks]

    def loglikelihood(self, spans: Sequence[Span]) -> list[Score]:
        return [self._score(span) for span in spans]

    def _score(self, span: Span) -> Score:
        right = not span.context or self.answers.get(span.context) == span.text
        return Score(0.0 if right else -50.0, self.count(span.text), right)


class Random:
    """Every byte equally likely, every choice as good as another, answers of a few words."""

    name = "random"
    weights = ""
    context_length: int | None = 4096

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)

    def count(self, text: str) -> int:
        return len(text.encode())

    def generate(self, asks: Sequence[Ask]) -> list[str]:
        return [self._words() for _ in asks]

    def _words(self) -> str:
        return re.sub(r"^\w", "A", " ".join(self.random.choices(WORDS, k=6)))

    def loglikelihood(self, spans: Sequence[Span]) -> list[Score]:
        """The noise decides between choices and is nothing beside a document."""
        bits = [8 * self.count(span.text) + (self.random.random() if span.context else 0.0) for span in spans]
        return [
            Score(-value * math.log(2), self.count(span.text), False) for span, value in zip(spans, bits, strict=True)
        ]
