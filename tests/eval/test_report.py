"""Scores and intervals by hand, and what a reader gets to see."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadline.eval import report
from leadline.eval.run import Run
from leadline.eval.task import Result, Task
from leadline.eval.tasks import all_tasks, get_task


def results(scores: list[float], group: str = "", weight: float = 1.0) -> list[Result]:
    return [Result(f"{group}{n}", "p", score, group, weight) for n, score in enumerate(scores)]


def run_of(name: str, given: list[Result]) -> Run:
    task: Task = get_task(name)
    return Run(task, {"model": "made", "shots": task.shots}, tuple(given))


@pytest.mark.parametrize(
    ("rights", "count", "low", "high"), [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)]
)
def test_wilsons_interval(rights: int, count: int, low: float, high: float) -> None:
    assert report.wilson(rights, count) == pytest.approx((rights / count, low, high), abs=1e-4)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.25, 1.0]), st.sampled_from("ab")), min_size=1, max_size=30))
def test_an_interval_holds_its_score(given_scores: list[tuple[float, str]]) -> None:
    found = [Result(str(place), "p", score, group) for place, (score, group) in enumerate(given_scores)]
    for name in ("mmlu", "bbh", "needle", "bits_per_byte"):
        score, low, high = report.interval(get_task(name), found)
        assert 0 <= low <= score <= high
        assert name == "bits_per_byte" or high <= 1


def test_a_mean_over_groups_gives_each_the_same_weight() -> None:
    given = [*results([1.0] * 90, "easy"), *results([0.0, 1.0] * 5, "hard")]
    summary = report.summarise(run_of("bbh", given))
    assert summary.score == pytest.approx(75.0)
    assert summary.groups == {"easy": 100.0, "hard": 50.0}
    (_, easy_low, _), (_, hard_low, hard_high) = report.wilson(90, 90), report.wilson(5, 10)
    assert summary.low == pytest.approx(75 - 50 * ((1 - easy_low) ** 2 + (0.5 - hard_low) ** 2) ** 0.5)
    assert summary.high == pytest.approx(75 + 50 * (hard_high - 0.5))


def test_a_mean_over_groups_without_a_right_answer_is_not_certain() -> None:
    summary = report.summarise(run_of("bbh", [*results([0.0] * 3, "easy"), *results([0.0], "hard")]))
    assert (summary.score, summary.low) == (0.0, 0.0)
    assert 40 < summary.high < 60


def test_bits_per_byte_are_all_bits_over_all_bytes() -> None:
    given = [Result("a", "p", 20.0, "", 10.0), Result("b", "p", 10.0, "", 10.0), Result("c", "p", 5.0, "", 5.0)]
    summary = report.summarise(run_of("bits_per_byte", given))
    assert summary.score == pytest.approx(35 / 25)
    assert summary.low < summary.score < summary.high
    assert (summary.chance, summary.scale) == (8.0, 1.0)


def test_shares_and_marks_have_the_normal_interval() -> None:
    summary = report.summarise(run_of("needle", results([0.0, 1 / 3, 1.0, 1.0])))
    assert summary.score == pytest.approx(100 * 7 / 12)
    assert 0 <= summary.low < summary.score < summary.high <= 100
    judged = report.summarise(run_of("mt_bench", results([10.0, 9.5, 10.0])))
    assert judged.high == 10.0
    assert report.summarise(run_of("mt_bench", results([7.0]))).low == 7.0


def test_the_published_scores_are_the_papers() -> None:
    rows = {(row.benchmark, row.model): row for row in report.published()}
    assert len(report.published()) > 400
    assert rows["MMLU", "DeepSeek-V2-Lite"].score == 58.3
    assert rows["GSM8K", "DeepSeek-V2-Lite"].shots == 8
    assert rows["Pile-test", "DeepSeek-67B"].shots is None
    for task in (task for task in all_tasks() if task.benchmark and task.name != "mt_bench"):
        found = rows[task.benchmark, "DeepSeek-V2" if task.name != "ifeval" else "DeepSeek-V2-Chat-RL"]
        assert (found.shots or 0, found.metric) == (task.shots, task.metric), task.name


def test_the_table_shows_both_and_says_which_is_which() -> None:
    summaries = [report.summarise(run_of(name, results([1.0, 0.0]))) for name in ("mmlu", "arithmetic")]
    text = report.table(summaries, width=140)
    line = next(line for line in text.splitlines() if "mmlu" in line)
    assert "50.0 (9.5-90.5)" in line
    assert "58.3" in line
    assert "DeepSeek's columns are published scores, not measured here" in text
    assert "not measured" not in report.table(summaries[1:], width=140)
    assert all(name in report.table(summaries, width=80) for name in ("arithmetic", "50.0 (9.5-90.5)", "V2-Lite"))


def test_another_number_of_examples_is_said() -> None:
    run = run_of("mmlu", results([1.0]))
    run.head["shots"] = 0
    assert "58.3 (5)" in report.table([report.summarise(run)], width=200)


def test_report_and_pictures_are_written(tmp_path: Path) -> None:
    grid = [Result(f"{length}/{depth}", "p", 1.0, str(length)) for length in (256, 512) for depth in (0, 50, 100)]
    runs = [
        run_of("mmlu", results([1.0, 0.0])),
        run_of("needle", grid),
        run_of("bits_per_byte", results([3.0], weight=2)),
    ]
    summaries = [report.summarise(run) for run in runs]
    report.save(summaries, runs, tmp_path / "out")
    rows = json.loads((tmp_path / "out/report.json").read_text())
    assert [row["task"] for row in rows] == ["mmlu", "needle", "bits_per_byte"]
    assert rows[0]["run"] == runs[0].head
    assert "mmlu" in (tmp_path / "out/report.txt").read_text()
    pictures = report.draw(summaries, runs, tmp_path / "out")
    assert [path.name for path in pictures] == ["report.png", "needle.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    assert report.draw(summaries[2:], runs[2:], tmp_path) == []
