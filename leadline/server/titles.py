"""Automatic titles. A chat is called by the first words of its question when that is sent; after its first answer the
model is asked for a better name, in the conversation's language.

That is a small request beside all others: nobody pays for it, it goes last, it is given up after a while, and whatever
goes wrong with it the first words stay. The prompt is the conversation and one more question, so that it is found in
the prefix cache. A title of the user's is never touched.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import and_, update

from leadline.engine.types import EngineRequest
from leadline.errors import LeadlineError
from leadline.server.access import Principal
from leadline.server.chats import first_words
from leadline.server.completion import CompletionService, close
from leadline.server.conversation import chat_request, wording
from leadline.server.db import Database, chats

Titles = Literal["model", "words"]

SECONDS = 30.0  # after which it is given up
TOKENS = 16
PRIORITY = -1  # after everyone who waits
AT_ONCE = 2
EACH = 3  # of one account, waiting ones included: what is free is not to be had without end
SHORT = 4000  # characters of a conversation that is shown whole; of a longer one its beginnings
QUESTION, ANSWER = 1000, 500

_ENGLISH = "Write a title for this conversation: at most six words, in its language, and nothing else."
_CHINESE = "为以上对话写一个标题：不超过十个字，只写标题。"

_HAN, _KANA = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]"), re.compile("[\u3040-\u30ff]")
_LABEL = re.compile(r"(?:the )?(?:title|标题|題名|题目)\s*[:：]\s*", re.IGNORECASE)
_MARKS = re.compile(r"\*\*|__|[`\x00-\x1f\x7f\u202a-\u202e\u2066-\u2069]")
_AROUND = " \t#>*_-\"'“”‘’「」『』《》.。,，;；:：!！"

log = logging.getLogger("leadline.server.titles")


class Titler:
    """Titles in the making, by their chats."""

    def __init__(self, service: CompletionService, database: Callable[[], Database], kind: Titles) -> None:
        self.service = service
        self.database = database
        self.kind = kind
        self.seconds = SECONDS
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._owners: Counter[int] = Counter()
        self._turn = asyncio.Semaphore(AT_ONCE)

    def working(self, chat_id: int) -> bool:
        return chat_id in self._tasks

    def begin(
        self, chat_id: int, words: str, said: Sequence[Mapping[str, Any]], system: str, principal: Principal
    ) -> None:
        """Find a better title than `words` for what was `said`: a question and its answer."""
        if self.kind == "words" or self.working(chat_id) or not all(wording(each).strip() for each in said):
            return
        if self._owners[principal.owner] >= EACH:
            return
        self._owners[principal.owner] += 1
        self._tasks[chat_id] = asyncio.create_task(self._work(chat_id, words, said, system, principal))

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(
        self, chat_id: int, words: str, said: Sequence[Mapping[str, Any]], system: str, principal: Principal
    ) -> None:
        try:
            async with asyncio.timeout(self.seconds), self._turn:
                title = await self._ask(said, system, principal)
            if title:
                await self._rename(chat_id, words, title)
        except (LeadlineError, TimeoutError) as error:
            log.info("no title: %s", error or "it took too long")
        except Exception:
            log.exception("no title")
        finally:
            del self._tasks[chat_id]
            self._owners -= Counter([principal.owner])  # which forgets who has none

    async def _ask(self, said: Sequence[Mapping[str, Any]], system: str, principal: Principal) -> str:
        asked = chat_request(_shown(said), mode="chat", system=system, temperature=0.0, max_tokens=TOKENS)
        job = await self.service.chat(asked, principal)
        deadline = time.monotonic() + self.seconds
        text, ended = await self._answer(dataclasses.replace(job.requests[0], priority=PRIORITY, deadline=deadline))
        return clean(text, cut=ended == "length") if ended in ("stop", "length") else ""

    async def _answer(self, request: EngineRequest) -> tuple[str, str | None]:
        """Straight from the engine: no meter, and none of the clocks that tell how long clients wait."""
        text, ended = "", None
        outputs = self.service.engine.submit(request)
        try:
            async for output in outputs:
                text += output.text
                ended = output.finish_reason
        finally:
            await close(outputs)
        return text, ended

    async def _rename(self, chat_id: int, words: str, title: str) -> None:
        """Unless someone else has: the user is right, whenever it was."""
        same = and_(chats.c.id == chat_id, chats.c.title_by == "auto", chats.c.title == words)
        async with self.database().write() as connection:
            await connection.execute(update(chats).where(same).values(title=title))


def clean(text: str, *, cut: bool) -> str:
    """A title out of what a model says: one line of plain text without label, quotes and full stop; of one that was
    `cut` without the word that may be half a word. Empty if nothing is left."""
    lines = [line for each in text.splitlines() if (line := _MARKS.sub("", each).strip(_AROUND))]
    if not lines:
        return ""
    line = " ".join(_LABEL.sub("", lines[0], count=1).strip(_AROUND).split())
    if cut and len(lines) == 1:
        line = line.rpartition(" ")[0].strip(_AROUND) or line
    return first_words(line) if any(letter.isalnum() for letter in line) else ""


def _shown(said: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The conversation and the question for its title."""
    question, answer = (wording(each) for each in said)
    if len(question) + len(answer) > SHORT:
        question, answer = question[:QUESTION], answer[:ANSWER]
    instruction = _CHINESE if _is_chinese(question) else _ENGLISH
    turns = (("user", question), ("assistant", answer), ("user", instruction))
    return [{"role": role, "content": content} for role, content in turns]


def _is_chinese(text: str) -> bool:
    han = len(_HAN.findall(text))
    return not _KANA.search(text) and 4 * han > sum(letter.isalpha() for letter in text)
