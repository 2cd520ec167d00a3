"""Instruction following in prompts that leadline makes itself: short enough for small models, checked by a program.

Every prompt is a subject and an instruction, and comes with an answer that follows it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from leadline.eval.task import Generation, Item, Setup, Task
from leadline.eval.tasks.ifeval import mark

# subject, a sentence about it
SUBJECTS = (
    ("the sea", "The sea is deep and salty."),
    ("a dog", "A dog is a loyal animal."),
    ("winter", "Winter is the coldest season."),
    ("bread", "Bread is made from flour and water."),
    ("the moon", "The moon goes around the earth."),
    ("a library", "A library is a house full of books."),
    ("rain", "Rain is water that falls from clouds."),
    ("music", "Music makes people happy."),
    ("a bridge", "A bridge leads across a river."),
    ("tea", "Tea is a hot drink made from leaves."),
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`words` follow "Write about SUBJECT."; `answer` turns a plain sentence into one that obeys."""

    check: str
    words: str
    answer: Callable[[str], str]
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)


INSTRUCTIONS = (
    Instruction("change_case:english_lowercase", "Use small letters only.", str.lower),
    Instruction("change_case:english_capital", "Use capital letters only.", str.upper),
    Instruction("punctuation:no_comma", "Do not use any commas.", lambda text: text),
    Instruction("startend:quotation", "Put your whole answer in double quotation marks.", lambda text: f'"{text}"'),
    Instruction(
        "startend:end_checker",
        'End your answer with the words "That is all."',
        lambda text: f"{text} That is all.",
        {"end_phrase": "That is all."},
    ),
    Instruction(
        "length_constraints:number_sentences",
        "Use fewer than two sentences.",
        lambda text: text,
        {"num_sentences": 2, "relation": "less than"},
    ),
    Instruction(
        "length_constraints:number_words",
        "Use at least twenty words.",
        lambda text: " ".join([text] * 5),
        {"num_words": 20, "relation": "at least"},
    ),
    Instruction(
        "length_constraints:number_words",
        "Use fewer than fifteen words.",
        lambda text: text,
        {"num_words": 15, "relation": "less than"},
    ),
    Instruction(
        "detectable_format:number_bullet_lists",
        "Answer with exactly three points, each on a line that begins with a dash.",
        lambda text: f"- {text}\n- {text}\n- {text}",
        {"num_bullets": 3},
    ),
    Instruction(
        "keywords:existence",
        'Use the word "people".',
        lambda text: f"{text} People know that.",
        {"keywords": ["people"]},
    ),
)


def load(setup: Setup) -> list[Item]:
    return [
        Item(
            f"{place}/{subject}",
            f"Write about {subject}. {each.words}",
            each.answer(sentence),
            group=each.check,
            facts={"names": json.dumps([each.check]), "arguments": json.dumps([each.arguments])},
        )
        for place, each in enumerate(INSTRUCTIONS)
        for subject, sentence in SUBJECTS
    ]


TASK = Task(
    name="instructions",
    about="short instructions that a program can check, made here",
    load=load,
    method=Generation(mark, max_tokens=256, chat=True),
    metric="loose",
    chance=0.3,  # a few words with neither comma nor full stop follow three of the ten
    needs_data=False,
)
