"""Task: what is asked, and how an answer is marked (section 3.2.1): choices and prefixes by log-likelihood, generation,
code that is run, bits per byte, and a judge that reads the answers.

A benchmark (`leadline.eval.tasks`) makes `Item`s in the paper's format and names a method. Everything that shows in a
prompt is in its `prompt_id`, and whatever else changes a score raises the task's `version`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal, Protocol

from leadline.errors import UserError
from leadline.eval.lm import LM, Ask, Score, Span

if TYPE_CHECKING:
    from pathlib import Path

    from leadline.eval.data import Source
    from leadline.eval.sandbox import Sandbox

BEST_MARK = 10.0  # of a judge
_RATING = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]")


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One question. `answer` is a continuation that is marked 1.0 (of a choice: the right one; of a document: its
    text); `completion` is what follows each choice where choices are prefixes; `turns` are later questions of the same
    conversation; `facts` is what only the marking needs."""

    id: str
    prompt: str
    answer: str = ""
    choices: tuple[str, ...] = ()
    group: str = ""
    turns: tuple[str, ...] = ()
    completion: str = ""
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def prompt_id(self) -> str:
        """The same for the same question in the same words."""
        shown = [self.prompt, self.choices, self.turns, *([self.completion] if self.completion else [])]
        asked = json.dumps(shown, ensure_ascii=False)
        return hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """The score of one item; the task's is the mean of `score`, or for bits per byte the sum of `score` over the sum
    of `weight`."""

    id: str
    prompt_id: str
    score: float
    group: str = ""
    weight: float = 1.0
    output: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a benchmark makes its items from: data, the number of examples before a question, the model's sizes."""

    source: Source
    shots: int
    chat: bool = False
    count: Callable[[str], int] = len
    context_length: int | None = None


@dataclasses.dataclass(frozen=True)
class Bench:
    """Who answers, who judges, where model-written code may run; `chat`: ask as a user of a chat would."""

    lm: LM
    judge: LM | None = None
    sandbox: Sandbox | None = None
    chat: bool = False


class Method(Protocol):
    """How items are asked and marked."""

    def ask(self, items: Sequence[Item], bench: Bench) -> list[Result]: ...


@dataclasses.dataclass(frozen=True)
class Task:
    """A benchmark. `benchmark` and `metric` are its row in the published tables; `average` over groups gives each
    subject the same weight; `chance` is what knowing nothing scores."""

    name: str
    about: str
    load: Callable[[Setup], Sequence[Item]]
    method: Method
    version: int = 1
    shots: int = 0
    benchmark: str = ""
    metric: str = "Acc."
    average: Literal["items", "groups"] = "items"
    chance: float = 0.0
    perfect: float = 1.0
    runs_code: bool = False
    needs_data: bool = True
    hub: str = ""  # a data set on the Hugging Face hub in a layout that `load` reads
    hub_files: tuple[str, ...] = ("*.csv", "*.json", "*.jsonl", "*.jsonl.gz", "*.parquet", "*.zip")
    folders: tuple[str, ...] = ()  # other names of its folder
    figure: Callable[[Sequence[Result], str, Path], None] | None = None  # (results, model, PNG): a picture of its own


@dataclasses.dataclass(frozen=True)
class Choice:
    """The likeliest continuation wins: as a whole, or with `per_token` the one of least perplexity, for continuations
    of unlike lengths."""

    per_token: bool = False

    def ask(self, items: Sequence[Item], bench: Bench) -> list[Result]:
        spans = [Span(item.prompt, choice) for item in items for choice in item.choices]
        scores = iter(bench.lm.loglikelihood(spans))
        return [_chosen(item, [self._value(next(scores)) for _ in item.choices]) for item in items]

    def _value(self, score: Score) -> float:
        return score.logprob / max(score.tokens, 1) if self.per_token else score.logprob


@dataclasses.dataclass(frozen=True)
class PrefixChoice:
    """The choices are prefixes of one completion; the one after which it is likeliest wins (table 35)."""

    def ask(self, items: Sequence[Item], bench: Bench) -> list[Result]:
        spans = [Span(item.prompt + choice, item.completion) for item in items for choice in item.choices]
        scores = iter(bench.lm.loglikelihood(spans))
        return [_chosen(item, [next(scores).logprob for _ in item.choices]) for item in items]


def _chosen(item: Item, values: Sequence[float]) -> Result:
    """The choice of the greatest value; of equal ones the first."""
    best = item.choices[max(range(len(values)), key=values.__getitem__)]
    note = " ".join(f"{value:.4f}" for value in values)
    return Result(item.id, item.prompt_id, float(best == item.answer), item.group, output=best, note=note)


