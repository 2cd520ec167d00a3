"""AGIEval: entrance and licence examinations in English and Chinese, without examples; the letter or number (table
12).

Official layout: data/v1/SET.jsonl of {"passage", "question", "options", "label", "answer"}; a set without options
asks for an expression, one whose labels are lists for all right letters. The words are the benchmark's own, with the
line that the paper puts before the Chinese college entrance examination.
"""

from __future__ import annotations

import json
import re
from string import ascii_uppercase

from leadline.errors import DataError
from leadline.eval.answers import same_expression
from leadline.eval.data import Row, text_of
from leadline.eval.task import Generation, Item, Setup, Task

# The subjects of the Chinese college entrance examination that are asked in Chinese.
GAOKAO = {
    "gaokao-biology": "生物",
    "gaokao-chemistry": "化学",
    "gaokao-chinese": "语文",
    "gaokao-geography": "地理",
    "gaokao-history": "历史",
    "gaokao-mathqa": "数学",
    "gaokao-physics": "物理",
}
CHINESE = {*GAOKAO, "gaokao-mathcloze", "jec-qa-ca", "jec-qa-kd", "logiqa-zh"}
LETTER = re.compile(r"(?<![A-Za-z])[A-H](?![A-Za-z])")
LETTERS = re.compile(r"[A-H]")


def load(setup: Setup) -> list[Item]:
    tables = setup.source.tables("data/v1/*.jsonl", "v1/*.jsonl", "*.jsonl")
    return [_item(row, name, place) for name, rows in tables for place, row in enumerate(rows)]


def _item(row: Row, name: str, place: int) -> Item:
    label = row.get("label") or row.get("answer")
    if not label:
        raise DataError(f"{name}, row {place} has no label or answer")
    prompt = f"{head(name)}{row.get('passage') or ''}{_asked(row, name, place)}"
    rights = label if isinstance(label, list) else [str(label)]
    facts = {"rights": json.dumps(rights), "options": str(bool(row.get("options")))}
    return Item(f"{name}/{place}", prompt, f" {''.join(rights)}", group=name, facts=facts)


def head(name: str) -> str:
    return f"以下是一道中国高考{GAOKAO[name]}选择题，请选择正确的答案。\n" if name in GAOKAO else ""


def _asked(row: Row, name: str, place: int) -> str:
    question = text_of(row, "question", place=f"{name}, row {place}")
    options = row.get("options") or []
    last = ascii_uppercase[len(options) - 1]
    if name in CHINESE:
        return (
            f"问题：{question} 选项：{' '.join(options)}\n答案：从A到{last}, 我们应选择"
            if options
            else f"问题：{question}\n答案："
        )
    if options:
        return f"Q: {question} Answer Choices: {' '.join(options)}\nA: Among A through {last}, the answer is"
    return f"Q: {question}\nA: The answer is"


def mark(item: Item, answer: str) -> float:
    """Of one right letter the first that stands alone counts, of several all that are said, of none the expression."""
    rights: list[str] = json.loads(item.facts["rights"])
    said = answer.strip().split("\n")[0]
    if item.facts["options"] == "False":
        return float(same_expression(said.strip(" .。$"), rights[0].strip("$")))
    if len(rights) > 1:
        return float(set(LETTERS.findall(said)) == set(rights))
    found = LETTER.search(said)
    return float(found is not None and found.group() == rights[0])


TASK = Task(
    name="agieval",
    about="entrance and licence examinations, English and Chinese",
    load=load,
    method=Generation(mark, stop=("\n",), max_tokens=64),
    benchmark="AGIEval",
    average="groups",
    folders=("AGIEval",),
)
