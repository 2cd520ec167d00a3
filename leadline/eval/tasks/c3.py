"""C3: questions on a dialogue or a text, Chinese, without examples, the answer of least perplexity (table 16).

Official layout: c3-d-test.json and c3-m-test.json (or d-dev.json and m-dev.json) of [[lines of the text], [{"question",
"choice", "answer"}], id].
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from leadline.errors import DataError
from leadline.eval.task import Choice, Item, Setup, Task

PATTERNS = ("c3-*-test.json", "*/c3-*-test.json", "[dm]-dev.json", "*/[dm]-dev.json")


def load(setup: Setup) -> list[Item]:
    found = setup.source.files(*PATTERNS)
    if not found:
        raise DataError(f"c3 expects {' or '.join(PATTERNS)} in {setup.source.folder}", param="data")
    return [item for path in found for item in _items(path)]


def _items(path: Path) -> list[Item]:
    try:
        texts = json.loads(path.read_text(encoding="utf-8"))
        return [
            _item(lines, question, f"{name}/{place}")
            for lines, asked, name in texts
            for place, question in enumerate(asked)
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a list of texts with their questions: {error!r}") from None


def _item(lines: list[str], question: dict[str, Any], place: str) -> Item:
    prompt = "\n".join(lines) + f"\n\n请根据上文回答问题：\n\n{question['question'].strip()}\n答案："
    return Item(place, prompt, question["answer"], tuple(question["choice"]))


TASK = Task(
    name="c3",
    about="questions on a dialogue or a text, Chinese",
    load=load,
    method=Choice(per_token=True),
    benchmark="C3",
    chance=0.25,
    folders=("c3_public",),
)
