"""MT-Bench: 80 conversations of two questions, each answer marked from 1 to 10 by a judge (table 4 of the paper).

Official layout: question.jsonl of {"question_id", "category", "turns", "reference"?}, reference_answer/gpt-4.jsonl and
judge_prompts.jsonl, in one folder or in mt_bench/ beside the prompts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from leadline.errors import DataError
from leadline.eval.task import Item, Judge, Setup, Task

# The words of the judge's prompts, and whether a reference is shown.
SINGLE, SECOND = "v1", "v1-multi-turn"


def load(setup: Setup) -> list[Item]:
    source = setup.source
    prompts = {row["name"]: row for row in source.rows("judge_prompts.jsonl", "*/judge_prompts.jsonl")}
    found = source.files("reference_answer/gpt-4.jsonl", "*/reference_answer/gpt-4.jsonl")
    rows = source.rows("reference_answer/gpt-4.jsonl", "*/reference_answer/gpt-4.jsonl") if found else []
    references = {row["question_id"]: row["choices"][0]["turns"] for row in rows}
    items = []
    for row in source.rows("question.jsonl", "*/question.jsonl"):
        reference = references.get(row["question_id"], ())
        first, *turns = row["turns"]
        facts = {
            "reference": json.dumps(list(reference)),
            "first": _template(prompts, SINGLE, bool(reference)),
            "second": _template(prompts, SECOND, bool(reference)),
        }
        items.append(Item(str(row["question_id"]), first, group=row["category"], turns=tuple(turns), facts=facts))
    return items


def _template(prompts: dict[str, dict[str, str]], name: str, has_reference: bool) -> str:
    full = f"single-math-{name}" if has_reference else f"single-{name}"
    if full not in prompts:
        raise DataError(f"judge_prompts.jsonl has no prompt {full}")
    return f"{prompts[full]['system_prompt']}\n\n{prompts[full]['prompt_template']}"


def request(item: Item, turn: int, conversation: Sequence[str]) -> str:
    """The judge's prompt with everything filled in, in one pass, so that braces in an answer stay braces."""
    reference = json.loads(item.facts["reference"])
    names = {"question": conversation[0], "answer": conversation[1]}
    for place in range(turn + 1):
        names[f"question_{place + 1}"] = conversation[2 * place]
        names[f"answer_{place + 1}"] = conversation[2 * place + 1]
        if place < len(reference):
            names[f"ref_answer_{place + 1}"] = reference[place]
    pieces = item.facts["second" if turn else "first"].split("{")
    filled = [pieces[0]]
    for piece in pieces[1:]:
        name, brace, rest = piece.partition("}")
        filled.append(names[name] + rest if brace and name in names else "{" + piece)
    return "".join(filled)


TASK = Task(
    name="mt_bench",
    about="conversations of two turns, marked by a judge; needs --judge-url",
    load=load,
    method=Judge(request),
    benchmark="MT-Bench",
    metric="judge score",
    chance=1.0,
    perfect=10.0,
)
