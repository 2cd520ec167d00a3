"""Holding and settling: prices, buckets, caps, the sweep, and what many requests at once must not get."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from sqlalchemy import insert, select, update

from leadline.engine.types import Usage
from leadline.errors import BudgetExceeded, InsufficientBalance, InvalidRequest, ModelNotFound
from leadline.server import ledger
from leadline.server.billing import HOLD_TOKENS, LEASE_SECONDS, Hold, set_price
from leadline.server.db import Database, api_keys, buckets, file_url, holds, usage
from leadline.server.db import ledger as entries
from leadline.server.meter import BEHIND_SECONDS, PERSIST_SECONDS, Meters
from leadline.server.money import format_money, format_price, parse_money, parse_price
from tests.server.platform.books import HIT, MISS, MODEL, OUTPUT, Books, order, with_books

DAY = 86_400


async def make_key(books: Books, user_id: int, **fields: int | None) -> int:
    row = {"user_id": user_id, "name": "", "digest": "d", "shown": "sk-...", "created": books.now, **fields}
    async with books.database.write() as connection:
        insertion = insert(api_keys).values({**row, "control_tokens": False}).returning(api_keys.c.id)
        return int((await connection.execute(insertion)).scalar_one())


@with_books
async def test_a_request_pays_for_hits_misses_and_output_to_the_unit(books: Books) -> None:
    user_id = await books.user()
    await books.credit(user_id, 1_000_000)
    hold = await books.billing.hold(order("a", user_id, prompt_tokens=100, most=50))
    held = 100 * MISS + 50 * OUTPUT
    assert (await books.balance(user_id)).held == held
    assert hold.covered == 50
    cost = await books.billing.settle("a", Usage(100, 7, 64), "finished")
    assert cost == 64 * HIT + 36 * MISS + 7 * OUTPUT
    assert await books.balance(user_id) == ledger.Balance(topped_up=1_000_000 - cost)
    assert await books.bills() == {"a": cost}
    assert await books.faults() == []


@with_books
async def test_settling_again_changes_nothing(books: Books) -> None:
    user_id = await books.user()
    await books.credit(user_id, 1_000_000)
    await books.billing.hold(order("a", user_id))
    costs = await asyncio.gather(*(books.billing.settle("a", Usage(10, n, 0), "finished") for n in range(1, 6)))
    assert sum(cost is not None for cost in costs) == 1
    assert len(await books.bills()) == 1
    assert await books.faults() == []


@with_books
async def test_without_enough_nothing_is_held_and_the_refusal_says_what_would_fit(books: Books) -> None:
    user_id = await books.user()
    await books.credit(user_id, 10 * MISS + 40 * OUTPUT)
    with pytest.raises(InsufficientBalance, match="max_tokens of 40 would fit"):
        await books.billing.hold(order("a", user_id, prompt_tokens=10, most=100))
    await books.billing.hold(order("b", user_id, prompt_tokens=10, most=40))
    assert (await books.balance(user_id)).available == 0
    with pytest.raises(InsufficientBalance, match=r"^Insufficient Balance"):
        await books.billing.hold(order("c", user_id, prompt_tokens=1, most=1))


@with_books
async def test_a_model_without_a_price_is_not_sold(books: Books) -> None:
    with pytest.raises(ModelNotFound, match="no price"):
        await books.billing.hold(order("a", await books.user(), model="other"))


@with_books
async def test_a_running_request_keeps_the_price_it_came_at(books: Books) -> None:
    user_id = await books.user()
    await books.credit(user_id, 10_000_000)
    await books.billing.hold(order("a", user_id))
    async with books.database.write() as connection:
        await set_price(connection, MODEL, hit=1, miss=1, output=1, now=books.now)
    await books.billing.hold(order("b", user_id))
    assert await books.billing.settle("a", Usage(10, 5, 0), "finished") == 10 * MISS + 5 * OUTPUT
    assert await books.billing.settle("b", Usage(10, 5, 0), "finished") == 15


@with_books
async def test_granted_money_goes_first_and_what_expires_first_before_it(books: Books) -> None:
    user_id = await books.user()
    topped = await books.credit(user_id, 10_000)
    later = await books.credit(user_id, 1000, "granted", expires=books.now + 2 * DAY)
    sooner = await books.credit(user_id, 1000, "granted", expires=books.now + DAY)
    await books.billing.hold(order("a", user_id, prompt_tokens=0, most=9))
    await books.billing.settle("a", Usage(0, 9, 0), "finished")
    async with books.database.read() as connection:
        query = select(entries.c.bucket_id, entries.c.amount).where(entries.c.kind == "usage")
        paid = {row.bucket_id: -row.amount for row in await connection.execute(query) if row.bucket_id}
    assert paid == {sooner: 1000, later: 1000, topped: 9 * OUTPUT - 2000}
    assert await books.faults() == []


@with_books
async def test_what_expires_is_gone_but_not_what_a_request_holds(books: Books) -> None:
    user_id = await books.user()
    await books.credit(user_id, 10_000, "granted", expires=books.now + DAY)
    await books.billing.hold(order("a", user_id, prompt_tokens=0, most=10))
    books.clock.now += DAY
    assert await books.billing.expire() == 1
    assert await books.balance(user_id) == ledger.Balance(granted=10 * OUTPUT, held=10 * OUTPUT)
    assert await books.billing.settle("a", Usage(0, 4, 0), "aborted") == 4 * OUTPUT
    assert await books.billing.expire() == 1
    assert await books.balance(user_id) == ledger.Balance()
    assert await books.faults() == []


@with_books
async def test_caps_of_a_key_hold_whatever_runs_at_once(books: Books) -> None:
    user_id = await books.user()
    await books.credit(user_id, 100_000_000)
    one = 10 * MISS + 100 * OUTPUT
    key_id = await make_key(books, user_id, spend_cap=5 * one)
    orders = [order(f"r{n}", user_id, key_id=key_id) for n in range(8)]
    results = await asyncio.gather(*(books.billing.hold(each) for each in orders), return_exceptions=True)
    assert sum(isinstance(result, BudgetExceeded) for result in results) == 3
    for each in orders:
        await books.billing.settle(each.request_id, Usage(10, 100, 0), "finished")
    with pytest.raises(BudgetExceeded):
        await books.billing.hold(order("last", user_id, key_id=key_id, most=1))
    assert await books.faults() == []


@with_books
async def test_a_monthly_cap_begins_anew_with_the_month(books: Books) -> None:
    user_id = await books.user()
    await books.credit(user_id, 100_000_000)
    key_id = await make_key(books, user_id, monthly_cap=10 * MISS + 100 * OUTPUT)
    await books.billing.hold(order("a", user_id, key_id=key_id))
    await books.billing.settle("a", Usage(10, 100, 0), "finished")
    with pytest.raises(BudgetExceeded):
        await books.billing.hold(order("b", user_id, key_id=key_id))
    books.clock.now += 31 * DAY
    await books.billing.hold(order("c", user_id, key_id=key_id))
    assert await books.faults() == []


@with_books
async def test_an_extension_brings_what_the_balance_leaves(books: Books) -> None:
    user_id = await books.user()
    await books.credit(user_id, 10 * MISS + 300 * OUTPUT + 5)
    hold = await books.billing.hold(order("a", user_id, most=1000))
    assert hold.covered == HOLD_TOKENS
    hold = await books.billing.extend(hold, 256)
    assert hold.covered == 300
    assert (await books.billing.extend(hold, 256)).covered == 300
    await books.billing.settle("a", Usage(10, 300, 0), "balance")
    assert await books.balance(user_id) == ledger.Balance(topped_up=5)
    assert await books.faults() == []


@with_books
async def test_an_extension_stops_at_the_keys_cap(books: Books) -> None:
    user_id = await books.user()
    await books.credit(user_id, 100_000_000)
    key_id = await make_key(books, user_id, spend_cap=10 * MISS + 260 * OUTPUT)
    hold = await books.billing.hold(order("a", user_id, key_id=key_id, most=1000))
    assert (await books.billing.extend(hold, 256)).covered == 260


@with_books
async def test_a_dead_process_pays_what_it_had_written_down(books: Books) -> None:
    user_id = await books.user()
    await books.credit(user_id, 1_000_000)
    for request_id in ("dead", "alive", "silent"):
        await books.billing.hold(order(request_id, user_id))
    await books.billing.persist({"dead": Usage(10, 3, 0)})
    assert await books.billing.sweep() == 0
    books.clock.now += LEASE_SECONDS + 1
    await books.billing.persist({"alive": Usage(10, 50, 0)})
    assert await books.billing.sweep() == 2
    assert await books.bills() == {"dead": 10 * MISS + 3 * OUTPUT, "silent": 0}
    assert await books.count_holds() == 1
    assert await books.billing.settle("dead", Usage(10, 100, 0), "finished") is None
    assert await books.faults() == []


@with_books
async def test_a_correction_takes_only_what_is_free(books: Books) -> None:
    user_id = await books.user()
    await books.credit(user_id, 1_000_000)
    await books.billing.hold(order("a", user_id))
    async with books.database.write() as connection:
        await ledger.debit(connection, user_id, 900_000, ref="test", now=books.now)
    with pytest.raises(InsufficientBalance):
        async with books.database.write() as connection:
            await ledger.debit(connection, user_id, 100_000, ref="test", now=books.now)
    assert await books.faults() == []


@with_books
async def test_two_hundred_at_once_on_a_balance_for_twenty(books: Books) -> None:
    """Over two pools of connections, as two processes would."""
    user_id = await books.user()
    await books.credit(user_id, 20 * (10 * MISS + 100 * OUTPUT))
    other = await Database.open(str(books.database.engine.url), durable=False)
    services = [books.billing, type(books.billing)(other, clock=books.clock)]

    async def one(number: int) -> bool:
        billing = services[number % 2]
        try:
            await billing.hold(order(f"r{number}", user_id))
        except InsufficientBalance:
            return False
        return await billing.settle(f"r{number}", Usage(10, 100, 0), "finished") is not None

    served = await asyncio.gather(*(one(number) for number in range(200)))
    await other.close()
    assert sum(served) == 20
    assert await books.balance(user_id) == ledger.Balance()
    assert await books.faults() == []


@with_books
async def test_a_meter_keeps_an_answer_covered_until_nothing_is_left(books: Books) -> None:
    user_id = await books.user()
    await books.credit(user_id, 10 * MISS + 700 * OUTPUT)
    meters = Meters(books.billing)
    meter = meters.meter(order("a", user_id, most=5000))
    await meter.open()
    tokens = 0
    while await meter.cover(tokens + 1):
        tokens += 1
        meter.delivered(Usage(10, tokens, 0))
    await meter.close("balance")
    await meter.close("finished")
    assert tokens == 700
    assert await books.balance(user_id) == ledger.Balance()
    assert not meters.live
    assert await books.faults() == []


@with_books
async def test_more_is_held_ahead_of_need_and_waited_for_only_then(books: Books) -> None:
    user_id = await books.user()
    await books.credit(user_id, 10_000_000)
    meters, written = Meters(books.billing), asyncio.Event()
    extend = books.billing.extend

    async def slowly(hold: Hold, tokens: int) -> Hold:
        await written.wait()
        return await extend(hold, tokens)

    books.billing.extend = slowly  # type: ignore[method-assign]
    meter = meters.meter(order("a", user_id, most=5000))
    await meter.open()
    assert await meter.cover(HOLD_TOKENS - 1)  # asks for more, and goes on
    beyond = asyncio.create_task(meter.cover(HOLD_TOKENS + 1))
    await asyncio.sleep(0.01)
    assert not beyond.done()
    written.set()
    assert await beyond
    written.clear()
    assert await meter.cover(2 * HOLD_TOKENS - 1)  # the next extension is on its way when the answer ends
    meter.delivered(Usage(10, 2 * HOLD_TOKENS - 1, 0))
    await meter.close("aborted")
    written.set()
    await meters.drain()
    left = await books.balance(user_id)
    assert (left.total, left.held) == (10_000_000 - 10 * MISS - (2 * HOLD_TOKENS - 1) * OUTPUT, 0)
    assert await books.faults() == []


@with_books
async def test_a_meter_whose_task_is_cancelled_settles_all_the_same(books: Books) -> None:
    user_id = await books.user()
    await books.credit(user_id, 10_000_000)
    meters = Meters(books.billing)

    async def request(number: int) -> None:
        meter = meters.meter(order(f"r{number}", user_id))
        try:
            await meter.open()
            meter.delivered(Usage(10, 5, 0))
            await asyncio.sleep(60)
        finally:
            await meter.close("aborted")

    tasks = [asyncio.create_task(request(number)) for number in range(20)]
    for pause, task in enumerate(tasks):
        await asyncio.sleep(0.0005 * (pause % 5))  # some are still opening, some have not begun
        task.cancel()
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await meters.drain()
    assert await books.count_holds() == 0
    assert set((await books.bills()).values()) <= {0, 10 * MISS + 5 * OUTPUT}
    assert await books.faults() == []


@with_books
async def test_counts_of_running_requests_are_written_down(books: Books) -> None:
    user_id = await books.user()
    await books.credit(user_id, 10_000_000)
    meters = Meters(books.billing)
    async with meters.running():
        meter = meters.meter(order("a", user_id))
        await meter.open()
        meter.delivered(Usage(10, 42, 0))
        deadline = time.monotonic() + 5
        while await persisted(books, "a") != 42:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        await meter.close("finished")
    async with books.database.read() as connection:
        assert (await connection.execute(select(usage.c.completion_tokens))).scalar_one() == 42


@with_books
async def test_answers_wait_while_nothing_can_be_written_down(books: Books) -> None:
    """A disk that stands still: what is delivered meanwhile would be lost with the process."""
    user_id = await books.user()
    await books.credit(user_id, 10_000_000)
    meters, free, persist = Meters(books.billing), asyncio.Event(), books.billing.persist

    async def stuck(counts: Mapping[str, Usage]) -> None:
        await free.wait()
        await persist(counts)

    books.billing.persist = stuck  # type: ignore[method-assign]
    async with meters.running():
        meter = meters.meter(order("a", user_id))
        await meter.open()
        await asyncio.sleep(BEHIND_SECONDS + 0.1)
        waiting = asyncio.create_task(meter.cover(1))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        free.set()
        assert await waiting
        free.clear()
        await asyncio.sleep(BEHIND_SECONDS + PERSIST_SECONDS + 0.1)
        waiting = asyncio.create_task(meter.cover(2))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        waiting.cancel()  # who waits can leave
        await asyncio.gather(waiting, return_exceptions=True)
        free.set()
        await meter.close("aborted")
    await meters.written_down()  # nobody waits for books that are closed
    assert await books.faults() == []


async def persisted(books: Books, request_id: str) -> int:
    async with books.database.read() as connection:
        row = await connection.scalar(select(holds.c.completion_tokens).where(holds.c.id == request_id))
    return int(row or 0)


@with_books
async def test_tampering_is_found(books: Books) -> None:
    await books.credit(await books.user(), 1000)
    async with books.database.write() as connection:
        await connection.execute(update(buckets).values(balance=2000, held=5))
    assert await books.faults() == [
        "bucket 1 is not the sum of its entries",
        "bucket 1 does not hold what its holds say",
    ]


@pytest.mark.parametrize(
    ("text", "nano"),
    [("0", 0), ("1", 10**9), ("12.5", 12_500_000_000), ("0.000000001", 1), ("1000000", 10**15)],
)
def test_amounts_are_exact(text: str, nano: int) -> None:
    assert parse_money(text) == nano
    assert parse_money(format_money(nano)) == nano


@pytest.mark.parametrize("text", ["", "-1", "1e9", "1.0000000001", "٣", "1,5", " 1", "inf", "1000001", "9" * 50])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_money(text)


def test_amounts_are_shown_whole() -> None:
    assert [format_money(amount) for amount in (0, 110 * 10**9, 14, -1_500_000_000)] == [
        "0.00",
        "110.00",
        "0.000000014",
        "-1.50",
    ]
    assert parse_price("0.014", "hit") == 14
    assert format_price(280) == "0.28"
    with pytest.raises(InvalidRequest, match="three decimals"):
        parse_price("0.0001", "hit")


def test_the_file_url_is_read_back() -> None:
    assert file_url(Path("/a/b.db")) == "sqlite+aiosqlite:////a/b.db"
