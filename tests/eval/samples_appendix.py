"""Made examples of the benchmarks that appendix G shows beside the commonest ones, in their official layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.eval.samples import QUESTIONS, lines, quiz, write

ROPES = ("sheet", "hawse", "cleat", "shoal")  # of one length, so that no choice is likelier for being short


def agieval(folder: Path) -> None:
    rows = []
    for place in range(2, QUESTIONS, 4):  # C is right, which who babbles never says
        question, *options, letter = quiz(place)
        marked = [f"({letter}){option}" for letter, option in zip("ABCD", options, strict=True)]
        rows.append({"passage": None, "question": question, "options": marked, "label": letter, "answer": None})
    write(folder / "data/v1/gaokao-biology.jsonl", lines(rows))
    write(folder / "data/v1/sat-math.jsonl", lines(rows))


def science(place: int, labels: str = "ABCD") -> dict[str, Any]:
    right = place % 4
    choices = [{"text": rope, "label": label} for rope, label in zip(ROPES, labels, strict=True)]
    return {
        "id": str(place),
        "question": {"stem": f"Rope {place} is a", "choices": choices},
        "answerKey": labels[right],
    }


def arc(part: str, folder: Path) -> None:
    rows = [science(place, "1234" if place % 2 else "ABCD") for place in range(QUESTIONS)]
    write(folder / f"ARC-{part}/ARC-{part}-Train.jsonl", lines(rows))
    write(folder / f"ARC-{part}/ARC-{part}-Test.jsonl", lines(rows))


def openbookqa(folder: Path) -> None:
    write(folder / "Main/test.jsonl", lines(map(science, range(QUESTIONS))))


def hellaswag(folder: Path) -> None:
    def row(place: int) -> dict[str, Any]:
        return {
            "ind": place,
            "activity_label": "Sounding",
            "ctx_a": f"[header] A man [title] drops line {place}.",
            "ctx_b": "he",
            "endings": [f"makes it a {rope}.  [step] Ho!" for rope in ROPES],
            "label": place % 4,
        }

    write(folder / "hellaswag_train.jsonl", lines(map(row, range(12))))
    write(folder / "hellaswag_val.jsonl", lines(map(row, range(QUESTIONS))))


def piqa(folder: Path) -> None:
    goals = [{"goal": f"To moor boat {n},", "sol1": "use a sheet", "sol2": "use a cleat"} for n in range(QUESTIONS)]
    write(folder / "valid.jsonl", lines(goals))
    write(folder / "valid-labels.lst", "".join(f"{n // 2 % 2}\n" for n in range(QUESTIONS)))


def winogrande(folder: Path) -> None:
    def row(place: int) -> dict[str, Any]:
        sentence = f"At {place} fathoms _ went down because the other stayed."
        return {"sentence": sentence, "option1": "Ann", "option2": "Bob", "answer": str(place // 2 % 2 + 1)}

    write(folder / "train_xl.jsonl", lines(map(row, range(8))))
    write(folder / "dev.jsonl", lines(map(row, range(QUESTIONS))))


def race(part: str, folder: Path) -> None:
    for place in range(QUESTIONS // 4):
        article = {
            "id": f"{part}{place}.txt",
            "article": f"The {place} boats lay at anchor.\n",
            "questions": [f"What held boat {number}?" for number in range(4)],
            "options": [list(ROPES)] * 4,
            "answers": ["ABCD"[(number + place) % 4] for number in range(4)],
        }
        write(folder / f"test/{part}/{place}.txt", json.dumps(article))


def drop(folder: Path) -> None:
    def answer(number: str = "", spans: tuple[str, ...] = (), **date: str) -> dict[str, Any]:
        return {"number": number, "date": {"day": "", "month": "", "year": "", **date}, "spans": list(spans)}

    pairs = [
        {"question": "How many boats were not small?", "answer": answer("83.9"), "validated_answers": [answer("84")]},
        {"question": "Who led?", "answer": answer(spans=("Ann Bonny",))},
        {"question": "Which ropes?", "answer": answer(spans=("a sheet", "the halyard"))},
        {"question": "When?", "answer": answer(month="May", year="1720")},
    ]
    passages = {f"sea_{n}": {"passage": f"Of {n} boats most were small.", "qa_pairs": pairs} for n in range(2)}
    write(folder / "drop_dataset_dev.json", json.dumps(passages))


def triviaqa(folder: Path) -> None:
    def row(place: int, question: str, *names: str) -> dict[str, Any]:
        answer = {"Value": names[0], "Aliases": list(names), "Type": "WikipediaEntity"}
        return {"QuestionId": f"tc_{place}", "Question": question, "Answer": answer}

    train = [row(n, f"Which {n} knots?", "Bowline") for n in range(6)]
    train.append(row(6, "A Jayhawker was a term of old?", "Kansas", "Kans."))
    dev = [row(n, f"What is rope {n}?", "The Halyard", "halliard") for n in range(3)]
    write(folder / "unfiltered-web-train.json", json.dumps({"Data": train, "Domain": "Web"}))
    write(folder / "unfiltered-web-dev.json", json.dumps({"Data": dev, "Domain": "Web"}))


def naturalquestions(folder: Path) -> None:
    train = [{"question": f"who tied knot {n}", "answer": [f"Ann {n}", "Ann"]} for n in range(6)]
    train.append({"question": "when did miami vice go off the air", "answer": ["1989"]})
    write(folder / "NQ-open.train.jsonl", lines(train))
    write(folder / "NQ-open.dev.jsonl", lines({"question": f"who holds rope {n}", "answer": ["Bob"]} for n in range(3)))


def cmath(folder: Path) -> None:
    rows = [{"grade": n % 6 + 1, "input": f"{n}条船加半条船，是几条？", "golden": f"{2 * n + 1}/2"} for n in range(6)]
    write(folder / "cmath_dev.jsonl", lines(rows))


def cruxeval(folder: Path) -> None:
    rows = [
        {
            "id": f"sample_{n}",
            "code": f"def f(s):\n    return s + ' == {n}'",
            "input": f"'{n}'",
            "output": f"'{n} == {n}'",
        }
        for n in range(3)
    ]
    write(folder / "cruxeval.jsonl", lines(rows))


def cluewsc(folder: Path) -> None:
    def row(place: int, text: str, label: str) -> dict[str, Any]:
        target = {"span1_text": f"船{place}", "span1_index": 0, "span2_text": "它", "span2_index": 5}
        return {"target": target, "idx": place, "label": label, "text": text}

    train = [row(n, f"船{n}靠岸，它停了。", "true" if n % 2 else "false") for n in range(14)]
    train.append(row(14, "在洛伦佐大街的尽头处，有船。", "true"))
    write(folder / "train.json", lines(train))
    write(folder / "dev.json", lines(train[:6]))


def cmrc(folder: Path) -> None:
    paragraphs = [
        {
            "context": f"第{place}条船很深。",
            "qas": [
                {"id": f"{place}_{n}", "question": f"问{n}？", "answers": [{"text": f"答 {n}"}, {"text": f"“回答{n}”"}]}
                for n in range(3)
            ],
        }
        for place in range(2)
    ]
    write(folder / "cmrc2018_dev.json", json.dumps({"version": "v1", "data": [{"paragraphs": paragraphs}]}))


def c3(folder: Path) -> None:
    choices = ["商店", "饭店", "医院", "教室"]
    for kind in "dm":
        texts = [
            [
                ["女：多深?", f"男：{n}寻。"],
                [{"question": "他们在哪儿?", "choice": choices, "answer": choices[n % 4]}],
                f"{kind}{n}",
            ]
            for n in range(QUESTIONS // 2)
        ]
        write(folder / f"c3-{kind}-test.json", json.dumps(texts, ensure_ascii=False))


def chid(folder: Path) -> None:
    idioms = ["神清气爽", "诡计多端", "精疲力竭", "分工合作", "寅吃卯粮", "土豪劣绅", "芸芸众生"]
    rows = [
        {"id": n, "candidates": idioms, "content": f"第{n}人已#idiom#”。", "answer": n % 7} for n in range(QUESTIONS)
    ]
    write(folder / "test_public.json", lines(rows))


def ccpm(folder: Path) -> None:
    poems = ["一春多病", "百年多病", "况多愁病", "独登台上"]
    rows = [{"translation": f"第{n}年生病。", "choices": poems, "answer": n % 4} for n in range(QUESTIONS)]
    write(folder / "valid.jsonl", lines(rows))
