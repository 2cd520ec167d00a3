r"""MATH: competition mathematics, 4 worked examples, whether the final expression means the same (table 27).

Official layout: train/SUBJECT/N.json and test/SUBJECT/N.json of {"problem", "level", "type", "solution"}; tables of the
same columns will do. The examples are the paper's where there is a training split that has them; without one they are
the first problems of the test split, which then are not asked.
"""

from __future__ import annotations

from leadline.eval.answers import boxed, final_expression, same_expression
from leadline.eval.data import Row, pick, text_of
from leadline.eval.task import Generation, Item, Setup, Task

# How the paper's examples open.
EXAMPLES = (
    "Find the domain of the expression $\\frac{\\sqrt{x-2}}",
    "If $\\det \\mathbf{A} = 2$",
    "Terrell usually lifts two 20-pound",
    "If the system of equations\n\n\\begin{align*}\n6x-4y",
)
TRAIN = ("train/*/*.json", "train*.json*", "*/train*.parquet", "train*.parquet")
TEST = ("test/*/*.json", "test*.json*", "*/test*.parquet", "test*.parquet")
HOPE = "I hope it is correct."


def load(setup: Setup) -> list[Item]:
    tests = setup.source.rows(*TEST)
    has_train = bool(setup.source.files(*TRAIN))
    shots = pick(setup.source.rows(*TRAIN) if has_train else tests, "problem", EXAMPLES, setup.shots)
    known = "".join(f"{_question(row)}{_answer(row)}\n\n" for row in shots)
    asked = tests if has_train else [row for row in tests if row not in shots]
    return [_item(row, place, known) for place, row in enumerate(asked)]


def _question(row: Row) -> str:
    return f"Problem:\n{row['problem'].strip()}\n\nSolution:\n"


def _answer(row: Row) -> str:
    return f"{row['solution'].strip()}\nFinal Answer: The final answer is ${boxed(row['solution'])}$. {HOPE}"


def _item(row: Row, place: int, known: str) -> Item:
    text_of(row, "problem", place=f"test, row {place}")
    solution = text_of(row, "solution", place=f"test, row {place}")
    group = str(row.get("type") or row.get("subject") or "")
    facts = {"final": boxed(solution) or str(row.get("answer") or "")}
    return Item(str(place), known + _question(row), _answer(row), group=group, facts=facts)


def mark(item: Item, answer: str) -> float:
    return float(same_expression(final_expression(answer), item.facts["final"]))


TASK = Task(
    name="math",
    about="competition mathematics, English",
    load=load,
    method=Generation(mark, stop=("\nProblem:", HOPE), max_tokens=1024),
    shots=4,
    benchmark="MATH",
    metric="EM",
    hub="EleutherAI/hendrycks_math",
)
