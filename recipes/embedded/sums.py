"""Sums to learn from: additions and differences of numbers up to 999 and products of digits, in English and Chinese.

Most questions are answered as people answer them, with the result alone; the others digit by digit with carries, which
a small model can get right where it can only guess a result. Whoever asks for the steps gets them, whoever asks for the
number alone gets that. No pair that `leadline eval sums` or `leadline eval arithmetic` holds out is asked here.

    conversations(16000)    chats as lists of turns, for fine-tuning
    documents(24000)        {"text": ...} of several sums each, for pre-training
    questions(9000)         questions with their results, for GRPO
    solutions(9000)         the same questions worked out, for what fine-tuning alone makes of them

All are functions of their arguments alone.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import NamedTuple

from leadline.eval.tasks import arithmetic
from leadline.eval.tasks.arithmetic import solve
from leadline.eval.tasks.sums import LARGEST, QUESTIONS, held_out

Turns = list[str]

WORKED = 0.35
"""Share of plain questions whose answer is worked out."""
DOCUMENT_WORKED = 0.7

MORE_QUESTIONS = {
    "+": ("What's {a} + {b}?", "what is {a}+{b}", "{a}+{b}", "How much is {a} and {b} together?", "Can you add {a} and {b}?",
          "Tell me the sum of {a} and {b}.", "What do you get when you add {a} to {b}?", "{a} plus {b}?",
          "{a}+{b}=?", "{a}加{b}等于几？", "请算一下 {a} + {b}。", "{a} 与 {b} 的和是多少？"),
    "-": ("What's {a} - {b}?", "what is {a}-{b}", "{a}-{b}", "How much is {a} less {b}?", "Can you take {b} away from {a}?",
          "Tell me the difference of {a} and {b}.", "What is left when you take {b} from {a}?", "{a} minus {b}?",
          "{a}-{b}=?", "{a}减{b}等于几？", "请算一下 {a} - {b}。", "{a} 与 {b} 的差是多少？"),
    "*": ("What is {a} times {b}?", "What is {a} * {b}?", "How much is {a} times {b}?", "Multiply {a} by {b}.", "{a} * {b} = ?",
          "What's {a} times {b}?", "{a} 乘 {b} 是多少？", "{a} 乘以 {b} 等于多少？"),
}  # fmt: skip
STORIES = {
    "+": ("{who} has {a} {things} and gets {b} more. How many {things} are there now?",
          "There are {a} {things} in one box and {b} in another. How many are there in all?",
          "小明有 {a} 本书，又买了 {b} 本。现在一共有几本？"),
    "-": ("{who} has {a} {things} and gives away {b}. How many are left?",
          "There were {a} {things} on the table, and {b} are gone. How many are still there?",
          "小明有 {a} 本书，送出 {b} 本。还剩几本？"),
}  # fmt: skip
NAMES = ("Anna", "Tom", "Maria", "Ben", "Lucy", "Sam", "Emma", "Paul", "Nina", "Jack")
THINGS = ("apples", "books", "coins", "stones", "shells", "stamps", "cards", "nuts")
STEPS = (
    " Show your work.",
    " Show me the steps.",
    " Step by step, please.",
    " Explain how you get it.",
    " How do you work it out?",
)
STEPS_CHINESE = ("请写出过程。", "请一步一步算。", "怎么算？")
BARE = (" Just the number.", " Only the answer, please.", " Give me only the result.")
BARE_CHINESE = ("只要答案。", "直接给出结果。")
WORDS = {"+": "plus", "-": "minus", "*": "times"}
CHINESE_WORDS = {"+": "加", "-": "减", "*": "乘"}
ASKED_IN_TEXT = re.compile(
    r"(?<![\d.,])(\d{1,3})(?:[+-]| (?:[+-]|plus|minus|and|from|less|to) | ?(?:加上?|减去?|与|本书，又买了|本书，送出) ?)"
    r"(\d{1,3})(?![.,]?\d)"
)


class Sum(NamedTuple):
    a: int
    operation: str
    b: int

    @property
    def result(self) -> int:
        return solve(self.a, self.operation, self.b)

    @property
    def text(self) -> str:
        return f"{self.a} {self.operation} {self.b} = {self.result}"


def may_be_taught(a: int, operation: str, b: int) -> bool:
    """Whether no evaluation holds this sum out."""
    return not held_out(a, b) and not arithmetic.held_out(a, operation, b)


def tells_held_out(text: str) -> bool:
    """Whether a text seems to add or subtract a pair that is held out; ranges of such numbers count too."""
    return any(held_out(int(a), int(b)) for a, b in ASKED_IN_TEXT.findall(text))


def draw_sum(rng: random.Random) -> Sum:
    """Mostly two and three digits; a difference is seldom negative."""
    while True:
        operation = rng.choices("+-*", (48, 44, 8))[0]
        a, b = (_number(rng, operation) for _ in range(2))
        if operation == "-" and a < b and rng.random() < 0.9:
            a, b = b, a
        if may_be_taught(a, operation, b):
            return Sum(a, operation, b)


def _number(rng: random.Random, operation: str) -> int:
    digits = 1 if operation == "*" else rng.choices((1, 2, 3), (15, 35, 50))[0]
    return rng.randint(0 if digits == 1 else 10 ** (digits - 1), min(10**digits - 1, LARGEST))


# ---------------------------------------------------------------------------------------------------------- working out


def worked(each: Sum, chinese: bool = False) -> str:
    """The result digit by digit: `7+5=12, carry 1; 4+8+1=13, carry 1; 3+2+1=6. So 347 + 285 = 632.`"""
    a, operation, b = each
    if operation == "*" or max(a, b) < 10:
        return f"{each.text}{'。' if chinese else '.'}"
    if operation == "-" and a < b:
        before = f"{a} 小于 {b}，结果是负数。" if chinese else f"{a} is less than {b}, so the result is negative. "
        steps = subtraction(b, a, chinese)
    else:
        before, steps = "", (addition if operation == "+" else subtraction)(a, b, chinese)
    return (
        f"{before}{'；'.join(steps)}。所以 {each.text}。" if chinese else f"{before}{'; '.join(steps)}. So {each.text}."
    )


def columns(a: int, b: int) -> list[tuple[int, int]]:
    """The digits of both, ones first."""
    width = max(len(str(a)), len(str(b)))
    return [(a // 10**place % 10, b // 10**place % 10) for place in range(width)]


def addition(a: int, b: int, chinese: bool = False) -> list[str]:
    steps, carry = [], 0
    for x, y in columns(a, b):
        total = x + y + carry
        step = f"{x}+{y}+1={total}" if carry else f"{x}+{y}={total}"
        carry = total // 10
        steps.append(step + (("，进 1" if chinese else ", carry 1") if carry else ""))
    return steps


def subtraction(a: int, b: int, chinese: bool = False) -> list[str]:
    """For a >= b."""
    steps, borrow = [], 0
    for x, y in columns(a, b):
        lent = x - y - borrow < 0
        top = x + 10 * lent
        step = f"{top}-{y}-1={top - y - 1}" if borrow else f"{top}-{y}={top - y}"
        borrow = int(lent)
        steps.append(step + (("，借 1" if chinese else ", borrow 1") if borrow else ""))
    return steps


# -------------------------------------------------------------------------------------------------------- conversations


def is_chinese(question: str) -> bool:
    return not question.isascii()


def ask(each: Sum, rng: random.Random) -> str:
    a, operation, b = each
    told = STORIES.get(operation, ())
    if told and each.result > 0 and b > 0 and rng.random() < 0.1:
        return rng.choice(told).format(a=a, b=b, who=rng.choice(NAMES), things=rng.choice(THINGS))
    return rng.choice((*QUESTIONS.get(operation, ()), *MORE_QUESTIONS[operation])).format(a=a, b=b)


def direct(each: Sum, rng: random.Random, chinese: bool) -> str:
    a, operation, b = each
    if chinese:
        return rng.choice(
            (f"{each.text}。", f"{a} {CHINESE_WORDS[operation]} {b} 等于 {each.result}。", f"答案是 {each.result}。")
        )
    return rng.choice(
        (f"{each.text}.", f"{a} {WORDS[operation]} {b} is {each.result}.", f"The answer is {each.result}.")
    )


def exchange(rng: random.Random) -> Turns:
    """A question and its answer."""
    each = draw_sum(rng)
    question = ask(each, rng)
    chinese, way = is_chinese(question), rng.random()
    if way < 0.15:
        return [question + rng.choice(STEPS_CHINESE if chinese else STEPS), worked(each, chinese)]
    if way < 0.25:
        return [question + rng.choice(BARE_CHINESE if chinese else BARE), f"{each.result}{'。' if chinese else '.'}"]
    if rng.random() < WORKED:
        return [question, worked(each, chinese)]
    return [question, direct(each, rng, chinese)]


def conversations(count: int = 16_000, seed: int = 31) -> Iterator[Turns]:
    """Chats of one sum, some of two."""
    rng = random.Random(seed)
    for _ in range(count):
        yield exchange(rng) + (exchange(rng) if rng.random() < 0.05 else [])


def plain(count: int, seed: int, easy: float) -> Iterator[tuple[Sum, str]]:
    """Sums with plain questions, each question once: none is asked by an evaluation, few in `conversations`.

    Of what is easy only a share is kept: most of the 1,000 that are held out is right as soon as it is worked out, and
    differences of three digits are not.
    """
    rng, seen = random.Random(seed), set[str]()
    while len(seen) < count:
        each = draw_sum(rng)
        question, largest = ask(each, rng), max(each.a, each.b)
        if (each.operation == "+" or largest < 100) and rng.random() >= easy:
            continue
        if each.result >= 0 and each.operation != "*" and largest >= 10 and question not in seen:
            seen.add(question)
            yield each, question


def questions(count: int = 9000, seed: int = 33, *, easy: float = 0.15) -> Iterator[dict[str, object]]:
    """Plain questions with their results, for GRPO."""
    for each, question in plain(count, seed, easy):
        yield {"messages": [{"role": "user", "content": question}], "answer": str(each.result)}


def solutions(count: int = 9000, seed: int = 33, *, easy: float = 0.15) -> Iterator[Turns]:
    """The questions of `questions`, worked out."""
    for each, question in plain(count, seed, easy):
        yield [question, worked(each, is_chinese(question))]


# ------------------------------------------------------------------------------------------------------------ documents


def documents(count: int = 24_000, seed: int = 32) -> Iterator[dict[str, str]]:
    """Texts of three to six sums, a line each: mostly worked out, some told as results."""
    rng = random.Random(seed)
    for _ in range(count):
        chinese = rng.random() < 0.2
        yield {"text": "\n".join(_line(rng, chinese) for _ in range(rng.randint(3, 6)))}


def _line(rng: random.Random, chinese: bool) -> str:
    each = draw_sum(rng)
    if rng.random() >= DOCUMENT_WORKED or max(each.a, each.b) < 10:
        return each.text
    return f"{each.a} {each.operation} {each.b}{'：' if chinese else ': '}{worked(each, chinese)}"
