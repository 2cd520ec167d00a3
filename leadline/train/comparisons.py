"""What people prefer, as data for reward models: pairs of answers, or answers with a score.

A JSONL line is one of

    {"messages": [...], "chosen": "...", "rejected": "..."}      two answers to one conversation
    {"chosen": [...], "rejected": [...]}                         two whole conversations
    {"messages": [..., an answer], "score": 0.8}                 an answer and its worth, from 0 to 1

and a file holds pairs or scores, not both. Passes are a function of the step alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leadline.errors import DataError
from leadline.tokenizer import Tokenizer
from leadline.train.conversations import Messages, check_messages
from leadline.train.lines import Epochs, read_lines


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Token ids of (chosen, rejected), or of one conversation with its score."""

    conversations: tuple[tuple[int, ...], ...]
    score: float | None = None

    @property
    def tokens(self) -> int:
        return sum(map(len, self.conversations))


@dataclasses.dataclass(frozen=True)
class ComparisonBatch:
    """Conversations laid end to end. Pairs: chosen, rejected, chosen, rejected...; else `scores` has one for each.

    tokens_T   int64
    scores_S   float32, or None for pairs
    """

    tokens_T: Tensor
    lengths: tuple[int, ...]
    scores_S: Tensor | None

    @property
    def comparisons(self) -> int:
        return len(self.lengths) // (2 if self.scores_S is None else 1)


class Comparisons:
    """A file of comparisons, those that do not fit `max_length` left out and counted in `dropped`."""

    def __init__(self, path: Path, tokenizer: Tokenizer, max_length: int, seed: int = 0) -> None:
        read = [_comparison(line, where, tokenizer) for where, line in read_lines(path)]
        if len({each.score is None for each in read}) > 1:
            raise DataError(f"{path} holds both pairs and scores; a reward model is trained on either")
        self.kept = [each for each in read if max(map(len, each.conversations)) <= max_length]
        self.dropped = len(read) - len(self.kept)
        if not self.kept:
            raise DataError(f"{path}: every conversation is longer than {max_length} tokens")
        self.pairs = read[0].score is None
        self.epochs = Epochs(self.kept, seed)

    def step(self, step: int, count: int, micro_batch_tokens: int) -> list[ComparisonBatch]:
        """The passes of step 0, 1, ... of `count` comparisons each; every epoch in an order of its own."""
        return list(batches(self.epochs.step(step, count), micro_batch_tokens))

    def all(self, micro_batch_tokens: int) -> list[ComparisonBatch]:
        return list(batches(self.kept, micro_batch_tokens))


def batches(comparisons: Sequence[Comparison], tokens: int) -> Iterator[ComparisonBatch]:
    """In order, each of at most `tokens` tokens unless one comparison alone has more."""
    group: list[Comparison] = []
    for each in comparisons:
        if group and sum(c.tokens for c in group) + each.tokens > tokens:
            yield _batch(group)
            group = []
        group.append(each)
    yield _batch(group)


def _batch(group: Sequence[Comparison]) -> ComparisonBatch:
    conversations = [ids for each in group for ids in each.conversations]
    scores = [each.score for each in group if each.score is not None]
    return ComparisonBatch(
        torch.tensor([token for ids in conversations for token in ids], dtype=torch.int64),
        tuple(map(len, conversations)),
        torch.tensor(scores, dtype=torch.float32) if scores else None,
    )


def _comparison(line: bytes, where: str, tokenizer: Tokenizer) -> Comparison:
    try:
        record = json.loads(line)
    except ValueError:
        raise DataError(f"{where}: not JSON") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: not a JSON object")
    conversations, score = _texts(record, where)
    return Comparison(tuple(_encode(tokenizer, messages, where) for messages in conversations), score)


def _texts(record: dict[str, Any], where: str) -> tuple[tuple[Messages, ...], float | None]:
    if "score" in record:
        score = record["score"]
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
            raise DataError(f"{where}: score must be a number from 0 to 1, not {score!r}")
        return (record.get("messages", []),), float(score)
    if not {"chosen", "rejected"} <= record.keys():
        raise DataError(f'{where}: neither "chosen" and "rejected" nor "messages" and "score"')
    return tuple(_answered(record, record[name]) for name in ("chosen", "rejected")), None


def _answered(record: dict[str, Any], answer: Any) -> Any:
    """A whole conversation as it is; an answer after the messages that asked for it."""
    if isinstance(answer, str) and isinstance(record.get("messages"), list):
        return [*record["messages"], {"role": "assistant", "content": answer}]
    return answer


def _encode(tokenizer: Tokenizer, messages: Any, where: str) -> tuple[int, ...]:
    """With BOS, and the EOS after the last answer, where its value is read."""
    checked = check_messages(messages, where)
    if not checked or checked[-1]["role"] != "assistant":
        raise DataError(f"{where}: a conversation must end with the answer that is judged")
    return tuple(tokenizer.render(checked, add_generation_prompt=False))
