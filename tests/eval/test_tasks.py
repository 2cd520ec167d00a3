"""Every benchmark on made data: one who knows all scores 1.0, one who knows nothing scores chance, and the prompts are
the paper's to the letter."""

from __future__ import annotations

from pathlib import Path

import pytest

from leadline.errors import DataError, ResourceError, UserError
from leadline.eval import report
from leadline.eval.data import Source
from leadline.eval.fake import Perfect, Random
from leadline.eval.run import evaluate
from leadline.eval.sandbox import Limits, Sandbox, why_not
from leadline.eval.task import Bench, Choice, Item, Setup, Task, rating
from leadline.eval.tasks import NAMES, all_tasks, get_task, named
from leadline.eval.tasks.arithmetic import held_out, sums
from leadline.eval.tasks.gsm8k import worked
from leadline.eval.tasks.needle import NEEDLE, cut, made_text
from tests.eval.made import MADE

LIMITS = Limits(seconds=20, processes=6)


def setup_of(task: Task, folder: Path | None, shots: int | None = None, *, chat: bool = False) -> Setup:
    source = Source(task.name, folder, folders=task.folders)
    return Setup(
        source, task.shots if shots is None else shots, chat, count=lambda text: len(text) // 4, context_length=2000
    )


def items_of(name: str, folder: Path, shots: int | None = None, *, chat: bool = False) -> list[Item]:
    task = get_task(name)
    return list(task.load(setup_of(task, folder, shots, chat=chat)))


def scored(name: str, folder: Path, lm: Perfect | Random, sandbox: Sandbox | None) -> report.Summary:
    task = get_task(name)
    run = evaluate(task, Bench(lm, lm, sandbox), setup_of(task, folder))
    return report.summarise(run)


def test_there_is_made_data_for_every_task() -> None:
    assert set(MADE) == set(NAMES)
    assert len(all_tasks()) == len(NAMES)
    with pytest.raises(UserError, match="mmlu"):
        get_task("mmlv")


def test_a_table_of_the_paper_stands_for_its_benchmarks() -> None:
    table = {row.benchmark for row in report.published() if row.table == "paper table 2"}
    assert {task.benchmark for task in named(["table2"])} == table, "all of them are here"
    assert [task.name for task in named(["table2", "mmlu", "needle", "needle"])][-1] == "needle"
    assert len(named(["mmlu", "mmlu"])) == 1
    assert "ifeval" in {task.name for task in named(["table3"])}
    with pytest.raises(UserError, match="paper table 5 has no scores"):
        named(["table5"])


@pytest.mark.parametrize("name", [name for name in NAMES if not get_task(name).runs_code])
def test_perfect_scores_one_and_random_scores_chance(name: str, data_folder: Path) -> None:
    task = get_task(name)
    perfect = scored(name, data_folder, Perfect(items_of(name, data_folder)), None)
    assert perfect.score == pytest.approx(task.perfect * perfect.scale)
    random = scored(name, data_folder, Random(), None)
    assert random.low - 1e-9 <= task.chance * random.scale <= random.high + 0.5


@pytest.mark.parametrize("name", [name for name in NAMES if get_task(name).runs_code])
def test_code_runs_in_the_sandbox_or_not_at_all(name: str, data_folder: Path) -> None:
    with pytest.raises(UserError, match="--allow-code"):
        scored(name, data_folder, Random(), None)
    if why_not() is not None:
        with pytest.raises(ResourceError, match="cannot be run safely"):
            Sandbox(LIMITS, allow_code=True)
        return
    sandbox = Sandbox(LIMITS, allow_code=True)
    assert scored(name, data_folder, Perfect(items_of(name, data_folder)), sandbox).score == 100.0
    assert scored(name, data_folder, Random(), sandbox).score == 0.0


# ---- the paper's formats (appendix G) -----------------------------------------------------------------------------


def test_mmlu_is_worded_as_in_table_29(data_folder: Path) -> None:
    item = items_of("mmlu", data_folder, 1)[0]
    assert item.prompt == (
        "The following are multiple choice questions (with answers) about high school depth.\n\n"
        "Which is greatest, 0?\nA. 9\nB. 0\nC. 0\nD. 0\nAnswer: A\n\n"
        "Which is greatest, 6?\nA. 6\nB. 6\nC. 15\nD. 6\nAnswer:"
    )
    assert item.choices == (" A", " B", " C", " D")
    assert item.answer == " C"
    assert items_of("mmlu", data_folder)[0].prompt.count("Answer:") == 6


def test_ceval_and_cmmlu_are_worded_as_in_tables_15_and_19(data_folder: Path) -> None:
    ceval = items_of("ceval", data_folder, 1)[0]
    assert ceval.prompt.startswith(
        "以下是中国关于教育学考试的单项选择题，请选出其中的正确答案。\n\n"
        "Which is greatest, 0?\nA. 9\nB. 0\nC. 0\nD. 0\n答案：A\n\n"
    )
    assert ceval.prompt.endswith("\n答案：")
    cmmlu = next(item for item in items_of("cmmlu", data_folder, 1) if item.group == "anatomy")
    assert cmmlu.prompt.startswith(
        "以下是关于解剖学的单项选择题，请直接给出正确答案的选项。\n\n"
        "题目：Which is greatest, 0?\nA. 9\nB. 0\nC. 0\nD. 0\n答案是：A\n\n题目："
    )
    assert cmmlu.prompt.endswith("\n答案是：")
    assert cmmlu.choices == ("A", "B", "C", "D")


