"""Conversations and texts to complete as batches for fine-tuning (section 4.1): loss on the answers alone.

A JSONL line is one of

    {"messages": [...]}                             a conversation; every answer in it and the EOS after it is learned
    {"prompt": "...", "completion": "..."}          plain text; without a prompt all of a document

A batch is a function of its index alone, and a conversation is never split.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from leadline.errors import DataError
from leadline.tokenizer import Tokenizer
from leadline.train.data import Batch, Fragment, make_batch
from leadline.train.lines import read_lines


@dataclasses.dataclass(frozen=True)
class Completion:
    """Plain text, no turns: loss on the completion and the EOS after it. An empty prompt: all of a document."""

    prompt: str
    completion: str


Messages = list[dict[str, str]]
Lesson = Messages | Completion


def read_conversations(path: Path) -> list[Lesson]:
    """OpenAI-style lines, {"messages": [...]} or {"prompt": "...", "completion": "..."}; errors name the file and the
    line."""
    return [_conversation(line, where) for where, line in read_lines(path)]


def _conversation(line: bytes, where: str) -> Lesson:
    try:
        record = json.loads(line)
        if "completion" in record and "messages" not in record:
            return _completion(record, where)
        messages = record["messages"]
    except (ValueError, KeyError, TypeError):
        raise DataError(f'{where}: not a JSON object with "messages" of "role" and "content"') from None
    pairs = check_messages(messages, where)
    if not any(m["role"] == "assistant" for m in pairs):
        raise DataError(f"{where}: no assistant message to learn from")
    return pairs


def _completion(record: dict[str, object], where: str) -> Completion:
    prompt, completion = record.get("prompt", ""), record["completion"]
    if not (isinstance(prompt, str) and isinstance(completion, str) and _is_text(prompt) and _is_text(completion)):
        raise DataError(f"{where}: a prompt or a completion that is not text")
    if not completion:
        raise DataError(f"{where}: an empty completion, nothing to learn from")
    return Completion(prompt, completion)


def check_messages(messages: object, where: str) -> list[dict[str, str]]:
    """OpenAI-style messages of known roles and real text, not begun by the assistant; `where` opens every error."""
    try:
        pairs: list[dict[str, str]] = [{"role": m["role"], "content": m["content"]} for m in messages]  # type: ignore[attr-defined]
    except (KeyError, TypeError):
        raise DataError(f'{where}: not a JSON object with "messages" of "role" and "content"') from None
    if not all(_is_text(m["content"]) and m["role"] in ("system", "user", "assistant") for m in pairs):
        raise DataError(f"{where}: a message has an unknown role or a content that is not text")
    if pairs and pairs[0]["role"] == "assistant":
        raise DataError(f"{where}: the assistant speaks first, which no prompt asks it to")
    return pairs


def _is_text(value: object) -> bool:
    """JSON can spell half a surrogate pair, which is no character."""
    return isinstance(value, str) and value == value.encode(errors="ignore").decode()


def encode_conversation(tokenizer: Tokenizer, messages: Messages) -> Fragment:
    """Loss on the assistant's words and the EOS after them only; the EOS counts although pad has the same id."""
    ids = tokenizer.render(messages, add_generation_prompt=False)
    weights = np.zeros(len(ids), dtype=np.float32)
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            before = len(tokenizer.render(messages[:turn], add_generation_prompt=True))
            after = len(tokenizer.render(messages[: turn + 1], add_generation_prompt=False))
            weights[before - 1 : after - 1] = 1.0  # the token before predicts the first of the answer
    tokens = np.asarray(ids, dtype=np.int64)
    return tokens, np.append(tokens[1:], 0), weights


def encode_completion(tokenizer: Tokenizer, text: Completion) -> Fragment:
    """Loss on the completion and the EOS. Both are encoded alone, so that what precedes is what a prompt would be."""
    before = [tokenizer.bos_id, *tokenizer.encode(text.prompt)]
    tokens = np.asarray([*before, *tokenizer.encode(text.completion), tokenizer.eos_id], dtype=np.int64)
    weights = np.zeros(len(tokens), dtype=np.float32)
    weights[len(before) - 1 : -1] = 1.0
    return tokens, np.append(tokens[1:], 0), weights


def encode_lesson(tokenizer: Tokenizer, lesson: Lesson) -> Fragment:
    if isinstance(lesson, Completion):
        return encode_completion(tokenizer, lesson)
    return encode_conversation(tokenizer, lesson)


class Conversations:
    """Whole conversations, never split, packed into passes of about `tokens` tokens; each epoch in another order."""

    def __init__(self, path: Path, tokenizer: Tokenizer, max_length: int, tokens: int, seed: int = 0) -> None:
        encoded = [encode_lesson(tokenizer, lesson) for lesson in read_conversations(path)]
        self.fragments = [fragment for fragment in encoded if len(fragment[0]) <= max_length]
        self.dropped = len(encoded) - len(self.fragments)
        if not self.fragments:
            raise DataError(f"{path}: every conversation is longer than {max_length} tokens")
        self.tokens, self.seed = tokens, seed
        self.lengths = np.array([len(fragment[0]) for fragment in self.fragments])
        self.batches_per_epoch = max(1, int(self.lengths.sum()) // tokens)

    def batch(self, index: int) -> Batch:
        epoch, place = divmod(index, self.batches_per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.fragments))
        owner = np.minimum((np.cumsum(self.lengths[order]) - 1) // self.tokens, self.batches_per_epoch - 1)
        return make_batch([[self.fragments[i]] for i in order[owner == place]])

    def all(self) -> list[Batch]:
        """One epoch, for evaluation."""
        return [self.batch(index) for index in range(self.batches_per_epoch)]

    def describe(self) -> str:
        """One line for the log."""
        return f"{int(self.lengths.sum()):,} tokens in {len(self.fragments):,} conversations"
