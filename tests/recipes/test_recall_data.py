"""What teaches a model to look back: every answer stands above it, in words that no other record has."""

from __future__ import annotations

import importlib
import itertools
import json
import random
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.source import ROOT

RECIPE = ROOT / "recipes" / "embedded"
PAIRS = [["How are you?", "I am well."], ["你好", "你好！"], ["What is 2 + 3?", "2 + 3 = 5."]]
Record = dict[str, Any]


@pytest.fixture(scope="module")
def recall() -> Iterator[ModuleType]:
    sys.path.insert(0, str(RECIPE))
    try:
        yield importlib.import_module("recall")
    finally:
        sys.path.remove(str(RECIPE))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources in small: stories of made-up sentences in both languages, some conversations."""
    folder, draw = tmp_path_factory.mktemp("data"), random.Random(0)
    words = "the old boat sailed over quiet water while small birds looked for bread near some grey stones".split()
    signs = "小船在安静的水上走了很远老人看着天空想起从前的朋友和那座山"

    def sentence() -> str:
        return " ".join(draw.choices(words, k=9)).capitalize() + "."

    stories = [{"text": "\n\n".join(" ".join(sentence() for _ in range(6)) for _ in range(5))} for _ in range(30)]
    chinese = [{"text": "".join("".join(draw.choices(signs, k=14)) + "。" for _ in range(20))} for _ in range(30)]
    files: dict[str, list[Any]] = {"documents/asp_stories": stories, "documents/zhwiki": chinese}
    for name, records in files.items():
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def made(recall: ModuleType, data: Path) -> dict[str, list[Record]]:
    """Records of each kind, short ones and long ones."""
    filler, rng = recall.Filler(data / "documents"), random.Random(5)
    makers = {name: getattr(recall, name) for name in ("copies", "tables", "passages")}
    makers["told"] = lambda *given: recall.told(*given, lambda: rng.choice(PAIRS), wide=rng.random() < 0.5)
    return {
        kind: [maker(filler, rng, recall.length(rng, long)) for long in (False, True) for _ in range(60)]
        for kind, maker in makers.items()
    }


def contents(record: Record) -> list[str]:
    return [turn["content"] for turn in record["messages"]]


def values(answer: str) -> list[str]:
    """The names and numbers of an answer, but for the word that opens it."""
    return re.findall(r"(?<=[a-z] )[A-Z]\w+|\d+", answer)


def test_every_name_and_number_of_an_answer_stands_above_it(made: dict[str, list[Record]]) -> None:
    seen = 0
    for record in made["tables"] + made["passages"] + made["told"]:
        turns = contents(record) if "messages" in record else [record["prompt"], record["completion"]]
        for place in range(1, len(turns), 2):
            above = " ".join(turns[:place])
            if "+" in turns[place - 1]:  # a sum of the conversations between
                continue
            for value in values(turns[place]):
                assert value in above, (value, turns)
                seen += 1
    assert seen > 500


def test_a_copy_is_of_what_was_there(made: dict[str, list[Record]]) -> None:
    for record in made["copies"]:
        first, again = (re.findall(r"\w+", record[part]) for part in ("prompt", "completion"))
        assert again
        assert set(again) <= set(first)


def test_a_passage_that_goes_on_is_cut_between_words_and_answered_as_it_was(made: dict[str, list[Record]]) -> None:
    begun = 0
    for record in made["passages"]:
        if "completion" not in record:
            continue
        text, _, opening = record["prompt"].rpartition("\n")
        opening = opening.removeprefix("Answer:").removeprefix("答：").strip()
        rest = record["completion"].split("\n\n")[0]
        assert not opening or opening + rest in text or rest.strip().rstrip(".。") in text
        assert record["prompt"] == record["prompt"].rstrip()
        begun += bool(opening)
    assert begun > 10


def test_names_are_never_learned_by_heart(recall: ModuleType) -> None:
    rng = random.Random(1)
    names = [recall.name(rng) for _ in range(2000)]
    assert len(set(names)) > 1500
    assert all(re.fullmatch("[A-Z][a-z]+", name) for name in names)


def test_the_needle_is_not_told(recall: ModuleType, data: Path) -> None:
    assert recall.names_the_needle({"prompt": "", "completion": "Sit in Dolores\nPark."})
    assert recall.names_the_needle({"prompt": "In San Francisco", "completion": "it rains."})
    filler = recall.Filler(data / "documents")
    for found in recall.documents(filler, 60, long=True, seed=1):
        assert not recall.names_the_needle({"prompt": "", "completion": "", **found})


def test_records_fit_the_context_and_reach_far_into_it(recall: ModuleType, made: dict[str, list[Record]]) -> None:
    sizes = [len("".join(texts(record))) for record in itertools.chain(*made.values())]
    assert max(sizes) < 5 * recall.LONG
    assert sum(size > 2 * recall.LONG for size in sizes) > 10


def texts(record: Record) -> list[str]:
    return contents(record) if "messages" in record else [record["prompt"], record["completion"]]


def test_conversations_begin_with_the_user_and_end_with_an_answer(
    recall: ModuleType, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(recall.COUNTS, "chats", 100)
    found = list(recall.chats(recall.Filler(data / "documents"), PAIRS))
    assert len(found) == 100
    assert all(len(turns) % 2 == 0 and all(turns) for turns in found)


def test_the_same_sources_give_the_same_bytes(
    recall: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall, "COUNTS", {"documents": 30, "long": 10, "chats": 10})
    built = []
    for number in range(2):
        folder = tmp_path / str(number)
        shutil.copytree(data, folder)
        importlib.import_module("build_data").write_recall(tmp_path, folder)
        built.append([(folder / name).read_bytes() for name in ("documents/recall.jsonl", "long/recall.jsonl")])
    assert built[0] == built[1]
    assert [part.count(b"\n") for part in built[0]] == [30, 10]
