"""Answers on the website: jobs of the server's, each tied to its message.

An answer goes on whoever comes and goes: a page that loads anew finds it by its message and reads on from where it was.
It ends by itself, at Stop, or `linger` seconds after the last page that watched it has gone. It runs through the one
completion service and is paid for by the one meter; what is stored of it is written in the transaction that writes its
bill, so that the tokens in the message are the tokens on the bill, also after a crash.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Generator, Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import Row, and_, bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from leadline.engine.types import Usage
from leadline.errors import Conflict, LeadlineError
from leadline.server import search
from leadline.server.access import Outcome
from leadline.server.billing import Bill
from leadline.server.chats import update_message
from leadline.server.completion import CompletionService, Delta, Job
from leadline.server.db import Database, messages
from leadline.server.errors import fault
from leadline.server.titles import Titler

LINGER_SECONDS = 60.0
RECENT_SECONDS = 10.0  # longer than a reader takes from a message's row to its answer

Why = Literal["stopped", "left", "restart"]
# Called in a transaction when the answer is paid for and before it runs: its message's row, in the state `running`.
Store = Callable[[AsyncConnection], Awaitable[Row[Any]]]

_STATUS: Mapping[Outcome, str] = {"finished": "done", "balance": "done", "failed": "failed"}


class Answer:
    """One answer while it is being made, and for those who still watch it when it has ended."""

    def __init__(self, chat_id: int, job: Job, before: str = "", before_tokens: int = 0) -> None:
        self.chat_id = chat_id
        self.job = job
        self.text = before
        self.before_tokens = before_tokens  # of earlier requests, where a cut answer goes on
        self.usage = Usage()
        self.row: Row[Any] | None = None  # of its message: as it began, and when it has ended as it was stored
        self.finish_reason: str | None = None
        self.stop_reason: str | None = None
        self.error: LeadlineError | None = None
        self.ending = False  # no longer to be stopped: its bill is being written
        self.over = False
        self.then: Callable[[], None] | None = None  # called when it is over and before anyone is told
        self.first_token_ms: int | None = None
        self._start = time.monotonic()
        self._changed = asyncio.Event()

    def cancel(self, task: asyncio.Task[None], why: Why) -> None:
        """Once: a second cancellation could reach what settles the first."""
        if self.stop_reason is None and not self.ending:
            self.stop_reason = why
            task.cancel()

    @property
    def ms(self) -> int:
        return round(1000 * (time.monotonic() - self._start))

    def add(self, delta: Delta, usage: Usage) -> None:
        if self.first_token_ms is None:
            self.first_token_ms = self.ms
        self.text += delta.text
        self.usage = usage
        self.finish_reason = delta.finish_reason or self.finish_reason
        self.stop_reason = delta.stop_reason or self.stop_reason
        self.notify()

    def notify(self) -> None:
        """Wake whoever waits in `change`."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def change(self) -> None:
        await self._changed.wait()

    def live(self) -> dict[str, Any]:
        """What it knows better than its row while it runs."""
        return {
            "content": self.text,
            "status": "running",
            "usage": {
                "prompt_tokens": self.usage.prompt_tokens,
                "cached_tokens": self.usage.cached_tokens,
                "completion_tokens": self.before_tokens + self.usage.completion_tokens,
            },
            "first_token_ms": self.first_token_ms,
            "ms": self.ms,
        }