@dataclasses.dataclass(frozen=True)
class Generation:
    """A greedy answer, marked by `mark(item, answer)` from 0 to 1. `chat`: always asked as a user's message."""

    mark: Callable[[Item, str], float]
    stop: tuple[str, ...] = ()
    max_tokens: int = 512
    chat: bool = False

    def ask(self, items: Sequence[Item], bench: Bench) -> list[Result]:
        chat = self.chat or bench.chat
        stop = () if chat else self.stop  # a chat ends its answers itself
        answers = bench.lm.generate([Ask(item.prompt, stop, self.max_tokens, chat) for item in items])
        return [
            Result(item.id, item.prompt_id, self.mark(item, answer), item.group, output=answer)
            for item, answer in zip(items, answers, strict=True)
        ]


@dataclasses.dataclass(frozen=True)
class Code:
    """A greedy answer that becomes `program(item, answer)`, which passes when it runs to its end in the sandbox."""

    program: Callable[[Item, str], str]
    stop: tuple[str, ...] = ()
    max_tokens: int = 512

    def ask(self, items: Sequence[Item], bench: Bench) -> list[Result]:
        sandbox = bench.sandbox
        if sandbox is None:
            raise UserError("this task runs code that the model wrote: allow it with --allow-code")
        stop = () if bench.chat else self.stop
        answers = bench.lm.generate([Ask(item.prompt, stop, self.max_tokens, bench.chat) for item in items])
        with ThreadPoolExecutor(max_workers=sandbox.workers) as pool:
            runs = list(pool.map(sandbox.check, map(self.program, items, answers)))
        return [
            Result(item.id, item.prompt_id, float(run.passed), item.group, output=answer, note=run.reason)
            for item, answer, run in zip(items, answers, runs, strict=True)
        ]


@dataclasses.dataclass(frozen=True)
class BitsPerByte:
    """How many bits the model needs for each byte of the item's answer, a document: without a context of its own."""

    def ask(self, items: Sequence[Item], bench: Bench) -> list[Result]:
        scores = bench.lm.loglikelihood([Span("", item.answer) for item in items])
        return [
            Result(
                item.id,
                item.prompt_id,
                -score.logprob / math.log(2),
                item.group,
                float(len(item.answer.encode())),
                note=f"{score.tokens} tokens",
            )
            for item, score in zip(items, scores, strict=True)
        ]


@dataclasses.dataclass(frozen=True)
class Judge:
    """Another model reads each answer and gives a mark from 1 to 10 as [[7]]. `request(item, turn, conversation)` words
    what it is asked, with the conversation so far, answer last."""

    request: Callable[[Item, int, Sequence[str]], str]
    max_tokens: int = 1024

    def ask(self, items: Sequence[Item], bench: Bench) -> list[Result]:
        if bench.judge is None:
            raise UserError("this task needs a model that judges the answers: name its server with --judge-url")
        conversations = self._converse(items, bench.lm)
        asked = [
            (place, self.request(item, turn, conversation[: 2 * turn + 2]))
            for place, (item, conversation) in enumerate(zip(items, conversations, strict=True))
            for turn in range(1 + len(item.turns))
        ]
        verdicts = bench.judge.generate([Ask(text, max_tokens=self.max_tokens, chat=True) for _, text in asked])
        marks: list[list[float]] = [[] for _ in items]
        for (place, _), verdict in zip(asked, verdicts, strict=True):
            marks[place].append(rating(verdict))
        return [
            Result(item.id, item.prompt_id, sum(given) / len(given), item.group, output=talk[-1], note=f"marks {given}")
            for item, given, talk in zip(items, marks, conversations, strict=True)
        ]

    def _converse(self, items: Sequence[Item], lm: LM) -> list[list[str]]:
        """Question, answer, question, answer; each turn of all items together."""
        talks: list[list[str]] = [[] for _ in items]
        for turn in range(1 + max((len(item.turns) for item in items), default=0)):
            active = [place for place, item in enumerate(items) if turn <= len(item.turns)]
            for place in active:
                talks[place].append((items[place].prompt, *items[place].turns)[turn])
            asks = [Ask(talks[p][-1], (), self.max_tokens, True, tuple(talks[p][:-1])) for p in active]
            for place, answer in zip(active, lm.generate(asks), strict=True):
                talks[place].append(answer)
        return talks


def rating(verdict: str) -> float:
    """The last [[mark]] of a verdict; a judge that gives none gives the worst."""
    found = _RATING.findall(verdict)
    return min(max(float(found[-1]), 1.0), BEST_MARK) if found else 1.0
