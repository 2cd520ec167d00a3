"""MMLU: 57 subjects in English, 5 examples from the development split, the likeliest letter (table 29).

Official layout: dev/SUBJECT_dev.csv and test/SUBJECT_test.csv without a header.
"""

from __future__ import annotations

from leadline.eval.quiz import LETTERS, Style, quiz_items, read_questions
from leadline.eval.task import Choice, Item, Setup, Task

COLUMNS = ("question", *LETTERS, "answer")
STYLE = Style(
    head=lambda subject: (
        f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
    ),
    question="",
    asks="Answer:",
    space=" ",
)


def load(setup: Setup) -> list[Item]:
    examples = read_questions(setup.source, ("dev/*.csv", "all/dev*.parquet"), suffix="_dev", columns=COLUMNS)
    questions = read_questions(setup.source, ("test/*.csv", "all/test*.parquet"), suffix="_test", columns=COLUMNS)
    return quiz_items(setup, examples, questions, STYLE)


TASK = Task(
    name="mmlu",
    about="57 subjects, English, four options",
    load=load,
    method=Choice(),
    shots=5,
    benchmark="MMLU",
    chance=0.25,
    hub="cais/mmlu",
    hub_files=("all/dev*", "all/test*"),
)