class Answers:
    """The running answers of this process, by their bills and by their messages; the money's witness."""

    def __init__(
        self, service: CompletionService, database: Callable[[], Database], linger: float, titler: Titler
    ) -> None:
        self.service = service
        self.database = database
        self.linger = linger
        self.titler = titler
        self._by_request: dict[str, Answer] = {}
        self._by_message: dict[int, Answer] = {}
        self._tasks: dict[Answer, asyncio.Task[None]] = {}
        self._viewers: dict[Answer, int] = {}
        self._timers: dict[Answer, asyncio.TimerHandle] = {}
        self._reserved: set[int] = set()  # chats whose answer is about to start

    @property
    def running(self) -> int:
        return len(self._tasks)

    def of_message(self, message_id: int) -> Answer | None:
        """One that runs or has just ended: who has read its row before that finds here what is true now."""
        return self._by_message.get(message_id)

    def of_chat(self, chat_id: int) -> Answer | None:
        return next((each for each in self._tasks if each.chat_id == chat_id), None)

    @contextlib.contextmanager
    def reserved(self, chat_id: int) -> Generator[None, None, None]:
        """The chat's one place for an answer, until `start` has taken it."""
        if chat_id in self._reserved or self.of_chat(chat_id) is not None:
            raise Conflict("this chat has an answer that is running; stop it first", code="answer_running")
        self._reserved.add(chat_id)
        try:
            yield
        finally:
            self._reserved.discard(chat_id)

    async def start(self, answer: Answer, store: Store) -> Answer:
        """Hold the money, store the message, begin. What the meter refuses is raised here, and nothing is stored."""
        stored = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._run(answer, store, stored))
        self._tasks[answer] = task
        await asyncio.shield(stored)
        return answer

    async def stop(self, answer: Answer, why: Why = "stopped") -> None:
        """End it; returns when it is stored and billed."""
        if (task := self._tasks.get(answer)) is not None:
            answer.cancel(task, why)
            await asyncio.wait({task})

    async def stop_of(self, user_id: int) -> None:
        """End all that this user has: the account is closed."""
        theirs = [answer for answer in self._tasks if answer.job.principal.user_id == user_id]
        await asyncio.gather(*(self.stop(answer) for answer in theirs))

    async def close(self) -> None:
        """End all of them: the server stops."""
        await asyncio.gather(*(self.stop(answer, "restart") for answer in list(self._tasks)))
        await self.titler.close()

    async def watch(self, answer: Answer, offset: int) -> AsyncGenerator[tuple[str, int], None]:
        """The text from `offset` on as it comes, each piece with the offset of its end."""
        with self._viewer(answer):
            while True:
                if offset < len(answer.text):
                    piece = answer.text[offset:]
                    offset += len(piece)
                    yield piece, offset
                elif answer.over:
                    return
                else:
                    await answer.change()

    @contextlib.contextmanager
    def _viewer(self, answer: Answer) -> Generator[None, None, None]:
        self._viewers[answer] = self._viewers.get(answer, 0) + 1
        self._forget_timer(answer)
        try:
            yield
        finally:
            self._viewers[answer] -= 1
            if not self._viewers[answer]:
                del self._viewers[answer]
                self._start_timer(answer)

    def _start_timer(self, answer: Answer) -> None:
        if answer in self._tasks:
            loop = asyncio.get_running_loop()
            self._timers[answer] = loop.call_later(self.linger, self._leave, answer)

    def _forget_timer(self, answer: Answer) -> None:
        if (timer := self._timers.pop(answer, None)) is not None:
            timer.cancel()

    def _leave(self, answer: Answer) -> None:
        if (task := self._tasks.get(answer)) is not None:
            answer.cancel(task, "left")

    # ---- the job -----------------------------------------------------------------------------------------------

    async def _run(self, answer: Answer, store: Store, stored: asyncio.Future[None]) -> None:
        run = self.service.run(answer.job)
        self._by_request[answer.job.id] = answer
        self._start_timer(answer)
        try:
            await run.open()
            async with self.database().write() as connection:
                answer.row = await store(connection)
            self._by_message[answer.row.id] = answer
            stored.set_result(None)
            async with contextlib.aclosing(run.deltas()) as deltas:
                async for delta in deltas:
                    answer.add(delta, run.usage)
        except asyncio.CancelledError:
            pass  # it was stopped; what is true is in the row
        except Exception as error:
            answer.error = fault(error)
        finally:
            await self._end(answer, run.meter.close)
            if not stored.done():
                stopped = Conflict("the answer was stopped before it began", code="answer_stopped")
                stored.set_exception(answer.error or stopped)

    async def _end(self, answer: Answer, close: Callable[[Outcome], Awaitable[None]]) -> None:
        """It is over when its bill is written; `close` waits for that, and does nothing else that was not done."""
        answer.ending = True
        with contextlib.suppress(Exception):
            await close("failed")
        self._by_request.pop(answer.job.id, None)
        if answer.row is not None:
            await self._tell_error(answer)
            asyncio.get_running_loop().call_later(RECENT_SECONDS, self._forget, answer.row.id, answer)
        self._forget_timer(answer)
        self._tasks.pop(answer, None)
        answer.over = True
        if answer.row is not None and answer.then is not None:
            answer.then()
        answer.notify()

    def _forget(self, message_id: int, answer: Answer) -> None:
        if self._by_message.get(message_id) is answer:
            del self._by_message[message_id]

    async def _tell_error(self, answer: Answer) -> None:
        """An error is known only after the bill."""
        if answer.error is None or answer.row is None:
            return
        error = {"message": answer.error.message, "code": answer.error.code}
        with contextlib.suppress(Exception):
            async with self.database().write() as connection:
                answer.row = await update_message(connection, answer.row.id, error=error)

    # ---- the money's witness -----------------------------------------------------------------------------------

    def texts(self, request_ids: Collection[str]) -> Mapping[str, str]:
        return {each: self._by_request[each].text for each in request_ids if each in self._by_request}

    async def persisted(self, connection: AsyncConnection, texts: Mapping[str, str]) -> None:
        running = and_(messages.c.request_id == bindparam("request"), messages.c.status == "running")
        rows = [{"request": request_id, "content": text} for request_id, text in texts.items()]
        await connection.execute(update(messages).where(running), rows)

    async def settled(self, connection: AsyncConnection, bills: Sequence[Bill]) -> None:
        """The messages as they ended. Of a process that died they keep what was written down with the counts."""
        asked = messages.c.request_id.in_([bill.request_id for bill in bills])
        of_chats = set((await connection.execute(select(messages.c.request_id).where(asked))).scalars())
        for bill in bills:
            if bill.request_id in of_chats:
                await self._settled(connection, bill)

    async def _settled(self, connection: AsyncConnection, bill: Bill) -> None:
        running = and_(messages.c.request_id == bill.request_id, messages.c.status == "running")
        answer = self._by_request.get(bill.request_id)
        ended = {"status": "stopped", "stop_reason": "restart"} if answer is None else _ended(answer, bill.outcome)
        change = update(messages).where(running).values({**ended, **_sums(bill)})
        row: Row[Any] | None = (await connection.execute(change.returning(messages))).one_or_none()
        if row is not None:
            await search.index(connection, row, bill.hold.user_id)
            if answer is not None:
                answer.row = row


def _ended(answer: Answer, outcome: Outcome) -> dict[str, Any]:
    known: dict[str, Any] = {
        "content": answer.text,
        "status": _STATUS.get(outcome, "stopped"),
        "finish_reason": answer.finish_reason,
        "stop_reason": None if outcome == "finished" else answer.stop_reason,
        "ms": messages.c.ms + answer.ms,
    }
    if answer.row is not None and answer.row.first_token_ms is None:
        known["first_token_ms"] = answer.first_token_ms
    return known


def _sums(bill: Bill) -> dict[str, Any]:
    """A message's counts are the sums over its requests; the context is the last one's."""
    used, columns = bill.delivered, messages.c
    return {
        "prompt_tokens": columns.prompt_tokens + used.prompt_tokens,
        "cached_tokens": columns.cached_tokens + used.cached_tokens,
        "completion_tokens": columns.completion_tokens + used.completion_tokens,
        "context_tokens": used.prompt_tokens + used.completion_tokens,
        "cost": columns.cost + bill.cost,
    }
