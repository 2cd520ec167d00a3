"""The makers of the embedded model's data, where they can be checked without the raw sources."""

from __future__ import annotations

import importlib
import random
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.source import ROOT

RECIPE = ROOT / "recipes" / "embedded"


@pytest.fixture(scope="module")
def recipe() -> Iterator[Any]:
    """A function that imports a module of the recipe."""
    sys.path.insert(0, str(RECIPE))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(RECIPE))


def test_simplified_characters_are_told_from_traditional_ones(recipe: Any) -> None:
    chinese = recipe("chinese")
    assert chinese.simplified("我们在图书馆学习，真好！ABC 12")
    assert not chinese.simplified("我們在圖書館學習")
    assert not chinese.simplified("これは日本語です")


def test_chinese_marks_become_full_width_and_lost_brackets_go(recipe: Any) -> None:
    chinese = recipe("chinese")
    assert chinese.tidy_chinese("你好,世界!「书」 好") == "你好，世界！“书”好"
    assert chinese.plain_paragraph("北京（英语：Beijing），是首都。") == "北京，是首都。"


def test_eight_characters_of_a_chinese_prompt_are_found(recipe: Any) -> None:
    tested = recipe("build_data").Tested()
    assert tested.touches(["给我讲吧：讲一个小松鼠和月亮的故事。"])
    assert tested.touches(["“勇敢”是什么意思？"])
    assert not tested.touches(["讲一个小松鼠的故事。", "“努力”是什么意思？"])


def test_fifty_prompts_a_third_of_them_about_chinese(recipe: Any) -> None:
    prompts = (RECIPE / "prompts.txt").read_text(encoding="utf-8").splitlines()
    assert len(prompts) == len(set(prompts)) == 50
    assert sum(bool(re.search("[\u4e00-\u9fff]|Chinese", prompt)) for prompt in prompts) == 16


def test_the_chinese_texts_are_simplified_and_punctuated(recipe: Any) -> None:
    chinese = recipe("chinese")
    for path in sorted((RECIPE / "talk").glob("zh_*")):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert chinese.simplified(line.replace("|", "")), line
            assert not re.search("[\u4e00-\u9fff][,!?;](?! *[\"'A-Za-z])", line), line


def test_every_chinese_question_of_the_own_texts_has_an_answer(recipe: Any) -> None:
    chats = recipe("chinese_chats")
    for name in ("zh_identity", "zh_smalltalk", "zh_refusals", "zh_explain", "zh_howto"):
        text = (RECIPE / "talk" / f"{name}.txt").read_text(encoding="utf-8")
        blocks = chats.read_blocks(name)
        assert len(blocks) == text.count("\n? "), name
        assert all(turns[1] for turns in chats.talk(name, random.Random(0), 2))


def test_chinese_stories_fill_every_blank(recipe: Any) -> None:
    stories, rng = recipe("chinese_stories"), random.Random(1)
    for _ in range(300):
        text, about = stories.tell(rng)
        assert "{" not in text + stories.wish(rng, about)
        assert about["name"] in text
        assert about["friend"] in text
        assert about["hero"] != about["friend"]


def test_the_calendar_is_right(recipe: Any) -> None:
    skills = recipe("skills")
    days, seen = skills.DAYS, 0
    for question, answer in skills.calendar_chats(random.Random(0)):
        if found := re.fullmatch(r"If today is (\w+), what day is it in (\w+) days?\?", question):
            expected = days[(days.index(found[1]) + skills.NUMBERS.index(found[2])) % 7]
            assert f"it is {expected} in" in answer
            seen += 1
    assert seen == 42


def test_words_are_spelled_counted_and_sorted_right(recipe: Any) -> None:
    skills, kinds = recipe("skills"), set()
    for question, answer in skills.spelling_chats(["garden", "owl", "bread", "moon"], random.Random(0)):
        if found := re.search(r"(\w+) has (\w+) letters: ([\w-]+)", answer):
            assert found[3].replace("-", "").lower() == found[1].lower()
            assert len(found[1]) == skills.NUMBERS.index(found[2])
            kinds.add("letters")
        if "A to Z" in question:
            words = re.findall(r"\w+", answer.lower())
            assert words == sorted(words)
            kinds.add("sorted")
    assert kinds == {"letters", "sorted"}


def test_numbers_are_compared_and_ordered_right(recipe: Any) -> None:
    for question, answer in recipe("skills").number_order_chats(random.Random(0)):
        asked, told = ([int(number) for number in re.findall(r"\d+", text)] for text in (question, answer))
        if question.startswith(("Put", "Sort")):
            assert told == sorted(asked)
        elif question.startswith(("Which is bigger", "Which number is larger", "Which is the biggest")):
            assert told[0] == max(asked)
        elif question.startswith(("Which is smaller", "Which is the smallest")):
            assert told[0] == min(asked)
        elif question.startswith(("What", "Which number comes", "Go on")):
            assert told[0] == asked[-1] + asked[1] - asked[0]


def test_the_odd_one_out_is_of_another_kind(recipe: Any) -> None:
    skills = recipe("skills")
    kinds = {"apple": "fruit", "pear": "fruit", "plum": "fruit", "saw": "tool", "hammer": "tool", "drill": "tool"}
    found = [
        (question, answer)
        for question, answer in skills.kind_chats(kinds, random.Random(0))
        if "does not belong," in answer
    ]
    assert found
    for question, answer in found:
        odd = answer.split()[0].lower()
        shown = [word for word in kinds if re.search(rf"\b{word}\b", question)]
        assert [kinds[word] for word in shown].count(kinds[odd]) == 1
