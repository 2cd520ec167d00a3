"""Preference data from verified answers: what a question gives, and files that a reward model is trained on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from leadline.cli import run
from leadline.errors import ConfigError, DataError
from leadline.tokenizer import Tokenizer
from leadline.train import rewards
from leadline.train.comparisons import Comparisons
from leadline.train.preferences import PreferencesConfig, make_preferences, preferences
from leadline.train.questions import Question
from leadline.train.rewards import Pair
from leadline.train.rollout import Answer, RolloutConfig, Rollouts
from tests.train.alignment import make_init, user, write_questions

SAMPLE = Rollouts.sample
ASKED = Question(tuple(user("How deep?")), answer="7")


def answers(*texts: str, ended: bool = True) -> list[Answer]:
    return [Answer((0,), (5, 1), (0.0, 0.0), None, text, ended) for text in texts]


def test_a_question_gives_pairs_of_right_and_wrong() -> None:
    given = answers("It is 7.", "It is 8.", "7", "9")
    found = preferences(ASKED, given, [1.0, 0.0, 1.0, 0.0], "pairs")
    assert [(line["chosen"], line["rejected"]) for line in found] == [("It is 7.", "It is 8."), ("7", "9")]
    assert all(line["messages"] == user("How deep?") for line in found)
    assert len(preferences(ASKED, given[:3], [1.0, 0.0, 1.0], "pairs")) == 1, "no wrong answer stands in two pairs"


def test_a_question_gives_scores() -> None:
    found = preferences(ASKED, answers("7", "8", "7"), [1.0, 0.0, 1.0], "scores")
    assert [(line["messages"][-1]["content"], line["score"]) for line in found] == [("7", 1.0), ("8", 0.0)]


@pytest.mark.parametrize(
    ("question", "given", "marks"),
    [
        (ASKED, answers("7", "It is 7."), [1.0, 1.0]),
        (ASKED, answers("8", "9"), [0.0, 0.0]),
        (ASKED, [*answers("7"), *answers("8", ended=False)], [1.0, 0.0]),
        (Question(tuple(user("How deep?"))), answers("7", "8"), [1.0, 0.0]),
    ],
    ids=["all right", "all wrong", "the wrong one does not end", "nothing to verify"],
)
def test_without_both_there_is_no_preference(question: Question, given: list[Answer], marks: list[float]) -> None:
    assert preferences(question, given, marks, "pairs") == preferences(question, given, marks, "scores") == []


@pytest.fixture
def config(tmp_path: Path) -> PreferencesConfig:
    return PreferencesConfig(
        out=tmp_path / "preferences",
        data=write_questions(tmp_path / "questions", 5),
        init=make_init(tmp_path / "init"),
        answers=6,
        questions=2,
        max_tokens=12,
        threads=1,
        rollout=RolloutConfig(sequences=16, pass_tokens=64),
    )


def by_their_ids(self: object, pairs: list[Pair]) -> list[float]:
    """Stands for the verifier: a model of random weights is never right."""
    return [float(sum(answer.ids) % 2) for _, answer in pairs]


def ended(self: Rollouts, *asked: Any) -> list[list[Answer]]:
    """Stands for a model that ends what it says within twelve tokens."""
    return [[dataclasses.replace(answer, ended=True) for answer in group] for group in SAMPLE(self, *asked)]


@pytest.mark.parametrize("kind", ["pairs", "scores"])
def test_the_files_are_what_a_reward_model_is_trained_on(
    config: PreferencesConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    monkeypatch.setattr(rewards.Verified, "__call__", by_their_ids)
    monkeypatch.setattr(Rollouts, "sample", ended)
    recipe = tmp_path / "preferences.toml"
    fields = {"out": config.out, "data": config.data, "init": config.init, "kind": kind}
    numbers = "answers = 6\nquestions = 2\nmax_tokens = 12\nthreads = 1\n[rollout]\nsequences = 16\npass_tokens = 64\n"
    recipe.write_text("".join(f"{name} = {json.dumps(str(value))}\n" for name, value in fields.items()) + numbers)
    assert run(["train", "preferences", str(recipe)]) == 0
    said = capsys.readouterr().out.splitlines()
    reader = Tokenizer.from_folder(config.init)
    for split, line in zip(("train", "valid"), said, strict=True):
        data = Comparisons(config.out / f"{split}.jsonl", reader, 256)
        assert line == f"{config.out}/{split}.jsonl: {len(data.kept)} {kind}"
        assert data.pairs is (kind == "pairs")
    before = (config.out / "train.jsonl").read_bytes()
    assert run(["train", "preferences", str(recipe)]) == 0
    assert (config.out / "train.jsonl").read_bytes() == before, "the same seeds sample the same answers"


def test_a_model_that_is_never_right_gives_nothing_and_writes_nothing(config: PreferencesConfig) -> None:
    with pytest.raises(DataError, match="no question was answered both rightly and wrongly"):
        make_preferences(config)
    assert list(config.out.iterdir()) == []


def test_numbers_that_give_no_preferences_are_refused(config: PreferencesConfig) -> None:
    for name, words in (("answers", "at least 2"), ("max_tokens", "at least 1"), ("seed", "not be negative")):
        with pytest.raises(ConfigError, match=words):
            dataclasses.replace(config, **{name: -1}).check()  # type: ignore[arg-type]
