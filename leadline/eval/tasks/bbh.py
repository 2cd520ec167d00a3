"""BBH: 27 hard tasks of BIG-Bench, 3 examples with a chain of thought, exact match (table 14).

Official layout: bbh/TASK.json of {"examples": [{"input", "target"}]} and cot-prompts/TASK.txt, whose text after the
line of dashes is the prompt.
"""

from __future__ import annotations

from leadline.errors import DataError
from leadline.eval.answers import stated_answer
from leadline.eval.task import Generation, Item, Setup, Task

FIRST = "A: Let's think step by step.\n"


def load(setup: Setup) -> list[Item]:
    prompts = {path.stem: path.read_text(encoding="utf-8") for path in setup.source.files("cot-prompts/*.txt")}
    items = []
    for name, rows in setup.source.tables("bbh/*.json", "*.json"):
        examples = rows[0].get("examples") if rows else None
        if examples is None:
            raise DataError(f"{name}.json has no examples")
        if name not in prompts:
            raise DataError(f"bbh expects cot-prompts/{name}.txt in {setup.source.folder}", param="data")
        known = shots(prompts[name], setup.shots)
        items += [
            Item(
                f"{name}/{place}",
                f"{known}Q: {row['input']}\n{FIRST}",
                f"So the answer is {row['target']}.",
                group=name,
                facts={"target": row["target"]},
            )
            for place, row in enumerate(examples)
        ]
    return items


def shots(text: str, count: int) -> str:
    """What the task is, and the first `count` of its examples."""
    body = text.partition("-----\n")[2] or text
    about, *examples = body.strip().split("\n\nQ: ")
    return "".join([f"{about}\n\n", *(f"Q: {example.strip()}\n\n" for example in examples[:count])])


def mark(item: Item, answer: str) -> float:
    return float(_plain(stated_answer(answer)) == _plain(item.facts["target"]))


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".")


TASK = Task(
    name="bbh",
    about="27 tasks of reasoning, English, chain of thought",
    load=load,
    method=Generation(mark, stop=("\n\nQ:", "\nQ:"), max_tokens=512),
    shots=3,
    benchmark="BBH",
    metric="EM",
    average="groups",
)