def test_gsm8k_is_worded_as_in_table_24(data_folder: Path) -> None:
    item = items_of("gsm8k", data_folder, 2)[0]
    assert item.prompt == (
        "Q: Max can mow what?\nA: Let's think step by step. It is 3*4 = 12 of them. The answer is 12.\n\n"
        "Q: A rope has 0 knots, one is added, then all are doubled?\n"
        "A: Let's think step by step. First it is 0+1 = 1. Then twice that. The answer is 2.\n\n"
        "Q: A rope has 500 knots, one is added, then all are doubled?\nA: Let's think step by step."
    )
    assert item.facts["final"] == "1,002"
    assert worked("One.\nTwo!\n#### -3") == "One. Two! The answer is -3."
    mark = get_task("gsm8k").method.mark  # type: ignore[attr-defined]
    assert mark(item, " So it is $1,002. The answer is $1002.00.\n") == 1.0
    assert mark(item, "It was 1002 of 7.") == 0.0
    assert mark(item, "nothing") == 0.0


def test_math_is_worded_as_in_table_27(data_folder: Path) -> None:
    item = items_of("math", data_folder, 1)[2]
    known, asked = item.prompt.split("I hope it is correct.\n\n")
    assert known.startswith("Problem:\nHalve $1$ (train).\n\nSolution:\nWe halve it")
    assert known.endswith("\nFinal Answer: The final answer is $\\frac{1}{2}$. ")
    assert asked == "Problem:\nHalve $5$ (test).\n\nSolution:\n"
    assert item.facts["final"] == "\\frac{5}{2}"
    mark = get_task("math").method.mark  # type: ignore[attr-defined]
    assert mark(item, "Final Answer: The final answer is $2.5$. I hope it is correct.") == 1.0
    assert mark(item, "so \\boxed{\\dfrac{5}{2}}.") == 1.0
    assert mark(item, "The final answer is $5$.") == 0.0


def test_math_without_a_training_split_takes_examples_that_it_does_not_ask(tmp_path: Path) -> None:
    rows = [f'{{"problem": "P{n}", "solution": "\\\\boxed{{{n}}}"}}' for n in range(6)]
    (tmp_path / "test.jsonl").write_text("\n".join(rows))
    items = items_of("math", tmp_path)
    assert [item.prompt.rsplit("Problem:\n")[-1][:2] for item in items] == ["P4", "P5"]
    assert "P3" in items[0].prompt


def test_bbh_is_worded_as_in_table_14(data_folder: Path) -> None:
    item = items_of("bbh", data_folder)[0]
    assert item.prompt.startswith("Say what knots are.\n\nQ: Is 2 odd?\nA: Let's think step by step.\nSo the answer")
    assert item.prompt.endswith("\n\nQ: Is 0 even?\nA: Let's think step by step.\n")
    assert items_of("bbh", data_folder, 1)[0].prompt.count("Q: ") == 2
    mark = get_task("bbh").method.mark  # type: ignore[attr-defined]
    assert mark(item, "Hm. So the answer is not  [ ].") == 1.0
    assert mark(item, "So the answer is (A).") == 0.0


def test_mbpp_is_worded_as_in_table_28(data_folder: Path) -> None:
    items = items_of("mbpp", data_folder, 1)
    assert [item.id for item in items] == ["mbpp/11", "mbpp/12", "mbpp/510"]
    about = "You are an expert Python programmer, and here is your task: Write a function to add {}. "
    tests = "assert add(0) == {}\nassert add(1) == {}\nassert add(2) == {}\n[BEGIN]\n"
    assert items[0].prompt == (
        about.format(2)
        + "Your code should pass these tests:\n\n"
        + tests.format(2, 3, 4)
        + "def add(n):\n    return n + 2\n[DONE]\n"
        + about.format(11)
        + "Your code should pass these tests:\n\n"
        + tests.format(11, 12, 13)
    )


def test_humaneval_takes_a_body_a_function_or_a_block(data_folder: Path) -> None:
    item = items_of("humaneval", data_folder)[1]
    assert item.prompt == 'def add1(number):\n    """Add 1."""\n'
    program = get_task("humaneval").method.program  # type: ignore[attr-defined]
    for answer in (
        "    return number + 1\n",
        "```python\ndef add1(number):\n    return number + 1\n```\nThat is it.",
        "Here:\n```\n    return number + 1\n```",
    ):
        exec(program(item, answer), {})
    with pytest.raises(AssertionError):
        exec(program(item, "    return number\n"), {})


# ---- tasks of our own ---------------------------------------------------------------------------------------------


