"""The scheduler with a runner that only counts: order, fairness, budgets, and that everybody finishes."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from leadline.engine.blocks import BlockManager
from leadline.engine.scheduler import ScheduledBatch, Scheduler, SchedulerConfig
from leadline.engine.sequence import Sequence, Status, make_sequences
from leadline.engine.types import EngineRequest, SamplingParams
from leadline.errors import ConfigError, EngineOverloaded
from tests.engine.vocabulary import ByteTokenizer

SIZE = 4


class Loop:
    """Schedules, "runs" and appends a token to whoever reached its end."""

    def __init__(self, *, pages: int = 16, seqs: int = 4, budget: int = 16, waiting: int = 100) -> None:
        self.blocks = BlockManager(pages, page_size=SIZE)
        self.scheduler = Scheduler(SchedulerConfig(seqs, budget, waiting), self.blocks)
        self.budget = budget
        self.sequences: list[Sequence] = []

    def add(self, prompt: int, answer: int = 3, *, priority: int = 0, n: int = 1, first: int = 0) -> list[Sequence]:
        name = f"r{len(self.sequences)}"
        ids = tuple((first + place) % 256 for place in range(prompt))
        params = SamplingParams(max_tokens=answer, n=n)
        request = EngineRequest(name, ids, params, priority=priority)
        made = make_sequences(request, ByteTokenizer(), limit=self.blocks.pages * SIZE, eos_ids=frozenset())
        self.scheduler.add(made)
        self.sequences += made
        return made

    def step(self) -> ScheduledBatch:
        batch = self.scheduler.schedule()
        assert batch.tokens <= self.budget
        assert len({chunk.sequence.key for chunk in batch.chunks}) == len(batch.chunks)
        for chunk in batch.chunks:
            assert chunk.sequence.status is Status.RUNNING
            assert chunk.start == chunk.sequence.computed
            assert len(chunk.sequence.pages) * SIZE >= chunk.end
        sampled = [chunk.sequence for chunk in batch.chunks if chunk.samples]
        self.scheduler.commit(batch)
        for sequence in sampled:
            sequence.append(sequence.generated % 256)
            if sequence.finished:
                self.scheduler.finish(sequence)
        self.scheduler.check_integrity()
        return batch

    def drain(self, limit: int = 5000) -> int:
        steps = 0
        while self.scheduler.has_work:
            assert self.step(), "nothing runs and nobody has finished"
            steps += 1
            assert steps < limit
        assert self.blocks.free == self.blocks.pages
        return steps


def lengths(batch: ScheduledBatch) -> dict[str, int]:
    return {chunk.sequence.request_id: chunk.length for chunk in batch.chunks}


def test_decodes_come_first_and_prompts_fill_what_is_left() -> None:
    loop = Loop(pages=40, budget=8)
    loop.add(3, 20)
    assert lengths(loop.step()) == {"r0": 3}
    loop.add(30)
    for _ in range(4):
        assert lengths(loop.step()) == {"r0": 1, "r1": 7}
    assert lengths(loop.step()) == {"r0": 1, "r1": 2}
    assert lengths(loop.step()) == {"r0": 1, "r1": 1}


def test_a_long_prompt_never_holds_up_an_answer() -> None:
    loop = Loop(pages=400, budget=8)
    (short,) = loop.add(2, 100)
    loop.step()
    loop.add(1000)
    for _ in range(50):
        before = short.generated
        loop.step()
        assert short.generated == before + 1


def test_small_requests_do_not_starve_a_large_one() -> None:
    loop = Loop(pages=10, seqs=3)
    loop.add(16, 8)
    loop.step()
    (large,) = loop.add(36, 1, first=100)
    for number in range(20):
        loop.add(2, 2, first=number)
    overtook: list[Sequence] = []
    while not large.finished:
        loop.step()
        overtook += [s for s in loop.sequences[2:] if s.started and not large.started]
    assert overtook == []


def test_waiting_requests_start_by_priority_then_arrival() -> None:
    loop = Loop(seqs=1, budget=16)
    loop.add(4, 2)
    loop.step()
    for priority in (0, 5, 0, 5):
        loop.add(4, 1, priority=priority)
    order: list[str] = []
    while loop.scheduler.has_work:
        order += [name for name in lengths(loop.step()) if name not in order]
    assert order == ["r2", "r4", "r0", "r1", "r3"]


def test_greater_priority_takes_the_place_of_a_running_one() -> None:
    loop = Loop(pages=9, seqs=2, budget=32)
    first, second = loop.add(12, 10)[0], loop.add(12, 10, first=50)[0]
    loop.step()
    (urgent,) = loop.add(20, 3, priority=1, first=90)
    loop.step()
    assert urgent.status is Status.RUNNING
    assert second.status is Status.WAITING
    assert first.status is Status.RUNNING
    loop.drain()
    assert loop.scheduler.preemptions >= 1
    assert [s.generated for s in loop.sequences] == [10, 10, 3]


def test_the_latest_arrival_gives_way_when_pages_run_out() -> None:
    loop = Loop(pages=6, seqs=4, budget=32)
    for number in range(3):
        loop.add(7, 12, first=number * 20)
    finished: list[str] = []
    while loop.scheduler.has_work:
        loop.step()
        finished += [s.request_id for s in loop.sequences if s.finished and s.request_id not in finished]
    assert loop.scheduler.preemptions > 0
    assert finished == ["r0", "r1", "r2"]


def test_siblings_wait_for_the_prompt_and_find_it() -> None:
    loop = Loop(pages=40, seqs=4, budget=8)
    siblings = loop.add(18, 2, n=3)
    assert [lengths(loop.step()), lengths(loop.step())] == [{"r0": 8}, {"r0": 8}]
    loop.step()
    loop.drain()
    assert [s.cached_tokens for s in siblings] == [0, 16, 16]


def test_what_a_preemption_finds_again_is_not_billed_as_cached() -> None:
    loop = Loop(pages=6, seqs=4, budget=32)
    for number in range(3):
        loop.add(7, 12, first=number * 20)
    loop.drain()
    assert [s.cached_tokens for s in loop.sequences] == [0, 0, 0]


def test_the_queue_has_a_limit() -> None:
    loop = Loop(seqs=1, waiting=2)
    for _ in range(2):
        loop.add(4)
    with pytest.raises(EngineOverloaded, match="2 requests are waiting"):
        loop.add(4)
    assert len(loop.scheduler.waiting) == 2


def test_a_budget_below_the_places_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs a token"):
        SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=7)
    with pytest.raises(ConfigError):
        SchedulerConfig(max_num_seqs=0)


class Traffic(RuleBasedStateMachine):
    """Random arrivals, cancels, failures and steps; at the end everybody who was not cancelled has all tokens."""

    @initialize(pages=st.integers(2, 10), seqs=st.integers(1, 4), extra=st.integers(0, 12))
    def start(self, pages: int, seqs: int, extra: int) -> None:
        self.loop = Loop(pages=pages, seqs=seqs, budget=seqs + extra)
        self.room = pages * SIZE
        self.stopped: set[tuple[str, int]] = set()

    @rule(
        prompt=st.integers(1, 30),
        answer=st.integers(1, 12),
        priority=st.integers(0, 2),
        n=st.integers(1, 3),
        first=st.sampled_from([0, 0, 7]),
    )
    def arrive(self, prompt: int, answer: int, priority: int, n: int, first: int) -> None:
        if prompt < self.room:
            self.loop.add(prompt, answer, priority=priority, n=n, first=first)

    @rule(count=st.integers(1, 5))
    def run(self, count: int) -> None:
        for _ in range(count):
            if self.loop.scheduler.has_work:
                assert self.loop.step()

    @precondition(lambda self: any(not s.finished for s in self.loop.sequences))
    @rule(data=st.data(), fails=st.booleans())
    def stop_one(self, data: st.DataObject, fails: bool) -> None:
        unfinished = [s for s in self.loop.sequences if not s.finished]
        sequence = data.draw(st.sampled_from(unfinished))
        sequence.finish("error" if fails else "cancelled", error="it failed" if fails else None)
        self.loop.scheduler.finish(sequence)
        self.stopped.add(sequence.key)

    @invariant()
    def queues_and_pages_are_whole(self) -> None:
        self.loop.scheduler.check_integrity()

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        self.loop.drain()
        for sequence in self.loop.sequences:
            assert sequence.finished
            if sequence.key not in self.stopped:
                assert sequence.generated == min(sequence.params.max_tokens or 0, self.room - sequence.prompt_tokens)


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=60, stateful_step_count=30)
