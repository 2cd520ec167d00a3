"""C-Eval: 52 subjects in Chinese, 5 examples from the development split, the likeliest letter (table 15).

Official layout: dev/SUBJECT_dev.csv and val/SUBJECT_val.csv with a header; the answers of its test split are not
public, so the validation split is asked.
"""

from __future__ import annotations

from leadline.eval.quiz import Style, quiz_items, read_questions
from leadline.eval.subjects import CEVAL
from leadline.eval.task import Choice, Item, Setup, Task

STYLE = Style(
    head=lambda subject: f"以下是中国关于{CEVAL.get(subject, subject)}考试的单项选择题，请选出其中的正确答案。\n\n",
    question="",
    asks="答案：",
    space="",
)


def load(setup: Setup) -> list[Item]:
    examples = read_questions(setup.source, ("dev/*.csv", "*/dev/*.csv"), suffix="_dev")
    questions = read_questions(setup.source, ("val/*.csv", "*/val/*.csv"), suffix="_val")
    return quiz_items(setup, examples, questions, STYLE)


TASK = Task(
    name="ceval",
    about="52 subjects, Chinese, four options; the validation split",
    load=load,
    method=Choice(),
    shots=5,
    benchmark="C-Eval",
    chance=0.25,
    hub="ceval/ceval-exam",
)
