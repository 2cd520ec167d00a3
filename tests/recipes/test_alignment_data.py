"""Preference pairs and questions of the embedded model, its recipes, and the script that runs them all."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from leadline.config import load
from leadline.eval.tasks.sums import held_out
from leadline.train.config import TrainConfig
from leadline.train.grpo import GrpoConfig
from leadline.train.questions import parse
from leadline.train.reward import RewardConfig
from tests.source import ROOT

RECIPE = ROOT / "recipes" / "embedded"
TALK = [
    ("How deep is the sea here?", "It is seven fathoms deep here, and deeper there."),
    ("How deep is the lake?", "The lake is not deep at all."),
    ("What is a whale?", "A whale is a very large animal of the sea."),
    ("What is 20 + 22?", "0+2=2; 2+2=4. So 20 + 22 = 42."),
    ("鲸鱼是什么？", "鲸鱼是海里的大动物。"),
    ("海有多深？", "这里的海有七米深，那里更深。"),
]


@pytest.fixture(scope="module")
def recipe() -> Iterator[Any]:
    sys.path.insert(0, str(RECIPE))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(RECIPE))


def documents() -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": told}]}
        for ask, told in TALK * 40
    ]


def test_a_worse_answer_is_another_one_and_each_way_comes(recipe: Any) -> None:
    pairs = list(recipe("preferences").helpful(documents(), 240, seed=1))
    assert set(Counter(pair["kind"] for pair in pairs)) == {
        "wrong",
        "off-topic",
        "cut",
        "repeated",
        "language",
        "refused",
    }
    assert all(pair["chosen"] != pair["rejected"] and pair["rejected"].strip() for pair in pairs)
    assert all((pair["messages"][-1]["content"], pair["chosen"]) in TALK for pair in pairs)
    for pair in pairs:
        if pair["kind"] == "cut":
            assert pair["chosen"].startswith(pair["rejected"])
        if pair["kind"] == "language":
            assert bool(re.search("[\u4e00-\u9fff]", pair["chosen"])) != bool(
                re.search("[\u4e00-\u9fff]", pair["rejected"])
            )
        if pair["kind"] == "wrong" and "= 42" in pair["chosen"]:
            assert re.fullmatch(r"0\+2=2; 2\+2=4\. So 20 \+ 22 = \d\d\.", pair["rejected"])


def test_rude_sentences_are_on_one_side_only(recipe: Any) -> None:
    preferences = recipe("preferences")
    sides = [set(preferences.part(preferences.RUDE, side)) for side in (False, True)]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(preferences.RUDE)
    for side in (False, True):
        pairs = list(preferences.safety(documents(), 50, 2, held_out=side))
        assert {pair["kind"] for pair in pairs} == {"rude", "agreed"}
        english = [pair for pair in pairs if pair["kind"] == "rude" and pair["rejected"].isascii()]
        assert all(any(pair["rejected"].startswith(rude) for rude in sides[side]) for pair in english)


def test_questions_have_the_results_that_verify_them(recipe: Any) -> None:
    asked = list(recipe("sums").questions(500))
    assert len({question["messages"][0]["content"] for question in asked}) == 500
    for question in asked:
        known = parse(json.dumps(question).encode(), "here")
        a, b, *_ = map(int, re.findall(r"\d+", known.messages[0]["content"]))
        assert int(known.answer) in (a + b, a - b, b - a)
        assert not held_out(a, b)


def test_of_easy_questions_a_share_is_asked(recipe: Any) -> None:
    """Without any, all are differences of three digits; by default most are."""
    for easy, least, most in ((0.0, 1.0, 1.0), (0.15, 0.6, 0.95)):
        asked = list(recipe("sums").questions(300, easy=easy))
        numbers = [[int(n) for n in re.findall(r"\d+", question["messages"][0]["content"])] for question in asked]
        hard = sum(
            int(question["answer"]) == abs(a - b) and max(a, b) > 99
            for question, (a, b, *_) in zip(asked, numbers, strict=True)
        )
        assert least <= hard / len(asked) <= most


def test_what_is_asked_is_also_worked_out(recipe: Any) -> None:
    sums = recipe("sums")
    for question, (asked, told) in zip(sums.questions(200), sums.solutions(200), strict=True):
        assert question["messages"][0]["content"] == asked
        assert re.findall(r"\d+", told)[-1] == question["answer"]
        assert told.count("=") > 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [("pretrain", TrainConfig), ("extend", TrainConfig), ("sft", TrainConfig), ("helpful", RewardConfig),
     ("safety", RewardConfig), ("grpo", GrpoConfig), ("align", GrpoConfig), ("worked", TrainConfig),
     ("renew", TrainConfig), ("renew_sft", TrainConfig)],
)  # fmt: skip
def test_the_recipes_are_ones_that_their_stages_take(name: str, kind: type[Any]) -> None:
    load(kind, RECIPE / f"{name}.toml").check()


def test_each_stage_starts_from_the_one_before() -> None:
    names = ("extend", "sft", "renew", "renew_sft", "helpful", "safety", "grpo", "worked", "align")
    starts = {
        name: re.search(r'^init = "runs/embedded/(\w+)/model"', (RECIPE / f"{name}.toml").read_text(), re.M)
        for name in names
    }
    assert {name: found and found[1] for name, found in starts.items()} == {
        "extend": "pretrain", "sft": "extend", "renew": "average", "renew_sft": "renew", "helpful": "mix",
        "safety": "mix", "grpo": "mix", "worked": "mix", "align": "grpo",
    }  # fmt: skip


def test_the_script_goes_on_where_it_was_and_passes_settings(tmp_path: Path) -> None:
    """With programs that only tell how they were called, in a copy of the recipes."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/embedded.sh").write_bytes((ROOT / "recipes/embedded.sh").read_bytes())
    (tmp_path / "raw").mkdir()
    (tmp_path / "leadline/embedded/model").mkdir(parents=True)
    for name in ("python", "leadline"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            f'#!/bin/sh\necho "{name} $*" >> "{tmp_path}/calls"\n[ ! -e "{tmp_path}/stop-$2" ] || exit 130\n'
        )
        program.chmod(0o755)

    def script(*arguments: str) -> tuple[int, list[str]]:
        (tmp_path / "calls").write_text("")
        command = ["bash", str(tmp_path / "recipes/embedded.sh"), *arguments]
        path = f"{tmp_path}/bin:/usr/bin:/bin"
        done = subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, cwd=tmp_path)
        return done.returncode, (tmp_path / "calls").read_text().splitlines()

    assert script()[0] == 2
    (tmp_path / "stop-sft").touch()
    code, calls = script("raw", "device=cpu")
    assert code == 130, "a stage that was stopped stops the script"
    assert calls[0] == "python recipes/embedded/build_data.py documents raw runs/embedded/data"
    assert calls[-1] == "leadline train sft recipes/embedded/sft.toml --set device=cpu"
    (tmp_path / "stop-sft").unlink()
    code, calls = script("raw")
    assert code == 0
    stages = [call.split()[3].removeprefix("recipes/embedded/") for call in calls if call.startswith("leadline train")]
    assert stages == ["sft.toml", "renew.toml", "renew_sft.toml", "helpful.toml", "safety.toml", "grpo.toml"]
    assert calls[-1] == "python -m pytest tests/e2e/test_embedded.py"
    assert script("raw") == (0, [])
    assert [call.split()[2] for call in script("raw", "--from", "check")[1] if "build_data" in call] == ["check"]
    assert script("raw", "--from", "nowhere")[0] == 2
