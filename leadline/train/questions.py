"""Questions for GRPO: a JSONL line is the conversation to answer, and what can be verified about an answer.

{"messages": [...], "answer": "42"}                              mathematics: the number or the expression
{"messages": [...], "tests": "assert depth(3) == 7"}             code: tests that the answer's code must pass
{"messages": [...], "instructions": [{"name": "punctuation:no_comma", "arguments": {}}]}
{"messages": [...]}                                              nothing: for reward models alone
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leadline.errors import DataError
from leadline.eval.following import CHECKS
from leadline.tokenizer import Tokenizer
from leadline.train.conversations import check_messages
from leadline.train.lines import Epochs, read_lines


@dataclasses.dataclass(frozen=True)
class Question:
    messages: tuple[dict[str, str], ...]
    answer: str = ""
    tests: str = ""
    instructions: tuple[tuple[str, Mapping[str, Any]], ...] = ()


class Questions:
    """A file of questions; those whose prompt has over `longest` tokens are left out and counted in `dropped`."""

    def __init__(self, path: Path, tokenizer: Tokenizer, longest: int, seed: int = 0) -> None:
        read = [parse(line, where) for where, line in read_lines(path)]
        sizes = [len(tokenizer.render(list(each.messages))) for each in read]
        self.kept = [each for each, size in zip(read, sizes, strict=True) if size <= longest]
        self.dropped = len(read) - len(self.kept)
        if not self.kept:
            raise DataError(f"{path}: every prompt is longer than {longest} tokens")
        self.longest = max(size for size in sizes if size <= longest)
        self.seed = seed
        self.epochs = Epochs(self.kept, seed)

    def step(self, step: int, count: int) -> list[Question]:
        """The questions of step 0, 1, ...; every epoch in an order of its own."""
        return self.epochs.step(step, count)

    def seeds(self, step: int, count: int) -> list[int]:
        """One a question of a step, for its answers: a hash, so that no two steps draw alike."""
        names = (f"{self.seed} {step} {place}".encode() for place in range(count))
        return [int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") for name in names]


def parse(line: bytes, where: str) -> Question:
    try:
        record = json.loads(line)
        messages = check_messages(record["messages"], where)
        answer, tests = str(record.get("answer", "")), str(record.get("tests", ""))
        instructions = tuple(
            (str(each["name"]), each.get("arguments") or {}) for each in record.get("instructions", ())
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f'{where}: not a JSON object with "messages" and what an answer is checked by') from None
    if not messages or messages[-1]["role"] != "user":
        raise DataError(f"{where}: a question must end with the user's message")
    if unknown := [name for name, _ in instructions if name not in CHECKS]:
        raise DataError(f"{where}: unknown instruction {unknown[0]!r}; known are {', '.join(sorted(CHECKS))}")
    return Question(tuple(messages), answer, tests, instructions)
