"""Answers of a few words: what counts as the same, and DROP's F1."""

from __future__ import annotations

import pytest

from leadline.eval.spans import exact, exact_chinese, f1


@pytest.mark.parametrize(
    ("answer", "same"),
    [("the Halyard.", True), (" a  halyard", True), ("halyards", False), ("", False), ("the", False)],
)
def test_english_answers(answer: str, same: bool) -> None:
    assert exact(answer, ["Sheet", "Halyard"]) is same


def test_chinese_answers() -> None:
    assert exact_chinese("“霍夫堡 皇宫”。", ["霍夫堡皇宫"])
    assert not exact_chinese("霍夫堡", ["霍夫堡皇宫"])
    assert not exact_chinese("。", ["霍夫堡皇宫"])


@pytest.mark.parametrize(
    ("said", "right", "score"),
    [
        (["83.9"], ["83.9"], 1.0),
        (["5.0 yards"], ["5"], 2 / 3),
        (["6 yards"], ["5 yards"], 0.0),  # another number is wrong whatever else agrees
        (["1,200"], ["1200"], 1.0),
        (["Ann"], ["Ann Bonny"], 2 / 3),
        (["the halyard", "a sheet"], ["sheet", "halyard"], 1.0),  # in any order
        (["sheet"], ["sheet", "halyard"], 0.5),
        (["sheet", "halyard", "boom"], ["sheet"], 1 / 3),
        (["north-west"], ["north west"], 1.0),
        ([""], ["sheet"], 0.0),
        ([], ["sheet"], 0.0),
    ],
)
def test_f1_pairs_spans(said: list[str], right: list[str], score: float) -> None:
    assert f1(said, right) == pytest.approx(score)


def test_f1_takes_the_best_pairing_not_the_first() -> None:
    assert f1(["main sheet", "main"], ["main", "main halyard"]) == pytest.approx((0.5 + 1.0) / 2)
