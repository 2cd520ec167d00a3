"""A chat's branch as Markdown that people read and `read` takes back whole.

Under each heading stands a comment with what the text does not say: whose message it is, its counts, the length of its
text. The lengths make the way back exact whatever a message contains; where a file was edited since, a text goes on to
the next heading that has a comment.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row

from leadline.errors import InvalidRequest
from leadline.server.conversation import wording

_MARK = re.compile(r"#{1,2} [^\n]*\n\n<!-- leadline (\{[^\n]*\}) -->\n")


def write(chat: Mapping[str, Any]) -> bytes:
    """`chat` as an export has it, its messages those of one branch."""
    about = {name: value for name, value in chat.items() if name != "messages"}
    parts = [_part(f"# {' '.join(chat['title'].split()) or 'Chat'}", about, chat["system"])]
    for message in chat["messages"]:
        about = {name: value for name, value in message.items() if name != "content"}
        about["content"] = len(message["content"])
        parts.append(_part(f"## {_who(message)}, {_when(message['created'])}", about, wording(message)))
    return "\n\n".join(parts).encode("utf-8", errors="replace") + b"\n"


def read(text: str) -> dict[str, Any]:
    """The chat as an export has it; what it says is checked where exports are."""
    text = text.removesuffix("\n")
    mark = _MARK.match(text)
    if mark is None:
        text = "this is no chat that leadline has written as Markdown"
        raise InvalidRequest(text, param="markdown", code="import_invalid")
    chat = _about(mark)
    chat["system"], place = _said(text, mark, chat)
    chat["messages"] = []
    while place < len(text):
        mark = _MARK.match(text, place)
        assert mark is not None, "_said ends at a mark or at the end"
        message = _about(mark)
        said, place = _said(text, mark, message)
        length = message.get("content")
        attached = message.get("attachments")
        message["content"] = said[len(said) - length :] if isinstance(length, int) and attached else said
        chat["messages"].append(message)
    return {"leadline_chats": 1, "chats": [chat]}


def branch(chat: dict[str, Any], way: Sequence[Row[Any]]) -> dict[str, Any]:
    """An exported chat with the messages of one branch only."""
    kept = {row.number for row in way}
    return {**chat, "messages": [message for message in chat["messages"] if message["number"] in kept]}


def _part(heading: str, about: Mapping[str, Any], text: str) -> str:
    """The comment cannot be closed from inside: a second hyphen is written as its escape."""
    comment = json.dumps({**about, "characters": len(text)}, ensure_ascii=True).replace("--", "-\\u002d")
    return f"{heading}\n\n<!-- leadline {comment} -->\n{text}"


def _about(mark: re.Match[str]) -> dict[str, Any]:
    try:
        about = json.loads(mark[1])
    except (ValueError, RecursionError):
        raise InvalidRequest("a comment of this Markdown file is damaged", param="markdown") from None
    assert isinstance(about, dict)
    return about


def _said(text: str, mark: re.Match[str], about: dict[str, Any]) -> tuple[str, int]:
    """The text that belongs to a mark, and where the next begins, or the end."""
    start, length = mark.end(), about.pop("characters", None)
    end = start + length if isinstance(length, int) and 0 <= length <= len(text) - start else -1
    if end < 0 or not (end == len(text) or (text.startswith("\n\n", end) and _MARK.match(text, end + 2))):
        following = _MARK.search(text, start)
        end = len(text) if following is None else max(start, following.start() - 2)
    return text[start:end], min(end + 2, len(text)) if end < len(text) else len(text)


def _who(message: Mapping[str, Any]) -> str:
    if message["role"] == "user":
        return "User"
    return f"Assistant ({message['model']})" if message["model"] else "Assistant"


def _when(created: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(created))
