"""The gates of the model that ships, on the very files that ship.

Greedy answers to fixed prompts, so that a failure can be repeated; `docs/embedded-samples.md` shows answers to others,
sampled too, unselected.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from leadline import LLM, SamplingParams
from leadline.engine.types import RequestOutput

pytestmark = pytest.mark.e2e

HERE = Path(__file__).parent
NAME = "leadline"
CONTRACTIONS = {"s", "t", "re", "ve", "ll", "d", "m", "don", "doesn", "didn", "isn", "aren", "wasn", "weren", "couldn"}
CONTRACTIONS |= {"wouldn", "shouldn", "hasn", "haven", "hadn", "won"}


def prompt_groups() -> tuple[list[str], list[str]]:
    """The twenty prompts, and the five that ask for the name."""
    text = (HERE / "prompts.txt").read_text(encoding="utf-8")
    first, second = text.strip().split("\n\n")
    return [line for line in first.splitlines() if not line.startswith("#")], second.splitlines()


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM()


def ask(llm: LLM, prompts: list[str]) -> list[RequestOutput]:
    params = dataclasses.replace(llm.default_params, temperature=0.0, max_tokens=256)
    return llm.chat([[{"role": "user", "content": prompt}] for prompt in prompts], params)


@pytest.fixture(scope="module")
def answers(llm: LLM) -> list[RequestOutput]:
    prompts, _ = prompt_groups()
    assert len(prompts) == 20
    return ask(llm, prompts)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def test_nine_words_in_ten_are_in_the_dictionary(answers: list[RequestOutput]) -> None:
    known = set((HERE / "words.txt").read_text(encoding="utf-8").split()) | CONTRACTIONS | {NAME}
    said = [word for answer in answers for word in words(answer.text)]
    strange = [
        word for word in said if word not in known
    ]  # names of people among them: the list is of lower-case words
    assert len(said) > 200
    assert len(strange) <= 0.1 * len(said), strange
    assert all(words(answer.text) for answer in answers)


def test_no_four_words_come_three_times(answers: list[RequestOutput]) -> None:
    for answer in answers:
        said = words(answer.text)
        grams = Counter(zip(said, said[1:], said[2:], said[3:], strict=False))
        assert max(grams.values(), default=0) <= 2, answer.text


def test_four_answers_in_five_end_by_themselves(answers: list[RequestOutput]) -> None:
    ended = sum(answer.finish_reason == "stop" for answer in answers)
    assert ended >= 0.8 * len(answers)


def test_it_knows_its_name(llm: LLM) -> None:
    _, paraphrases = prompt_groups()
    assert len(paraphrases) == 5
    for prompt, answer in zip(paraphrases, ask(llm, paraphrases), strict=True):
        assert NAME in answer.text.lower(), f"{prompt!r}: {answer.text!r}"


def held_out() -> Iterator[dict[str, Any]]:
    for line in (HERE / "held_out.jsonl").read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


def test_it_needs_fewer_bits_than_a_five_gram_model(llm: LLM) -> None:
    documents = list(held_out())
    params = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0.0)
    limit = llm.engine.limit - 1
    scored = [document for document in documents if len(document["ids"]) <= limit]
    outputs = llm.generate([document["ids"] for document in scored], params)
    nats = sum(-one.logprob for output in outputs for one in output.prompt_logprobs if one is not None)
    size = sum(float(document["bytes"]) for document in scored)
    ours, theirs = nats / 0.6931471805599453 / size, sum(float(d["five_gram_bits"]) for d in scored) / size
    assert len(scored) >= 100
    assert ours < theirs, f"{ours:.4f} bits a byte against {theirs:.4f}"
