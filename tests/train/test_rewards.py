"""Rewards: verified answers, tests in the sandbox, reward models, rules, and eq. 36's sum of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from leadline.checkpoint.save import save_model
from leadline.errors import ConfigError
from leadline.eval.sandbox import Limits, Sandbox, why_not
from leadline.model.batch import ForwardBatch
from leadline.model.reward import RewardModel
from leadline.tokenizer import Tokenizer
from leadline.train.questions import Question
from leadline.train.reward import load_reward_model, starting_model
from leadline.train.rewards import (
    Preferred,
    Rewards,
    RewardsConfig,
    Verified,
    repeats_itself,
    rule,
    same_script,
    solves,
)
from leadline.train.rollout import Answer
from tests.train.alignment import make_init, user


def question(text: str = "How deep is it?", **facts: object) -> Question:
    return Question(tuple(user(text)), **facts)  # type: ignore[arg-type]


def answer(text: str, *, ended: bool = True, ids: tuple[int, ...] = (5, 1)) -> Answer:
    return Answer((0, 7), ids, (0.0,) * len(ids), None, text, ended)


@pytest.mark.parametrize(
    ("text", "wanted", "right"),
    [
        ("7+5=12, carry 1; 4+8+1=13. So 47 + 85 = 132.", "132", True),
        ("The answer is 7. There are 9 of them.", "7", True),
        ("It is −3.", "-3", True),
        ("It is 8.", "7", False),
        ("I do not know.", "7", False),
        (r"So it is \boxed{\frac{1}{2}}.", r"\frac{2}{4}", True),
        (r"So it is \boxed{x}.", r"\frac{2}{4}", False),
    ],
)
def test_mathematics_is_verified(text: str, wanted: str, right: bool) -> None:
    assert solves(text, wanted) is right


def test_only_an_answer_that_ends_counts() -> None:
    asked = question(answer="7")
    pairs = [(asked, answer("It is 7.")), (asked, answer("It is 7.", ended=False)), (question(), answer("It is 7."))]
    assert Verified()(pairs) == [1.0, 0.0, 0.0]


def test_code_is_run_against_its_tests() -> None:
    if why_not() is not None:
        pytest.xfail("this machine does not isolate programs")
    sandbox = Sandbox(Limits(seconds=20, processes=6), allow_code=True)
    asked = question(tests="assert depth(3) == 9")
    good, bad = "Here:\n```python\ndef depth(n):\n    return n * n\n```", "```python\ndef depth(n):\n    return 0\n```"
    assert Verified(sandbox)([(asked, answer(good)), (asked, answer(bad)), (asked, answer(good, ended=False))]) == [
        1.0,
        0.0,
        0.0,
    ]


def test_rules_are_a_share_of_checks() -> None:
    assert rule(question(), answer("Seven fathoms.")) == 1.0
    assert rule(question(), answer("Seven fathoms", ended=False)) == pytest.approx(2 / 3)
    assert rule(question(), answer("the line of depth " * 4)) == pytest.approx(2 / 3)
    assert rule(question(), answer("七个。")) == pytest.approx(2 / 3)
    assert rule(question(), answer("")) == pytest.approx(2 / 3)
    told = question(instructions=(("punctuation:no_comma", {}),))
    assert rule(told, answer("Seven, I think.")) == 0.75
    assert rule(told, answer("Seven I think.")) == 1.0


def test_repetition_and_script_are_seen_in_both_languages() -> None:
    assert repeats_itself("我们去海边玩我们去海边玩我们去海边玩")
    assert not repeats_itself("我们去海边玩，水很深。")
    assert same_script("水有多深？", "七米深。")
    assert not same_script("水有多深？", "Seven.")
    assert same_script("水有多深？", "7.")


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_init(tmp_path_factory.mktemp("rewards-init"))


def reward_folder(init: Path, folder: Path, seed: int) -> Path:
    model = starting_model(init)
    with torch.no_grad():
        model.score.weight.normal_(generator=torch.Generator().manual_seed(seed))
    save_model(model, folder, tokenizer_from=init)
    return folder


def test_a_reward_model_reads_the_whole_conversation(init: Path, tmp_path: Path) -> None:
    model = load_reward_model(reward_folder(init, tmp_path / "helpful", 1)).float()
    pairs = [(question(), answer("x", ids=ids)) for ids in ((5, 9, 1), (200, 1), (17, 30, 31))]
    values = Preferred(model, Tokenizer.from_folder(init))(pairs)
    for value, (_, given) in zip(values, pairs, strict=True):
        ids = torch.tensor([*given.prompt_ids, *given.ids])
        alone = model(ids, ForwardBatch.packed([len(ids)]))[0].sigmoid().item()
        assert value == pytest.approx(alone, abs=1e-5)
    assert len(set(values)) == 3


def test_the_reward_is_the_weighted_sum_of_its_parts(init: Path, tmp_path: Path) -> None:
    """Eq. 36, with verified reasoning beside it."""
    config = RewardsConfig(
        reasoning=2.0, helpful=0.5, safety=0.3, rule=0.2,
        helpful_model=reward_folder(init, tmp_path / "helpful", 1),
        safety_model=reward_folder(init, tmp_path / "safe", 2),
    )  # fmt: skip
    config.check()
    reader, asked = Tokenizer.from_folder(init), question(answer="7")
    pairs = [(asked, answer("It is 7.", ids=(8, 1))), (asked, answer("It is 8.", ids=(9, 1)))]
    totals, parts = Rewards(config, reader, "cpu", [asked]).of(pairs)
    assert list(parts) == ["reasoning", "helpful", "safety", "rule"]
    for place, total in enumerate(totals):
        values = [parts[name][place] for name in parts]
        assert total == pytest.approx(2.0 * values[0] + 0.5 * values[1] + 0.3 * values[2] + 0.2 * values[3])
        assert all(0 <= value <= 1 for value in values)
    assert parts["reasoning"] == [1.0, 0.0]


def test_reasoning_may_be_judged_by_a_reward_model(init: Path, tmp_path: Path) -> None:
    """Eq. 35. Nothing is run then, not even where a question has tests."""
    config = RewardsConfig(reasoning_model=reward_folder(init, tmp_path / "reasoning", 3))
    config.check()
    reader, asked = Tokenizer.from_folder(init), question(answer="7", tests="assert False")
    pairs = [(asked, answer("It is 7.", ids=(8, 1))), (asked, answer("It is 8.", ids=(9, 1)))]
    totals, parts = Rewards(config, reader, "cpu", [asked]).of(pairs)
    judged = Preferred(load_reward_model(tmp_path / "reasoning"), reader)(pairs)
    assert totals == parts["reasoning"] == judged
    assert 0 < judged[0] != judged[1] < 1


def test_a_part_without_a_coefficient_is_not_computed(init: Path) -> None:
    assert list(Rewards(RewardsConfig(), Tokenizer.from_folder(init), "cpu", [question()]).parts) == ["reasoning"]
    with pytest.raises(ConfigError, match="negative"):
        RewardsConfig(rule=-1).check()


def test_a_reward_model_of_another_vocabulary_is_refused(init: Path, tmp_path: Path) -> None:
    model = load_reward_model(reward_folder(init, tmp_path / "helpful", 1))
    small = RewardModel.__new__(RewardModel)
    torch.nn.Module.__init__(small)
    small.config = type(model.config)(vocab_size=10)
    with pytest.raises(ConfigError, match="cannot read this model's vocabulary"):
        Preferred(small, Tokenizer.from_folder(init))
