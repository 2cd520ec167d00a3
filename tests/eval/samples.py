"""Made examples of the commonest benchmarks in their official layouts: a few questions each, none of
them from the real data."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

QUESTIONS = 40


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_csv(path: Path, rows: Iterable[Iterable[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def quiz(place: int) -> list[str]:
    """Question, options, letter: which number is greatest?"""
    right = place % 4
    return [f"Which is greatest, {place}?", *(str(place + 9 * (option == right)) for option in range(4)), "ABCD"[right]]


def mmlu(folder: Path) -> None:
    for subject in ("high_school_depth", "ropes"):
        write_csv(folder / f"dev/{subject}_dev.csv", (quiz(place) for place in range(6)))
        write_csv(folder / f"test/{subject}_test.csv", (quiz(place) for place in range(6, 6 + QUESTIONS)))


def cmmlu(folder: Path) -> None:
    head = ["", "Question", "A", "B", "C", "D", "Answer"]
    for subject in ("anatomy", "agronomy"):
        for split, count in (("dev", 5), ("test", QUESTIONS)):
            write_csv(
                folder / f"{split}/{subject}.csv", [head, *([str(place), *quiz(place)] for place in range(count))]
            )


def ceval(folder: Path) -> None:
    head = ["id", "question", "A", "B", "C", "D", "answer"]
    for split, count in (("dev", 5), ("val", QUESTIONS)):
        path = folder / f"{split}/education_science_{split}.csv"
        write_csv(path, [head, *([str(place), *quiz(place)] for place in range(count))])


def bbh(folder: Path) -> None:
    for name in ("knots", "tides"):
        examples = [{"input": f"Is {place} even?", "target": "(A)" if place % 2 else "not [ ]"} for place in range(20)]
        write(folder / f"bbh/{name}.json", json.dumps({"canary": "made", "examples": examples}))
        shots = "\n\n".join(f"Q: Is {n} odd?\nA: Let's think step by step.\nSo the answer is no." for n in (2, 4, 6))
        write(folder / f"cot-prompts/{name}.txt", f"made\n-----\nSay what {name} are.\n\n{shots}")


def gsm8k(folder: Path) -> None:
    def row(place: int) -> dict[str, str]:
        steps = f"First it is {place}+1 = <<{place}+1={place + 1}>>{place + 1}\nThen twice that."
        return {
            "question": f"A rope has {place} knots, one is added, then all are doubled?",
            "answer": f"{steps}\n#### {2 * place + 2:,}",
        }

    shot = {"question": "Max can mow what?", "answer": "It is 3*4 = <<3*4=12>>12 of them\n#### 12"}
    write(folder / "train.jsonl", lines([*map(row, range(10)), shot]))
    write(folder / "test.jsonl", lines(map(row, range(500, 530))))


def math(folder: Path) -> None:
    for split in ("train", "test"):
        for place in range(6):
            solution = f"We halve it \\u2028 and get $\\boxed{{\\frac{{{2 * place + 1}}}{{2}}}}$."
            row = {
                "problem": f"Halve ${2 * place + 1}$ ({split}).",
                "level": "Level 1",
                "type": "Algebra",
                "solution": solution,
            }
            write(folder / f"{split}/algebra/{place}.json", json.dumps(row))


def humaneval(folder: Path) -> None:
    rows = [
        {
            "task_id": f"Made/{place}",
            "prompt": f'def add{place}(number):\n    """Add {place}."""\n',
            "canonical_solution": f"    return number + {place}\n",
            "entry_point": f"add{place}",
            "test": f"def check(candidate):\n    assert candidate(1) == {place + 1}\n",
        }
        for place in range(3)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "HumanEval.jsonl.gz").write_bytes(gzip.compress(lines(rows).encode()))


def mbpp(folder: Path) -> None:
    rows = [
        {
            "task_id": task,
            "text": f"Write a function to add {task}.",
            "code": f"def add(n):\r\n    return n + {task}",
            "test_setup_code": "",
            "test_list": [f"assert add({n}) == {n + task}" for n in range(3)],
        }
        for task in (1, 2, 3, 4, 11, 12, 510, 511)
    ]
    write(folder / "mbpp.jsonl", lines(rows))


def ifeval(folder: Path) -> None:
    rows = [
        {
            "key": 1,
            "prompt": "Describe the sea in small letters, without commas.",
            "instruction_id_list": ["change_case:english_lowercase", "punctuation:no_comma"],
            "kwargs": [{"num_words": None}, {}],
            "answer": "Sure:\nthe sea is deep.",
        },
        {
            "key": 2,
            "prompt": "Name two ropes as points.",
            "instruction_id_list": ["detectable_format:number_bullet_lists"],
            "kwargs": [{"num_bullets": 2}],
            "answer": "- a sheet\n- a halyard",
        },
    ]
    write(folder / "input_data.jsonl", lines(rows))


def mt_bench(folder: Path) -> None:
    questions = [
        {"question_id": 1, "category": "writing", "turns": ["Write of {rope}.", "Now shorter."]},
        {"question_id": 2, "category": "math", "turns": ["What is 2+2?", "And doubled?"]},
    ]
    write(folder / "mt_bench/question.jsonl", lines(questions))
    answers = [{"question_id": 2, "choices": [{"index": 0, "turns": ["4", "8"]}]}]
    write(folder / "mt_bench/reference_answer/gpt-4.jsonl", lines(answers))
    first, second = "{question} / {answer}", "{question_1} / {answer_1} / {question_2} / {answer_2}"
    prompts = [
        {"name": "single-v1", "system_prompt": "Judge.", "prompt_template": first},
        {"name": "single-v1-multi-turn", "system_prompt": "Judge.", "prompt_template": second},
        {"name": "single-math-v1", "system_prompt": "Judge.", "prompt_template": "{ref_answer_1}: " + first},
        {
            "name": "single-math-v1-multi-turn",
            "system_prompt": "Judge.",
            "prompt_template": "{ref_answer_2}: " + second,
        },
    ]
    write(folder / "judge_prompts.jsonl", lines(prompts))


def needle(folder: Path) -> None:
    for place in range(3):
        write(folder / f"essay{place}.txt", f"Of ropes I have written much in essay {place}. " * 40)


def bits_per_byte(folder: Path) -> None:
    rows = [
        {"text": f"The depth is {n} fathoms. 水深{n}寻。" * 3, "meta": {"pile_set_name": "Sea" if n % 2 else "Land"}}
        for n in range(6)
    ]
    write(folder / "test.jsonl", lines(rows))
    write(folder / "letters.txt", "A letter from the harbour.")


def nothing(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
