"""OpenBookQA: sentences of school science to go on with, without examples, the continuation of least perplexity
(table 31).

Official layout: test.jsonl of {"id", "question": {"stem", "choices": [{"text", "label"}]}, "answerKey"}. The paper
shows its format and no score.
"""

from __future__ import annotations

from string import ascii_uppercase

from leadline.eval.task import Choice, Item, Setup, Task
from leadline.eval.tasks.arc import science_question


def load(setup: Setup) -> list[Item]:
    rows = setup.source.rows("test.jsonl", "*/test.jsonl", "main/test*.parquet")
    questions = [science_question(row, "", f"test, row {place}") for place, row in enumerate(rows)]
    items = []
    for place, question in enumerate(questions):
        choices = tuple(f" {option}" for option in question.options)
        right = choices[ascii_uppercase.index(question.answer)]
        items.append(Item(str(place), question.text, right, choices))
    return items


TASK = Task(
    name="openbookqa",
    about="sentences of school science, English",
    load=load,
    method=Choice(per_token=True),
    chance=0.25,
    hub="allenai/openbookqa",
    hub_files=("main/*",),
    folders=("OpenBookQA-V1-Sep2018",),
)
