"""What an answer is worth (section 4.2): reasoning in the first stage (eq. 35), eq. 36's sum in the second.

    r = c0 x reasoning + c1 x helpful + c2 x safety + c3 x rule

Reasoning is verified, mathematics by the number or the expression, code by its tests in the sandbox, with the scorers
of `leadline.eval`; or, as the paper writes, judged by a reward model. Helpful and safety are reward models too; their
values go through a sigmoid, so that every part is from 0 to 1 and the coefficients weigh what they say. The rule is a
share of checks: the answer ends by itself, does not repeat itself, is in the script of the question, and follows its
instructions where it has some.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from leadline.errors import ConfigError
from leadline.eval.answers import answer_number, code_block, final_expression, number, same_expression
from leadline.eval.following import follows_loosely
from leadline.eval.sandbox import Sandbox
from leadline.model.batch import ForwardBatch
from leadline.model.reward import RewardModel
from leadline.tokenizer import Tokenizer
from leadline.train.questions import Question
from leadline.train.reward import load_reward_model
from leadline.train.rollout import Answer

Pair = tuple[Question, Answer]
Part = Callable[[Sequence[Pair]], list[float]]

REPEATED = 2  # times that four words in a row may come
PASS_TOKENS = 8192


@dataclasses.dataclass(frozen=True)
class RewardsConfig:
    """The coefficients; a part whose coefficient is 0 is not computed. Reasoning is verified unless there is a
    `reasoning_model`, eq. 35's RM_reasoning."""

    reasoning: float = 1.0  # c0
    helpful: float = 0.0  # c1
    safety: float = 0.0  # c2
    rule: float = 0.0  # c3
    reasoning_model: Path | None = None
    helpful_model: Path | None = None
    safety_model: Path | None = None
    allow_code: bool = False  # let code that the model wrote run in the sandbox

    def check(self) -> None:
        coefficients = (self.reasoning, self.helpful, self.safety, self.rule)
        if min(coefficients) < 0 or not any(coefficients):
            raise ConfigError("rewards: no coefficient may be negative, and one must be more than 0")
        for name in ("helpful", "safety"):
            if getattr(self, name) and getattr(self, f"{name}_model") is None:
                raise ConfigError(f"rewards.{name} needs rewards.{name}_model, a folder that `train reward` made")


class Rewards:
    """All parts of a reward, loaded once. `of` tells of each answer the total and every part's own value."""

    def __init__(self, config: RewardsConfig, tokenizer: Tokenizer, device: str, questions: Sequence[Question]) -> None:
        self.parts: dict[str, tuple[float, Part]] = {}
        if config.reasoning and config.reasoning_model is None:
            code = any(question.tests for question in questions)
            self._add("reasoning", config.reasoning, Verified(Sandbox(allow_code=config.allow_code) if code else None))
        for name in ("reasoning", "helpful", "safety"):
            folder = getattr(config, f"{name}_model")
            if getattr(config, name) and folder is not None:
                self._add(name, getattr(config, name), Preferred(load_reward_model(folder, device), tokenizer))
        if config.rule:
            self._add("rule", config.rule, lambda pairs: [rule(*pair) for pair in pairs])

    def _add(self, name: str, coefficient: float, part: Part) -> None:
        self.parts[name] = (coefficient, part)

    def of(self, pairs: Sequence[Pair]) -> tuple[list[float], dict[str, list[float]]]:
        values = {name: part(pairs) for name, (_, part) in self.parts.items()}
        totals = [sum(self.parts[name][0] * values[name][place] for name in values) for place in range(len(pairs))]
        return totals, values


# ---- stage one: reasoning ------------------------------------------------------------------------------------------


class Verified:
    """1 for a right answer, 0 for a wrong one, one that does not end, and where nothing can be verified."""

    def __init__(self, sandbox: Sandbox | None = None) -> None:
        self.sandbox = sandbox

    def __call__(self, pairs: Sequence[Pair]) -> list[float]:
        marks = [float(answer.ended and bool(question.answer) and solves(answer.text, question.answer))
                 for question, answer in pairs]  # fmt: skip
        tested = [place for place, (question, answer) in enumerate(pairs) if question.tests and answer.ended]
        for place, passed in zip(tested, self._run([pairs[place] for place in tested]), strict=True):
            marks[place] = float(passed)
        return marks

    def _run(self, pairs: Sequence[Pair]) -> list[bool]:
        if not pairs:
            return []
        assert self.sandbox is not None
        programs = [f"{code_block(answer.text)}\n\n{question.tests}\n" for question, answer in pairs]
        with ThreadPoolExecutor(max_workers=self.sandbox.workers) as pool:
            return [run.passed for run in pool.map(self.sandbox.check, programs)]


def solves(text: str, wanted: str) -> bool:
    """A number is compared with the answer's stated or last one, anything else as an expression."""
    value = number(wanted)
    if value is not None:
        return answer_number(text.replace("−", "-")) == value
    return same_expression(final_expression(text), wanted)


# ---- stage two: reward models and rules ----------------------------------------------------------------------------


class Preferred:
    """sigmoid of a reward model's value of the whole conversation. An answer that does not end is given no EOS."""

    def __init__(self, model: RewardModel, tokenizer: Tokenizer) -> None:
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ConfigError(f"a reward model of {model.config.vocab_size} tokens cannot read this model's vocabulary")
        self.model = model

    @torch.no_grad()
    def __call__(self, pairs: Sequence[Pair]) -> list[float]:
        values: list[float] = []
        for group in _passes([(*answer.prompt_ids, *answer.ids) for _, answer in pairs]):
            tokens_T = torch.tensor([token for ids in group for token in ids], device=self.model.device)
            scores_S, _ = self.model(tokens_T, ForwardBatch.packed([*map(len, group)], device=self.model.device))
            values += scores_S.sigmoid().tolist()
        return values


def _passes(conversations: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """In order, at most PASS_TOKENS tokens together."""
    groups: list[list[tuple[int, ...]]] = [[]]
    for ids in conversations:
        if groups[-1] and sum(map(len, groups[-1])) + len(ids) > PASS_TOKENS:
            groups.append([])
        groups[-1].append(ids)
    return groups


def rule(question: Question, answer: Answer) -> float:
    """The share of checks that an answer passes."""
    checks = [answer.ended, not repeats_itself(answer.text), same_script(question.messages[-1]["content"], answer.text)]
    if question.instructions:
        names, arguments = zip(*question.instructions, strict=True)
        checks.append(follows_loosely(answer.text, names, arguments))
    return sum(checks) / len(checks)


def repeats_itself(text: str) -> bool:
    """Whether four words, or four Chinese characters, in a row come more than twice."""
    words = re.findall(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+", text.lower())
    grams = Counter(tuple(words[at : at + 4]) for at in range(len(words) - 3))
    return max(grams.values(), default=0) > REPEATED


def same_script(question: str, answer: str) -> bool:
    """Chinese is answered in Chinese, and nothing else is; what has no letters is in any script."""
    shares = [share for share in map(chinese_share, (question, answer)) if share is not None]
    return bool(answer.strip()) and (len(shares) < 2 or (shares[0] > 0.5) == (shares[1] > 0.5))


def chinese_share(text: str) -> float | None:
    letters = [unicodedata.name(char, "").startswith("CJK") for char in text if char.isalpha()]
    return sum(letters) / len(letters) if letters else None
