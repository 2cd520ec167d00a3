"""The formats of appendix G to the letter, beside those in test_tasks.py, and how their answers are marked.

The questions are made; whatever stands around them is what the paper's tables print.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leadline.errors import DataError
from leadline.eval.passages import others
from leadline.eval.task import Item
from leadline.eval.tasks import get_task
from tests.eval.samples import lines, write
from tests.eval.test_tasks import items_of


def mark(name: str, item: Item, answer: str) -> float:
    method: Any = get_task(name).method
    return float(method.mark(item, answer))


def test_agieval_is_worded_as_in_table_12(data_folder: Path) -> None:
    chinese, *_ = items_of("agieval", data_folder)
    assert chinese.prompt == (
        "以下是一道中国高考生物选择题，请选择正确的答案。\n"
        "问题：Which is greatest, 2? 选项：(A)2 (B)2 (C)11 (D)2\n答案：从A到D, 我们应选择"
    )
    english = next(item for item in items_of("agieval", data_folder) if item.group == "sat-math")
    assert english.prompt == (
        "Q: Which is greatest, 2? Answer Choices: (A)2 (B)2 (C)11 (D)2\nA: Among A through D, the answer is"
    )
    assert mark("agieval", english, " (C).") == mark("agieval", english, "C") == 1.0
    assert (
        mark("agieval", english, " B, not C") == mark("agieval", english, "Cat") == mark("agieval", english, "") == 0.0
    )


def test_agieval_has_sets_of_many_letters_and_of_none(tmp_path: Path) -> None:
    options = ["(A)甲", "(B)乙", "(C)丙", "(D)丁"]
    row = {"passage": "文。", "question": "问", "options": options, "label": ["A", "C"], "answer": None}
    write(tmp_path / "jec-qa-kd.jsonl", lines([row]))
    cloze = {"passage": None, "question": "x+1=3, x", "options": None, "label": None, "answer": "2"}
    write(tmp_path / "math.jsonl", lines([cloze]))
    many, none = items_of("agieval", tmp_path)
    assert many.prompt == "文。问题：问 选项：(A)甲 (B)乙 (C)丙 (D)丁\n答案：从A到D, 我们应选择"
    assert mark("agieval", many, "A和C。") == mark("agieval", many, many.answer) == 1.0
    assert mark("agieval", many, "A") == mark("agieval", many, "ABC") == 0.0
    assert none.prompt == "Q: x+1=3, x\nA: The answer is"
    assert mark("agieval", none, " $2$.") == 1.0
    assert mark("agieval", none, " 3") == 0.0


def test_arc_is_worded_as_in_table_13(data_folder: Path) -> None:
    item = items_of("arc_challenge", data_folder, 1)[1]
    assert item.prompt == (
        "Question: Rope 0 is a\nA. sheet\nB. hawse\nC. cleat\nD. shoal\nAnswer: A\n\n"
        "Question: Rope 1 is a\nA. sheet\nB. hawse\nC. cleat\nD. shoal\nAnswer:"
    )
    assert item.choices == (" A", " B", " C", " D")
    assert item.answer == " B"  # labelled 2 in the file
    assert items_of("arc_easy", data_folder)[0].prompt.count("Question: ") == 26


def test_arc_has_questions_of_three_and_five_options(tmp_path: Path) -> None:
    for split in ("Train", "Test"):
        options = [[{"label": letter, "text": letter.lower()} for letter in letters] for letters in ("ABC", "ABCDE")]
        rows = [{"question": {"stem": "?", "choices": each}, "answerKey": each[-1]["label"]} for each in options]
        write(tmp_path / f"ARC-Easy-{split}.jsonl", lines(rows))
    assert [item.choices[-1] for item in items_of("arc_easy", tmp_path)] == [" C", " E"]
    write(tmp_path / "ARC-Easy-Test.jsonl", lines([{**rows[0], "answerKey": "X"}]))
    with pytest.raises(DataError, match="ARC-Easy-Test, row 0 has the answer 'X'"):
        items_of("arc_easy", tmp_path)


def test_openbookqa_and_piqa_go_on_as_in_tables_31_and_32(data_folder: Path) -> None:
    item = items_of("openbookqa", data_folder)[2]
    assert (item.prompt, item.choices, item.answer) == (
        "Rope 2 is a",
        (" sheet", " hawse", " cleat", " shoal"),
        " cleat",
    )
    item = items_of("piqa", data_folder)[2]
    assert (item.prompt, item.choices, item.answer) == (
        "To moor boat 2,",
        (" use a sheet", " use a cleat"),
        " use a cleat",
    )
    with pytest.raises(DataError, match="valid-labels"):
        items_of("piqa", write_goal(data_folder.parent / "goals"))


def write_goal(folder: Path) -> Path:
    write(folder / "valid.jsonl", lines([{"goal": "a", "sol1": "b", "sol2": "c"}]))
    return folder


def test_hellaswag_is_worded_as_in_table_25(data_folder: Path) -> None:
    item = items_of("hellaswag", data_folder, 1)[1]
    assert item.prompt == (
        "Sounding: A man. drops line 0. He makes it a sheet. Ho!\n\nSounding: A man. drops line 1. He"
    )
    assert item.choices[0] == " makes it a sheet. Ho!"
    assert items_of("hellaswag", data_folder)[0].prompt.count("Sounding: ") == 11


def test_winogrande_has_two_prefixes_and_one_completion_as_in_table_35(data_folder: Path) -> None:
    item = items_of("winogrande", data_folder, 1)[2]
    assert item.prompt == "At 0 fathoms Ann went down because the other stayed.\n\n"
    assert item.choices == ("At 2 fathoms Ann", "At 2 fathoms Bob")
    assert item.completion == " went down because the other stayed."
    assert item.answer == "At 2 fathoms Bob"
    assert item.prompt_id != Item("2", item.prompt, choices=item.choices).prompt_id


def test_race_is_worded_as_in_table_33(data_folder: Path) -> None:
    item = items_of("race_high", data_folder)[3]
    assert item.prompt == (
        "Article:\nThe 0 boats lay at anchor.\n\n"
        "Q: What held boat 0?\n\nA: sheet\n\nQ: What held boat 1?\n\nA: hawse\n\nQ: What held boat 2?\n\nA: cleat\n\n"
        "Q: What held boat 3?\n\nA:"
    )
    assert item.choices == (" sheet", " hawse", " cleat", " shoal")


def test_examples_are_the_nearest_before_a_question_then_those_after_it() -> None:
    assert others("abcdef", 3, 2) == ["b", "c"]
    assert others("abcdef", 1, 3) == ["a", "c", "d"]
    assert others("abc", 0, 5) == ["b", "c"]
    assert others("abc", 2, 0) == others("a", 0, 3) == []


def test_drop_is_worded_as_in_table_21(data_folder: Path) -> None:
    items = items_of("drop", data_folder, 1)
    assert items[1].prompt == (
        "Passage: Of 0 boats most were small.\n\n"
        "Answer the following questions based on the above passage, please calculate carefully if calculation is "
        "necessary.\nQ: How many boats were not small?\n"
        "A: The answer type is number. So according to above Passage, the answer is 83.9.\n\n"
        "Q: Who led?\nA: The answer type is span. So according to above Passage, the answer is"
    )
    assert [item.answer for item in items[:4]] == [" 83.9.", " Ann Bonny.", " a sheet, the halyard.", " May 1720."]
    assert mark("drop", items[0], " 84.\nQ: more") == 1.0  # another person's answer
    assert mark("drop", items[1], " Ann.") == pytest.approx(2 / 3)
    assert mark("drop", items[2], " halyard, sheet.") == 1.0


def test_closed_books_are_worded_as_in_tables_30_and_34(data_folder: Path) -> None:
    trivia = items_of("triviaqa", data_folder, 2)[0]
    assert trivia.prompt == (
        "Answer these questions:\nQ: A Jayhawker was a term of old?\nA: Kans.\nQ: Which 0 knots?\nA: Bowline\n"
        "Q: What is rope 0?\nA:"
    )
    assert mark("triviaqa", trivia, " the halliard.\nQ: Next?") == 1.0
    assert mark("triviaqa", trivia, " a sheet") == 0.0
    natural = items_of("naturalquestions", data_folder, 2)[0]
    assert natural.prompt == (
        "Answer these questions:\nQ: When did miami vice go off the air?\nA: 1989\nQ: Who tied knot 0?\nA: Ann 0\n"
        "Q: Who holds rope 0?\nA:"
    )


def test_cmath_is_worded_as_in_table_18(data_folder: Path) -> None:
    item = items_of("cmath", data_folder)[2]
    assert item.prompt.startswith("Q: 某小学在“献爱心–为汶川地震区捐款”活动中，")
    assert "则四班捐款了3200/(3+5)*3=1200元。所以答案是：1200。\n\nQ: 小俊在东西大道上跑步" in item.prompt
    assert item.prompt.endswith("=750千米。所以答案是：750。\n\nQ: 2条船加半条船，是几条？\nA:")
    assert item.prompt.count("所以答案是：") == 3
    for right in ("所以答案是：5/2。", "是2.5条", "答案是2.5条。就是说 9"):
        assert mark("cmath", item, right) == 1.0
    assert mark("cmath", item, "所以答案是：2。") == mark("cmath", item, "不知道") == 0.0


def test_cruxeval_is_worded_as_in_tables_36_and_37(data_folder: Path) -> None:
    given = items_of("cruxeval_i", data_folder, 1)[1].prompt
    assert given.startswith(
        "You will be given a function f and an output in the form f(??) == output. Find any input such"
    )
    assert given.endswith(
        "complete the assertion with one such input that will produce the output when executing the function.\n\n"
        "[PYTHON]\ndef f(my_list):\n    count = 0\n    for i in my_list:\n"
        "        if len(i) % 2 == 0:\n            count += 1\n"
        '    return count\nassert f(??) == 3\n[/PYTHON]\n[ANSWER]\nassert f(["mq", "px", "zy"]) == 3\n[/ANSWER]\n\n'
        "[PYTHON]\ndef f(s):\n    return s + ' == 1'\nassert f(??) == '1 == 1'\n[/PYTHON]\n[ANSWER]\n"
    )
    output = items_of("cruxeval_o", data_folder)[1].prompt
    assert output.startswith(
        "You are given a Python function and an assertion containing an input to the function. Complete"
    )
    assert output.endswith(
        "in [ANSWER] and [/ANSWER] tags, following the examples.\n\n"
        "[PYTHON]\ndef f(n):\n    return n\nassert f(17) == ??\n[/PYTHON]\n[ANSWER]\nassert f(17) == 17\n[/ANSWER]\n\n"
        '[PYTHON]\ndef f(s):\n    return s + "a"\nassert f("x9j") == ??\n[/PYTHON]\n'
        '[ANSWER]\nassert f("x9j") == "x9ja"\n[/ANSWER]\n\n'
        "[PYTHON]\ndef f(s):\n    return s + ' == 1'\nassert f('1') == ??\n[/PYTHON]\n[ANSWER]\n"
    )


@pytest.mark.parametrize(
    ("part", "answer", "passes"),
    [
        ("i", "assert f('1') == '1 == 1'\n", True),
        ("i", "I say: [ANSWER]\nf('1') == '1 == 1'\n[/ANSWER]", True),
        ("i", "assert f('2') == '1 == 1'", False),
        ("i", "assert '1 == 1' == '1 == 1'", False),  # no call of f
        ("i", "assert f('2') == f('2')", False),  # the output is the question's
        ("i", "???", False),
        ("o", "assert f('1') == '1 == 1'", True),
        ("o", "assert f('1') == '2 == 1'", False),
        ("o", "assert f('1') == f('1')", False),  # no answer to what it is
        ("o", "", False),
    ],
)
def test_cruxeval_checks_what_was_answered(part: str, answer: str, passes: bool, data_folder: Path) -> None:
    name = f"cruxeval_{part}"
    method: Any = get_task(name).method
    program = method.program(items_of(name, data_folder)[1], answer)
    if passes:
        exec(program, {})
    else:
        with pytest.raises((AssertionError, NameError)):
            exec(program, {})


def test_cluewsc_is_worded_as_in_table_23(data_folder: Path) -> None:
    items = items_of("cluewsc", data_folder, 2)
    assert len(items) == 3  # where the pronoun does not mean the name, nobody says whom it means
    assert items[0].prompt == (
        '在洛伦佐大街的尽头处，有船。\n上面的句子中的"它"指的是\n船14\n\n'
        '船1靠岸，它停了。\n上面的句子中的"它"指的是\n船1\n\n'
        '船1靠岸，它停了。\n上面的句子中的"它"指的是\n'
    )
    assert mark("cluewsc", items[0], "船1。\n") == 1.0
    assert mark("cluewsc", items[0], "船") == 0.0


def test_cmrc_is_worded_as_in_table_20(data_folder: Path) -> None:
    item = items_of("cmrc", data_folder)[1]
    assert (
        item.prompt == "文章：第0条船很深。\n\n根据上文回答下面的问题。\n问题：问0？\n答案：答 0\n问题：问1？\n答案："
    )
    assert mark("cmrc", item, "回答1\n问题：") == mark("cmrc", item, "答1。") == 1.0
    assert mark("cmrc", item, "回答") == 0.0


def test_c3_chid_and_ccpm_are_worded_as_in_tables_16_22_and_17(data_folder: Path) -> None:
    dialogue = items_of("c3", data_folder)[1]
    assert dialogue.prompt == "女：多深?\n男：1寻。\n\n请根据上文回答问题：\n\n他们在哪儿?\n答案："
    assert (dialogue.choices, dialogue.answer) == (("商店", "饭店", "医院", "教室"), "饭店")
    idiom = items_of("chid", data_folder)[2]
    assert (idiom.prompt, idiom.answer) == ("第2人已", "精疲力竭”。")
    assert idiom.choices[0] == "神清气爽”。"
    assert len(idiom.choices) == 7
    poem = items_of("ccpm", data_folder)[1]
    assert poem.prompt == "以下是将某句古诗文翻译而成的现代表述：第1年生病。\n该翻译所对应的古诗文是："
    assert poem.answer == "百年多病"
