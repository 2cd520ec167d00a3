"""CRUXEval: an input or the output of a Python function, 2 examples, whether the assertion holds (tables 36 and 37).

Official layout: cruxeval.jsonl of {"id", "code", "input", "output"}.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable

from leadline.eval.data import Row, text_of
from leadline.eval.task import Code, Item, Setup, Task

END = "[/ANSWER]"
NO_ANSWER = "raise AssertionError('no assertion in the answer')\n"
INPUT = (
    "You will be given a function f and an output in the form f(??) == output. Find any input such that executing "
    "f on the input leads to the given output. There may be multiple answers, but you should only output one. In "
    "[ANSWER] and [/ANSWER] tags, complete the assertion with one such input that will produce the output when "
    "executing the function."
)
OUTPUT = (
    "You are given a Python function and an assertion containing an input to the function. Complete the assertion "
    "with a literal (no unsimplified expressions, no function calls) containing the output when executing the "
    "provided code on the given input, even if the function is incorrect or incomplete. Do NOT output any extra "
    "information. Provide the full assertion with the correct output in [ANSWER] and [/ANSWER] tags, following "
    "the examples."
)
# (function, input, output) of the paper's examples
COUNT_EVEN = """\
def f(my_list):
    count = 0
    for i in my_list:
        if len(i) % 2 == 0:
            count += 1
    return count"""
INPUT_EXAMPLES = (
    (COUNT_EVEN, '["mq", "px", "zy"]', "3"),
    ("def f(s1, s2):\n    return s1 + s2", '"ba", "nana"', '"banana"'),
)
OUTPUT_EXAMPLES = (
    ("def f(n):\n    return n", "17", "17"),
    ('def f(s):\n    return s + "a"', '"x9j"', '"x9ja"'),
)


def load(setup: Setup, part: str) -> list[Item]:
    task, examples, ask = (INPUT, INPUT_EXAMPLES, find_input) if part == "i" else (OUTPUT, OUTPUT_EXAMPLES, find_output)
    known = "".join(f"{ask(*each)}{_answer(*each)}\n\n" for each in examples[: setup.shots])
    rows = setup.source.rows("cruxeval.jsonl", "data/cruxeval.jsonl", "test.jsonl")
    return [_item(row, place, f"{task}\n\n{known}", ask) for place, row in enumerate(rows)]


def _item(row: Row, place: int, known: str, ask: Callable[[str, str, str], str]) -> Item:
    name, *parts = (text_of(row, key, place=f"row {place}") for key in ("id", "code", "input", "output"))
    facts = dict(zip(("code", "input", "output"), parts, strict=True))
    code, given, output = parts
    return Item(name, known + ask(code, given, output), _answer(code, given, output), facts=facts)


def find_input(code: str, given: str, output: str) -> str:
    return f"[PYTHON]\n{code.strip()}\nassert f(??) == {output}\n[/PYTHON]\n[ANSWER]\n"


def find_output(code: str, given: str, output: str) -> str:
    return f"[PYTHON]\n{code.strip()}\nassert f({given}) == ??\n[/PYTHON]\n[ANSWER]\n"


def _answer(code: str, given: str, output: str) -> str:
    return f"assert f({given}) == {output}\n{END}"


def sides(answer: str) -> tuple[str, str] | None:
    """Left and right of the assertion between the marks; None when there is none."""
    said = answer.partition(END)[0].rpartition("[ANSWER]")[2].strip()
    try:
        (statement,) = ast.parse(said if said.startswith("assert") else f"assert {said}").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    test = statement.test if isinstance(statement, ast.Assert) else None
    if not isinstance(test, ast.Compare) or not isinstance(test.ops[0], ast.Eq) or len(test.ops) > 1:
        return None
    return ast.unparse(test.left), ast.unparse(test.comparators[0])


def check_input(item: Item, answer: str) -> str:
    """The call that was found, in an assertion with the output that was given."""
    found = sides(answer)
    if found is None or not found[0].startswith("f("):
        return NO_ANSWER
    return f"{item.facts['code']}\n\nassert {found[0]} == ({item.facts['output']})\n"


def check_output(item: Item, answer: str) -> str:
    """The output that was said against what the function gives; it is made before there is an f to call."""
    found = sides(answer)
    if found is None:
        return NO_ANSWER
    return f"said = ({found[1]})\n{item.facts['code']}\n\nassert f({item.facts['input']}) == said\n"


def _task(part: str, about: str, program: Callable[[Item, str], str]) -> Task:
    return Task(
        name=f"cruxeval_{part}",
        about=f"{about}; needs --allow-code",
        load=functools.partial(load, part=part),
        method=Code(program, stop=(END,), max_tokens=128),
        shots=2,
        benchmark=f"CRUXEval-{part.upper()}",
        runs_code=True,
        hub="cruxeval-org/cruxeval",
        folders=("cruxeval",),
    )


TASKS = (
    _task("i", "an input that gives a Python function's output", check_input),
    _task("o", "the output of a Python function", check_output),
)
