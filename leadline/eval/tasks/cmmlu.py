"""CMMLU: 67 subjects in Chinese, 5 examples from the development split, the likeliest letter (table 19).

Official layout: dev/SUBJECT.csv and test/SUBJECT.csv with the header ,Question,A,B,C,D,Answer.
"""

from __future__ import annotations

from leadline.eval.quiz import Style, quiz_items, read_questions
from leadline.eval.subjects import CMMLU
from leadline.eval.task import Choice, Item, Setup, Task

STYLE = Style(
    head=lambda subject: f"以下是关于{CMMLU.get(subject, subject)}的单项选择题，请直接给出正确答案的选项。\n\n",
    question="题目：",
    asks="答案是：",
    space="",
)


def load(setup: Setup) -> list[Item]:
    examples = read_questions(setup.source, ("dev/*.csv", "*/dev/*.csv"))
    questions = read_questions(setup.source, ("test/*.csv", "*/test/*.csv"))
    return quiz_items(setup, examples, questions, STYLE)


TASK = Task(
    name="cmmlu",
    about="67 subjects, Chinese, four options",
    load=load,
    method=Choice(),
    shots=5,
    benchmark="CMMLU",
    chance=0.25,
    hub="haonan-li/cmmlu",
)
