"""CMath: school mathematics in words, Chinese, 3 worked examples, the number of the answer (table 18).

Official layout: cmath_dev.jsonl, or the later cmath_test.jsonl, of {"grade", "input", "golden"}. Neither has worked
answers, so the examples are the paper's own.
"""

from __future__ import annotations

import re
from fractions import Fraction

from leadline.errors import DataError
from leadline.eval.answers import number
from leadline.eval.data import Row, text_of
from leadline.eval.task import Generation, Item, Setup, Task

ANSWER_IS = "所以答案是："
EXAMPLES = (
    (
        (
            "某小学在“献爱心–为汶川地震区捐款”活动中，六年级五个班共捐款8000元，其中一班捐款1500元，二班比一班多捐款200元，"
            "三班捐款1600元，四班与五班捐款数之比是3：5．四班捐款多少元？"
        ),
        (
            "一班捐款1500元，而二班比一班多捐200元，所以二班捐款1500+200=1700元，又知道六年级五个班一共捐款8000元，所以四班和五班"
            "捐款之和=一共捐款-一班和二班和三班捐款之和，即8000-1500-1700-1600=3200元，而题目说四班与五班捐款数之比是3：5，则四班"
            "捐款了3200/(3+5)*3=1200元。"
        ),
        "1200",
    ),
    (
        (
            "小俊在东西大道上跑步，若规定向东为正。他先向东跑了800米，然后又跑了一段之后，他位于出发点西边100米处，小俊第二段"
            "跑了多少米？"
        ),
        "小俊第二段跑完后位于出发点西边，所以第二段应该是向西跑，第二段跑的长度-第一段跑的长度=100，第二段跑了100+800=900米。",
        "900",
    ),
    (
        (
            "A车和B车同时从甲、乙两地相向开出，经过5小时相遇．然后，它们又各自按原速原方向继续行驶3小时，这时A车离乙地还有135"
            "千米，B车离甲地还有165千米．甲、乙两地相距多少千米？"
        ),
        (
            "假设A车的速度为x千米每小时，B车的速度为y千米每小时，根据而A、B相遇时A车行驶了5小时，A车行驶3小时后离乙地还有135"
            "千米，B车行驶3小时后距离甲地还有165千米，可以得到甲乙两地相距=5x+5y=135+8x=165+8y，变换得到：10(x+y)=300+8(x+y)，"
            "于是x+y=150，甲乙两地相距5(x+y)=750千米。"
        ),
        "750",
    ),
)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:/\d+)?%?")


def load(setup: Setup) -> list[Item]:
    shots = EXAMPLES[: setup.shots]
    known = "".join(f"Q: {question}\nA: {worked}{ANSWER_IS}{final}。\n\n" for question, worked, final in shots)
    rows = setup.source.rows("cmath_test.jsonl", "cmath_dev.jsonl", "*/cmath_*.jsonl")
    return [_item(row, place, known) for place, row in enumerate(rows)]


def _item(row: Row, place: int, known: str) -> Item:
    question = text_of(row, "input", "question", "problem", place=f"row {place}").strip()
    golden = text_of(row, "golden", place=f"row {place}")
    if value(golden) is None:
        raise DataError(f"row {place}: {golden!r} is not a number")
    group = f"grade {row['grade']}" if row.get("grade") else ""
    return Item(
        str(place), f"{known}Q: {question}\nA:", f" {ANSWER_IS}{golden}。", group=group, facts={"final": golden}
    )


def value(text: str) -> Fraction | None:
    """3/4, 0.75 and 75% are one number."""
    plain = number(text.rstrip("%"))
    return plain / 100 if plain is not None and text.endswith("%") else plain


def mark(item: Item, answer: str) -> float:
    """The first number after "the answer is", or else the last of all."""
    stated = _NUMBER.findall(answer.replace(",", "").partition("答案是")[2])
    found = stated[:1] or _NUMBER.findall(answer.replace(",", ""))[-1:]
    return float(bool(found) and value(found[0]) == value(item.facts["final"]))


TASK = Task(
    name="cmath",
    about="school mathematics in words, Chinese",
    load=load,
    method=Generation(mark, stop=("\n\nQ:", "\nQ:"), max_tokens=400),
    shots=3,
    benchmark="CMath",
    metric="EM",
    hub="weitianwen/cmath",
)
