"""A run that stops goes on where it stopped, and never mixes with another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from leadline.errors import ContextLengthExceeded, DataError, UserError
from leadline.eval.data import Source
from leadline.eval.fake import Perfect, Random
from leadline.eval.lm import Score, Span
from leadline.eval.run import choose, evaluate
from leadline.eval.task import Bench, Item, Setup, Task
from leadline.eval.tasks import get_task


class Dying(Perfect):
    """Answers so many batches and is interrupted."""

    def __init__(self, items: Sequence[Item], batches: int) -> None:
        super().__init__(items)
        self.batches = batches
        self.asked = 0

    def loglikelihood(self, spans: Sequence[Span]) -> list[Score]:
        if self.asked == self.batches:
            raise KeyboardInterrupt
        self.asked += 1
        return super().loglikelihood(spans)


@pytest.fixture
def task() -> Task:
    return get_task("mmlu")


@pytest.fixture
def setup(task: Task, data_folder: Path) -> Setup:
    return Setup(Source("mmlu", data_folder), 5)


def test_a_run_goes_on_where_it_stopped(task: Task, setup: Setup, tmp_path: Path) -> None:
    items = task.load(setup)
    with pytest.raises(KeyboardInterrupt):
        evaluate(task, Bench(Dying(items, 2)), setup, out=tmp_path, batch=10)
    path = tmp_path / "mmlu.jsonl"
    assert len(path.read_text().splitlines()) == 21
    path.write_bytes(path.read_bytes()[:-9])  # the disk was full in the middle of a line
    second = Dying(items, 100)
    run = evaluate(task, Bench(second), setup, out=tmp_path, batch=10)
    assert second.asked == -(-(len(items) - 19) // 10)
    assert [result.id for result in run.results] == [item.id for item in items]
    assert len(path.read_text().splitlines()) == len(items) + 1
    third = Dying(items, 0)
    assert evaluate(task, Bench(third), setup, out=tmp_path).results == run.results


def test_the_file_says_what_was_asked(task: Task, setup: Setup, tmp_path: Path) -> None:
    run = evaluate(task, Bench(Random()), setup, out=tmp_path, limit=7)
    head, *rows = map(json.loads, (tmp_path / "mmlu.jsonl").read_text().splitlines())
    assert head == run.head
    assert {name: head[name] for name in ("task", "version", "model", "shots", "limit", "items")} == {
        "task": "mmlu", "version": 1, "model": "random", "shots": 5, "limit": 7, "items": 7,
    }  # fmt: skip
    prompts = {item.id: item.prompt_id for item in task.load(setup)}
    assert all(row["prompt_id"] == prompts[row["id"]] for row in rows)
    assert len({item.prompt_id for item in task.load(setup)}) == len(prompts)


def test_another_run_is_refused(task: Task, setup: Setup, tmp_path: Path) -> None:
    evaluate(task, Bench(Random()), setup, out=tmp_path, limit=7)
    other = Setup(setup.source, 0)
    with pytest.raises(UserError, match=r"of another run \(shots 5, now 0\)"):
        evaluate(task, Bench(Random()), other, out=tmp_path, limit=7)
    with pytest.raises(UserError, match=r"limit 7, now 8"):
        evaluate(task, Bench(Random()), setup, out=tmp_path, limit=8)
    with pytest.raises(UserError, match=r"model 'random', now 'perfect'"):
        evaluate(task, Bench(Perfect([])), setup, out=tmp_path, limit=7)


@pytest.mark.parametrize("line", ["{", "[]"])
def test_a_broken_file_names_its_line(task: Task, setup: Setup, tmp_path: Path, line: str) -> None:
    evaluate(task, Bench(Random()), setup, out=tmp_path, limit=2)
    path = tmp_path / "mmlu.jsonl"
    head, _, second = path.read_text().splitlines()
    path.write_text(f"{head}\n{line}\n{second}\n")
    with pytest.raises(DataError, match=r"mmlu.jsonl:2 is not"):
        evaluate(task, Bench(Random()), setup, out=tmp_path, limit=2)


def test_progress_is_shown_to_somebody_who_watches(
    task: Task, setup: Setup, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(task, Bench(Random()), setup, limit=5, progress=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    evaluate(task, Bench(Random()), setup, limit=5, progress=True)
    assert "5/5" in capsys.readouterr().err


def test_a_limit_takes_the_same_items_from_everywhere(task: Task, setup: Setup) -> None:
    items = task.load(setup)
    few, more = choose(items, 10), choose(items, 20)
    assert {item.id for item in few} <= {item.id for item in more}
    assert len({item.group for item in few}) == 2
    assert choose(items, 10**6) == choose(items, None) == list(items)
    assert [item for item in items if item in more] == more


def test_a_prompt_that_does_not_fit_names_the_task(task: Task, setup: Setup) -> None:
    class Short(Random):
        def loglikelihood(self, spans: Sequence[Span]) -> list[Score]:
            raise ContextLengthExceeded("the prompt has 9 tokens")

    with pytest.raises(ContextLengthExceeded, match=r"mmlu: the prompt has 9 tokens; fewer --shots"):
        evaluate(task, Bench(Short()), setup)


def test_a_task_without_items_is_said(setup: Setup) -> None:
    empty = Task("empty", "", lambda given: [], get_task("mmlu").method)
    with pytest.raises(DataError, match="empty has no items"):
        evaluate(empty, Bench(Random()), setup)
