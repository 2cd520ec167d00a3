"""Sums: what is held out, what is taught, and that the two never meet."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

from leadline.eval.answers import last_number
from leadline.eval.data import Source
from leadline.eval.task import Item, Setup
from leadline.eval.tasks import arithmetic
from leadline.eval.tasks.sums import SMALLEST_HELD_OUT, TASK, held_out, load, mark, pairs, right

RECIPE = Path(__file__).parents[2] / "recipes" / "embedded" / "sums.py"


@pytest.fixture(scope="module")
def taught() -> ModuleType:
    spec = importlib.util.spec_from_file_location("embedded_sums", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def items() -> list[Item]:
    return list(TASK.load(Setup(Source("sums", None), 0, True)))


def test_a_thousand_pairs_are_asked_and_none_twice() -> None:
    found = items()
    assert len(pairs()) == len(set(pairs())) == len({item.id for item in found}) == 1000
    assert all(held_out(a, b) and held_out(b, a) for a, b in pairs())
    assert sum(b < 100 for _, b in pairs()) == 400
    assert min(b for _, b in pairs()) >= SMALLEST_HELD_OUT


def test_questions_hold_their_numbers_and_answers_are_right() -> None:
    found = items()
    for item in found:
        operation = "+" if "+" in item.id else "-"
        a, b = map(int, item.id.split(operation))
        assert str(a) in item.prompt
        assert str(b) in item.prompt
        assert int(item.answer) == (a + b if operation == "+" else a - b) >= 0
    assert 0.2 < sum(not item.prompt.isascii() for item in found) / 1000 < 0.3
    assert 0.4 < sum("+" in item.id for item in found) / 1000 < 0.6


def test_the_last_number_counts() -> None:
    assert right("7+5=12, carry 1; 4+8+1=13, carry 1; 3+2+1=6. So 347 + 285 = 632.", 632)
    assert right("512 − 600 = −88", -88)
    assert not right("It is 632, not 631.", 632)
    assert not right("", 0)
    assert mark(Item("x", "", facts={"result": "1200"}), "1,200.") == 1.0


@pytest.mark.parametrize(
    ("a", "operation", "b", "text"),
    [
        (347, "+", 285, "7+5=12, carry 1; 4+8+1=13, carry 1; 3+2+1=6. So 347 + 285 = 632."),
        (878, "+", 44, "8+4=12, carry 1; 7+4+1=12, carry 1; 8+0+1=9. So 878 + 44 = 922."),
        (512, "-", 347, "12-7=5, borrow 1; 11-4-1=6, borrow 1; 5-3-1=1. So 512 - 347 = 165."),
        (20, "-", 31, "20 is less than 31, so the result is negative. 1-0=1; 3-2=1. So 20 - 31 = -11."),
        (6, "*", 9, "6 * 9 = 54."),
    ],
)
def test_working_out_is_written_digit_by_digit(taught: ModuleType, a: int, operation: str, b: int, text: str) -> None:
    assert taught.worked(taught.Sum(a, operation, b)) == text


def test_every_step_of_a_worked_sum_is_true(taught: ModuleType) -> None:
    draw = random.Random(5)
    for _ in range(300):
        each = taught.draw_sum(draw)
        steps, _, last = taught.worked(each).rpartition("So ")
        for step in filter(lambda part: "=" in part, steps.replace(";", ",").split(",")):
            left, equals = step.split("=")
            assert eval(left.rpartition(" ")[2]) == int(equals.rstrip(". "))
        assert last_number(last or taught.worked(each)) == each.result


def test_nothing_held_out_is_taught(taught: ModuleType) -> None:
    chats, texts = list(taught.conversations(2000)), list(taught.documents(500))
    said = [turn for chat in chats for turn in chat] + [line for text in texts for line in text["text"].split("\n")]
    assert not any(map(taught.tells_held_out, said))
    draw = random.Random(6)
    assert all(taught.may_be_taught(*taught.draw_sum(draw)) for _ in range(2000))
    assert not taught.may_be_taught(*next((a, o, b) for _, a, o, b in arithmetic.sums()))


def test_a_held_out_sum_is_noticed_in_a_text(taught: ModuleType) -> None:
    assert all(taught.tells_held_out(item.prompt) for item in items())
    a, b = pairs()[0]
    wordings = [
        *taught.MORE_QUESTIONS["+"],
        *taught.MORE_QUESTIONS["-"],
        "{a} + {b} = 7",
        "They are {a}-{b} years old.",
    ]
    seen = [wording for wording in wordings if taught.tells_held_out(wording.format(a=a, b=b))]
    assert set(wordings) - set(seen) == {"Can you take {b} away from {a}?"}


def test_the_same_data_every_time(taught: ModuleType) -> None:
    assert list(taught.conversations(50)) == list(taught.conversations(50))
    assert list(taught.documents(20)) == list(taught.documents(20))
    assert load(Setup(Source("sums", None), 0)) == load(Setup(Source("sums", None), 0))