def test_arithmetic_asks_what_is_held_out() -> None:
    found = sums()
    assert len({(a, o, b) for _, a, o, b in found}) == len(found)
    assert 800 <= len(found) <= 1000
    assert all(held_out(a, operation, b) for _, a, operation, b in found)
    everything = [(a, b) for a in range(100) for b in range(100)]
    assert 0.08 < sum(held_out(a, "+", b) for a, b in everything) / len(everything) < 0.12


def test_arithmetic_words_and_marks(data_folder: Path) -> None:
    task = get_task("arithmetic")
    item = items_of("arithmetic", data_folder, 2)[0]
    assert item.prompt.count("Q: What is ") == 3
    assert item.prompt.endswith("?\nA:")
    assert items_of("arithmetic", data_folder, chat=True)[0].prompt.startswith("What is ")
    mark = task.method.mark  # type: ignore[attr-defined]
    wanted = Item("x", "", facts={"result": "-1200"})
    assert mark(wanted, " -1200") == 1.0
    assert mark(wanted, "3 - 1203 = −1,200.\nReally.") == 1.0
    assert mark(wanted, "1200") == mark(wanted, "\n") == 0.0


def test_the_needle_is_hidden_at_every_depth_of_every_length(data_folder: Path) -> None:
    items = items_of("needle", data_folder)
    for item in items:
        length, depth = map(int, item.id.split("/"))
        hay, _, question = item.prompt.partition("\n\nQuestion: ")
        assert hay.count(NEEDLE) == 1
        assert length - 40 <= len(hay) // 4 <= length + 3
        place = hay.index(NEEDLE) / (len(hay) - len(NEEDLE))
        assert abs(place - depth / 100) < 0.06 + 100 / len(hay)
        assert question.endswith("Answer: The best thing to do in San Francisco is")
    assert max(int(item.group) for item in items) == 2000 - 96
    assert "essay 0" in items[0].prompt
    assert cut("abcd " * 10, 100, lambda text: len(text) // 4)[:9] == "abcd abcd"


def test_the_haystack_is_made_where_there_is_none() -> None:
    task = get_task("needle")
    items = task.load(setup_of(task, None))
    assert made_text(3) in items[-1].prompt
    assert {item.group for item in items} == {item.group for item in items_of("needle", Path(__file__).parent)}


def test_a_judge_sees_each_turn_with_its_reference(data_folder: Path) -> None:
    items = items_of("mt_bench", data_folder)
    method = get_task("mt_bench").method
    request = method.request  # type: ignore[attr-defined]
    talk = ["Write of {rope}.", "A {answer}", "Now shorter.", "rope"]
    assert request(items[0], 0, talk[:2]) == "Judge.\n\nWrite of {rope}. / A {answer}"
    assert request(items[0], 1, talk) == "Judge.\n\nWrite of {rope}. / A {answer} / Now shorter. / rope"
    assert request(items[1], 1, ["2+2?", "4", "twice?", "8"]) == "Judge.\n\n8: 2+2? / 4 / twice? / 8"
    with pytest.raises(UserError, match="--judge-url"):
        method.ask(items, Bench(Random()))


@pytest.mark.parametrize(
    ("verdict", "mark"), [("[[7]]", 7), ("[[2]] no, [[ 8.5 ]]", 8.5), ("[[99]]", 10), ("[[0]]", 1), ("good", 1)]
)
def test_a_judges_rating(verdict: str, mark: float) -> None:
    assert rating(verdict) == mark


def test_choices_of_unlike_lengths_are_compared_by_perplexity() -> None:
    from leadline.eval.lm import Score

    class Fixed(Random):
        def loglikelihood(self, spans):  # type: ignore[no-untyped-def]
            return [Score(-2.0, 1, False), Score(-3.0, 3, False)]

    item = Item("x", "?", "long", ("a", "long"))
    assert Choice().ask([item], Bench(Fixed()))[0].score == 0.0
    assert Choice(per_token=True).ask([item], Bench(Fixed()))[0].score == 1.0


# ---- what is wrong with the data ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NAMES if get_task(name).needs_data])
def test_missing_data_is_said(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expects|missing"):
        items_of(name, tmp_path)


def test_wrong_rows_are_named(tmp_path: Path) -> None:
    for split in ("dev", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / f"ropes_{split}.csv").write_text("Which?,1,2,3,4,E\n")
    with pytest.raises(DataError, match=r"ropes_dev, row 1 has the answer 'E'"):
        items_of("mmlu", tmp_path)
    (tmp_path / "train.jsonl").write_text('{"question": "a", "answer": "#### 1"}\n')
    (tmp_path / "test.jsonl").write_text('{"question": "a", "answer": "none"}\n')
    with pytest.raises(DataError, match="row 0: 'none' is not a number"):
        items_of("gsm8k", tmp_path)
    (tmp_path / "test.jsonl").write_text('{"question": "a"}\n')
    with pytest.raises(DataError, match="row 0 has no answer"):
        items_of("gsm8k", tmp_path)
