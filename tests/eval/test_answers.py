"""What an answer says."""

from __future__ import annotations

from fractions import Fraction

import pytest

from leadline.eval import answers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The answer is 120.", 120),
        ("The answer is $1,200.50.", Fraction("1200.5")),
        ("so the answer is -3 apples", -3),
        ("It is 5 and 7", 7),
        ("The answer is unclear, 4", 4),
        ("The answer is 3. Q: more The answer is 9.", 3),
        ("none", None),
        ("", None),
    ],
)
def test_numbers(text: str, value: Fraction | None) -> None:
    assert answers.answer_number(text) == value


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("So the answer is (A).", "(A)"),
        ("the answer is True. Next", "True"),
        ("So the answer is [ ] ].\n\nQ:", "[ ] ]"),
        ("thoughts\nYes.", "Yes"),
        ("", ""),
    ],
)
def test_stated_answers(text: str, stated: str) -> None:
    assert answers.stated_answer(text) == stated


def test_boxes_are_balanced() -> None:
    assert answers.boxed(r"a \boxed{1} b \boxed{\frac{1}{2}} c") == r"\frac{1}{2}"
    assert answers.boxed(r"\fbox{3}") == "3"
    assert answers.boxed(r"\boxed{1") is None
    assert answers.boxed("none") is None
    assert answers.final_expression("The final answer is $[2,5)$. I hope it is correct.") == "[2,5)"
    assert answers.final_expression("Final answer is 3\nmore") == "3"
    assert answers.final_expression("nothing") == ""


@pytest.mark.parametrize(
    ("given", "right", "same"),
    [
        (r"\dfrac{1}{2}", r"\frac{1}{2}", True),
        ("0.5", r"\frac{1}{2}", True),
        (r"\left(3, \frac{\pi}{2}\right)", r"(3,\frac{\pi}{2})", True),
        ("x^2 + 2x + 1", "(x+1)^2", True),
        (r"\text{Evelyn}", r"\text{Evelyn}", True),
        ("2", "3", False),
        ("", "3", False),
        ("", "", False),
    ],
)
def test_expressions_by_meaning(given: str, right: str, same: bool) -> None:
    assert answers.same_expression(given, right) is same


def test_code_from_a_chat() -> None:
    assert answers.code_block("Here:\n```python\nx = 1\n```\nand ```y```") == "x = 1\n"
    assert answers.code_block("```\nx = 1\n") == "x = 1\n"
    assert answers.code_block("    return 1\n") == "    return 1\n"
