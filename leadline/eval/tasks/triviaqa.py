"""TriviaQA: questions of general knowledge, 5 examples, exact match with any name of the answer (table 34).

Official layout: triviaqa-unfiltered/unfiltered-web-train.json and -dev.json of {"Data": [{"Question", "QuestionId",
"Answer": {"Value", "Aliases"}}]}. The examples are the paper's where the training split has them, answered in its
words.
"""

from __future__ import annotations

import json
from typing import Any

from leadline.errors import DataError
from leadline.eval.data import Row, pick
from leadline.eval.spans import exact
from leadline.eval.task import Generation, Item, Setup, Task

HEAD = "Answer these questions:\n"

# How the paper's examples open, and which of an answer's names it gives.
EXAMPLES = {
    "A Jayhawker was a term": "Kans.",
    "Which Swedish DJ and record producer": "Tim Bergling",
    "Who is the MP for Sheffield Hallam": "Nick clegg",
    "A case that riveted the nation": "Survival of species",
    "What cartoon series featured a character": "Muumi",
}
FOLDERS = ("", "triviaqa-unfiltered/", "*/")
TABLES = "unfiltered.nocontext"


def load(setup: Setup) -> list[Item]:
    train = _rows(setup, "train") if setup.shots else []
    known = "".join(_example(row) for row in pick(train, "question", [*EXAMPLES], setup.shots))
    return [_item(row, known) for row in _rows(setup, "dev")]


def _rows(setup: Setup, split: str) -> list[Row]:
    """Rows of "question", "id" and "names", whichever the layout."""
    hub = "validation" if split == "dev" else split
    files = [f"{folder}unfiltered-web-{split}.json" for folder in FOLDERS]
    rows = setup.source.rows(*files, f"{TABLES}/{hub}*.parquet")
    if rows and "Data" in rows[0]:
        rows = rows[0]["Data"]
    return [_row(row, f"{split}, row {place}") for place, row in enumerate(rows)]


def _row(row: dict[str, Any], place: str) -> Row:
    small = {name.lower(): value for name, value in row.items()}
    try:
        answer = {name.lower(): value for name, value in small["answer"].items()}
        names = [answer["value"], *answer.get("aliases", ())]
        return {
            "question": small["question"].strip(),
            "id": small.get("questionid") or small["question_id"],
            "names": names,
        }
    except (KeyError, AttributeError) as error:
        raise DataError(f"{place} is not a question with its answer: {error!r}") from None


def _example(row: Row) -> str:
    wanted = next((name for opening, name in EXAMPLES.items() if row["question"].startswith(opening)), None)
    return f"Q: {row['question']}\nA: {wanted if wanted in row['names'] else row['names'][0]}\n"


def _item(row: Row, known: str) -> Item:
    facts = {"names": json.dumps(row["names"])}
    return Item(row["id"], f"{HEAD}{known}Q: {row['question']}\nA:", f" {row['names'][0]}", facts=facts)


def mark(item: Item, answer: str) -> float:
    return float(exact(answer.strip().split("\n")[0], json.loads(item.facts["names"])))


TASK = Task(
    name="triviaqa",
    about="general knowledge, English",
    load=load,
    method=Generation(mark, stop=("\n",), max_tokens=32),
    shots=5,
    benchmark="TriviaQA",
    metric="EM",
    hub="mandarjoshi/trivia_qa",
    hub_files=(f"{TABLES}/*",),
)
