"""From a branch of a chat to the request that the completion service answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row

from leadline.server.chats import Mode
from leadline.server.schemas import ChatRequest

ALIASES: Mapping[Mode, str] = {"chat": "deepseek-chat", "coder": "deepseek-coder"}
TEMPERATURES: Mapping[Mode, float | None] = {"chat": None, "coder": 0.0}  # None: the model's own

_BACKTICKS = re.compile("`{3,}")


def chat_request(
    messages: Sequence[Mapping[str, Any]],
    *,
    mode: Mode,
    system: str,
    temperature: float | None,
    max_tokens: int | None,
    continues: bool = False,
) -> ChatRequest:
    """`messages` have a role, a content and perhaps attachments. With `continues` the last is an answer's beginning."""
    said = [{"role": each["role"], "content": wording(each)} for each in messages]
    said = [each for each in said if each["role"] != "assistant" or each["content"]]  # of an answer that never began
    if continues and said and said[-1]["role"] == "assistant":
        said[-1]["prefix"] = True
    body = {"messages": [*([{"role": "system", "content": system}] if system else []), *said], "stream": True}
    chosen = TEMPERATURES[mode] if temperature is None else temperature
    options = {"temperature": chosen, "max_tokens": max_tokens}
    return ChatRequest.model_validate({**body, **{name: each for name, each in options.items() if each is not None}})


def as_messages(rows: Sequence[Row[Any]]) -> list[dict[str, Any]]:
    return [{"role": row.role, "content": row.content, "attachments": row.attachments} for row in rows]


def wording(message: Mapping[str, Any]) -> str:
    """Its attachments, then its content."""
    return "\n\n".join([*map(_as_text, message.get("attachments") or ()), message["content"]])


def _as_text(attachment: Mapping[str, str]) -> str:
    """A text file in a fence that nothing in it closes."""
    longest = max((len(run) for run in _BACKTICKS.findall(attachment["text"])), default=2)
    fence = "`" * (longest + 1)
    return f"{attachment['name']}:\n{fence}\n{attachment['text']}\n{fence}"
