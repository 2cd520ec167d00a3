"""Whatever happens in whatever order, over two pools: the books add up, nothing is negative, nothing is paid twice."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from leadline.engine.types import Usage
from leadline.errors import InsufficientBalance
from leadline.server import ledger
from leadline.server.access import Outcome
from leadline.server.billing import LEASE_SECONDS, Billing, Hold
from leadline.server.db import Database
from tests.server.platform.books import MISS, OUTPUT, Books, books, empty_database, order

AMOUNT = st.integers(1, 400 * OUTPUT)
TOKENS = st.integers(0, 400)


class BooksMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp(dir=Path.home()))
        self.stack = contextlib.AsyncExitStack()
        self.books: Books = self.run(self.stack.enter_async_context(books(empty_database(self.folder))))
        self.other = self.run(Database.open(str(self.books.database.engine.url), durable=False))
        self.services = (self.books.billing, Billing(self.other, clock=self.books.clock))
        self.open: dict[str, Hold] = {}
        self.paid: dict[str, int] = {}
        self.count = 0

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        self.run(self.other.close())
        self.run(self.stack.aclose())
        self.loop.close()
        shutil.rmtree(self.folder)

    @initialize()
    def make_users(self) -> None:
        self.users = [self.run(self.books.user(f"{name}@example.org")) for name in ("ada", "bob")]

    def user(self, which: bool) -> int:
        return self.users[which]

    @rule(which=st.booleans(), amount=AMOUNT, days=st.none() | st.integers(1, 3))
    def credit(self, which: bool, amount: int, days: int | None) -> None:
        expires = None if days is None else self.books.now + days * 86_400
        kind: ledger.BucketKind = "topped_up" if days is None else "granted"
        self.run(self.books.credit(self.user(which), amount, kind, expires=expires))

    @rule(which=st.booleans(), prompts=st.lists(st.integers(0, 50), min_size=1, max_size=6), most=st.integers(0, 900))
    def hold_at_once(self, which: bool, prompts: list[int], most: int) -> None:
        orders = []
        for tokens in prompts:
            self.count += 1
            orders.append(order(f"r{self.count}", self.user(which), prompt_tokens=tokens, most=most))
        work = [self.services[number % 2].hold(each) for number, each in enumerate(orders)]
        for result in self.run(_gather(work)):
            if isinstance(result, Hold):
                self.open[result.order.request_id] = result
            else:
                assert isinstance(result, InsufficientBalance)

    @rule(tokens=st.integers(1, 300))
    def extend_all(self, tokens: int) -> None:
        work = [self.services[0].extend(hold, tokens) for hold in self.open.values()]
        for result in self.run(_gather(work)):
            before = self.open[result.order.request_id]
            assert before.covered <= result.covered <= before.covered + tokens
            self.open[result.order.request_id] = result

    @rule(tokens=TOKENS, outcome=st.sampled_from(["finished", "aborted", "failed"]), twice=st.booleans())
    def settle_one(self, tokens: int, outcome: Outcome, twice: bool) -> None:
        if self.open:
            name, hold = self.open.popitem()
            usage = Usage(hold.order.prompt_tokens, tokens, hold.order.prompt_tokens // 2)
            work = [service.settle(name, usage, outcome) for service in self.services[: 1 + twice]]
            costs = [cost for cost in self.run(_gather(work)) if cost is not None]
            assert len(costs) == 1, "it is settled once"
            assert costs[0] == min(hold.price.cost(usage), self.ceiling(hold))
            self.paid[name] = costs[0]

    @rule(share=st.floats(0, 1))
    def extend_settle_and_sweep_at_once(self, share: float) -> None:
        if self.open:
            name, hold = self.open.popitem()
            usage = Usage(hold.order.prompt_tokens, int(share * hold.covered), 0)
            first, second = self.services
            work = [first.extend(hold, 50), second.settle(name, usage, "finished"), first.sweep()]
            _, cost, swept = self.run(_gather(work))
            assert (cost, swept) == (hold.price.cost(usage), 0)
            self.paid[name] = cost

    @rule(tokens=TOKENS)
    def process_dies(self, tokens: int) -> None:
        """Its last counts were written down; the sweeps of two others bill them, once."""
        counts = {name: Usage(hold.order.prompt_tokens, tokens, 0) for name, hold in self.open.items()}
        self.run(self.services[0].persist(counts))
        self.books.clock.now += LEASE_SECONDS + 1
        swept = self.run(_gather([service.sweep() for service in self.services]))
        assert sum(swept) == len(self.open)
        for name, hold in self.open.items():
            self.paid[name] = min(hold.price.cost(counts[name]), self.ceiling(hold))
        self.open.clear()

    @rule(days=st.integers(1, 2))
    def time_passes(self, days: int) -> None:
        self.books.clock.now += days * 86_400
        self.run(self.services[0].expire())

    @rule(which=st.booleans(), amount=AMOUNT)
    def correct(self, which: bool, amount: int) -> None:
        with contextlib.suppress(InsufficientBalance):
            self.run(self.debit(self.user(which), amount))

    async def debit(self, user_id: int, amount: int) -> None:
        async with self.books.database.write() as connection:
            await ledger.debit(connection, user_id, amount, ref="test", now=self.books.now)

    def ceiling(self, hold: Hold) -> int:
        return MISS * hold.order.prompt_tokens + OUTPUT * hold.covered

    @invariant()
    def the_books_add_up(self) -> None:
        assert self.run(self.books.faults()) == []

    @invariant()
    def bills_are_what_was_settled(self) -> None:
        assert self.run(self.books.bills()) == self.paid
        assert self.run(self.books.count_holds()) == len(self.open)

    @invariant()
    def nothing_is_negative_and_holds_are_in_the_balance(self) -> None:
        balances = [self.run(self.books.balance(user_id)) for user_id in getattr(self, "users", ())]
        assert all(0 <= each.held <= each.total for each in balances)
        assert sum(each.held for each in balances) == sum(self.ceiling(hold) for hold in self.open.values())


async def _gather(work: list[Coroutine[Any, Any, Any]]) -> list[Any]:
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, InsufficientBalance):
            raise result
    return results


BooksMachine.TestCase.settings = settings(max_examples=8, stateful_step_count=15, deadline=None)
TestBooks = BooksMachine.TestCase
