"""Preference data that nobody has to label (section 4.2): a model's own answers, verified, for RM_reasoning to learn
from.

Mathematics is judged by its ground-truth label and code by its tests, which is what GRPO's verified reward does too.
A question gives pairs of a right and a wrong answer for the pair-wise loss, or each answer with its score for the
point-wise one. Answers that do not end are left out: what a reward model reads is their end.

Invariant: the files appear whole or not at all; the same questions, weights and seed give the same answers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from leadline.errors import ConfigError, DataError
from leadline.tokenizer import Tokenizer
from leadline.train.grpo import language_model
from leadline.train.loop import cast, prepare
from leadline.train.metrics import warn
from leadline.train.questions import Question, Questions
from leadline.train.rewards import Rewards, RewardsConfig
from leadline.train.rollout import Answer, RolloutConfig, Rollouts

Kind = Literal["pairs", "scores"]
AT_LEAST_ONE = ("max_tokens", "questions")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferencesConfig:
    """`data` is a folder of questions as GRPO takes them, `init` the model that answers each `answers` times; `out`
    gets train.jsonl and valid.jsonl as `train reward` takes them."""

    out: Path
    data: Path
    init: Path
    kind: Kind = "pairs"
    answers: int = 8
    questions: int = 64  # that are answered together
    max_tokens: int = 256  # of an answer
    allow_code: bool = False  # let code that the model wrote run in the sandbox
    rollout: RolloutConfig = RolloutConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    compile: bool = False  # the memory-bound ops, where there is a compiler
    threads: int = 0  # 0: as many as there are cores
    seed: int = 0

    def check(self) -> None:
        """Raise `ConfigError` for numbers that give no preferences."""
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1")
        if self.answers < 2:
            raise ConfigError("answers must be at least 2: one answer is better than none other")
        if self.threads < 0 or self.seed < 0:
            raise ConfigError("threads and seed must not be negative")
        self.rollout.check()


def make_preferences(config: PreferencesConfig) -> dict[str, int]:
    """Answer, verify, write; how many lines each file has."""
    prepare(config)
    tokenizer = Tokenizer.from_folder(config.init)
    model = cast(language_model(config.init), getattr(torch, config.dtype)).to(config.device).eval()
    room = model.config.max_position_embeddings - config.max_tokens
    splits = {
        name: Questions(config.data / f"{name}.jsonl", tokenizer, room, config.seed) for name in ("train", "valid")
    }
    if dropped := sum(questions.dropped for questions in splits.values()):
        warn(f"{dropped} questions of over {room} tokens left out")
    longest = max(questions.longest for questions in splits.values()) + config.max_tokens
    rollouts = Rollouts(model, tokenizer, config.rollout, longest)
    kept = [question for questions in splits.values() for question in questions.kept]
    rewards = Rewards(RewardsConfig(allow_code=config.allow_code), tokenizer, config.device, kept)
    made = {name: [*_lines(config, rollouts, rewards, questions)] for name, questions in splits.items()}
    for name, lines in made.items():
        if not lines:
            raise DataError(f"{config.data / name}.jsonl: no question was answered both rightly and wrongly")
    _write(config.out, made)
    return {name: len(lines) for name, lines in made.items()}


def _lines(
    config: PreferencesConfig, rollouts: Rollouts, rewards: Rewards, questions: Questions
) -> Iterator[dict[str, Any]]:
    for number, start in enumerate(range(0, len(questions.kept), config.questions)):
        asked = questions.kept[start : start + config.questions]
        messages = [list(question.messages) for question in asked]
        groups = rollouts.sample(messages, config.answers, config.max_tokens, questions.seeds(number, len(asked)))
        pairs = [(question, answer) for question, group in zip(asked, groups, strict=True) for answer in group]
        marks = iter(rewards.of(pairs)[0])
        for question, group in zip(asked, groups, strict=True):
            yield from preferences(question, group, [next(marks) for _ in group], config.kind)


def preferences(
    question: Question, answers: Sequence[Answer], marks: Iterable[float], kind: Kind
) -> list[dict[str, Any]]:
    """The lines of one question; none where nothing can be verified or all its answers are right, or all wrong."""
    if not (question.answer or question.tests):
        return []
    judged = {answer.text: mark for answer, mark in zip(answers, marks, strict=True) if answer.ended}
    right, wrong = ([text for text, mark in judged.items() if (mark > 0.5) == wanted] for wanted in (True, False))
    if not (right and wrong):
        return []
    messages = list(question.messages)
    if kind == "pairs":
        chosen = zip(right, wrong, strict=False)
        return [{"messages": messages, "chosen": better, "rejected": worse} for better, worse in chosen]
    answered = {text: [*messages, {"role": "assistant", "content": text}] for text in judged}
    return [{"messages": answered[text], "score": mark} for text, mark in judged.items()]


def _write(folder: Path, made: dict[str, list[dict[str, Any]]]) -> None:
    partial = {name: folder / f".{name}.jsonl.partial" for name in made}
    for name, lines in made.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        partial[name].write_text(text, encoding="utf-8", errors="replace")
    for name, path in partial.items():
        path.replace(folder / f"{name}.jsonl")
