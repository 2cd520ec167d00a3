"""From what a request says to prompt ids: chat messages, raw text, token ids, fill-in-the-middle.

Long text is encoded in a thread, so that one long prompt does not make every other answer stutter.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from leadline.errors import ContextLengthExceeded, InvalidRequest
from leadline.server.schemas import ChatMessage, ChatRequest, CompletionRequest
from leadline.tokenizer import Prompt, Tokenizer
from leadline.tokenizer.template import Message

T = TypeVar("T")

LONG = 1 << 14  # characters: encoding fewer takes about as long as handing them to a thread

_ROLES = {"developer": "system"}
_TOOL_ROLES = ("tool", "function")


@dataclasses.dataclass(frozen=True, slots=True)
class ChatPrompt:
    """`continues`: the prompt ends inside the answer, whose text goes on without a space to strip."""

    ids: tuple[int, ...]
    continues: bool


async def chat_prompt(tokenizer: Tokenizer, body: ChatRequest, limit: int) -> ChatPrompt:
    messages = [_message(message, index) for index, message in enumerate(body.messages)]
    continues = _continues(body.messages)

    def render() -> tuple[int, ...]:
        return tokenizer.render(messages, continue_final=continues, limit=limit)

    ids = await _encoded(sum(len(message.content) for message in messages), render)
    return ChatPrompt(ids, continues and bool(messages[-1].content))


async def completion_prompts(
    tokenizer: Tokenizer, body: CompletionRequest, prompts: Sequence[Any], limit: int
) -> list[Prompt]:
    return [await _completion_prompt(tokenizer, body, prompt, limit) for prompt in prompts]


def not_available(body: ChatRequest | CompletionRequest) -> None:
    """The one place that says no to what needs constrained decoding."""
    response_format = body.response_format or {}
    kind = response_format.get("type", "text")
    if kind != "text":
        shown = kind if kind in ("json_object", "json_schema") else "of this type"
        raise InvalidRequest(f"response_format {shown} is not available yet", param="response_format")
    if not isinstance(body, ChatRequest):
        return
    if body.tools and body.tool_choice != "none":
        raise InvalidRequest("tools are not available yet", param="tools")
    if body.functions and body.function_call != "none":
        raise InvalidRequest("functions are not available yet", param="functions")
    for index, message in enumerate(body.messages):
        if message.role in _TOOL_ROLES or message.tool_calls or message.function_call:
            raise InvalidRequest("tool messages are not available yet", param=f"messages.{index}")


async def _completion_prompt(tokenizer: Tokenizer, body: CompletionRequest, prompt: Any, limit: int) -> Prompt:
    if not isinstance(prompt, str):
        if body.suffix:
            raise InvalidRequest("suffix needs a prompt of text", param="suffix")
        if len(prompt) > limit:
            raise ContextLengthExceeded(f"the prompt has {len(prompt)} tokens; at most {limit} fit", param="prompt")
        return Prompt(tokenizer.prompt_ids(prompt))
    suffix, parse_special = body.suffix, bool(body.parse_special)
    if suffix:
        ids = await _encoded(len(prompt) + len(suffix), lambda: tokenizer.fim(prompt, suffix, limit=limit))
        return Prompt(ids)
    return await _encoded(
        len(prompt), lambda: tokenizer.encode_prompt(prompt, parse_special=parse_special, limit=limit)
    )


async def _encoded(size: int, encode: Callable[[], T]) -> T:
    return await asyncio.to_thread(encode) if size > LONG else encode()


def split_prompts(prompt: Any) -> Sequence[Any]:
    """The prompts as a list: each a text, or a list of ids."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise InvalidRequest("prompt must be text, a list of token ids, or a list of either", param="prompt")
    if all(isinstance(item, str) for item in prompt):
        return prompt
    if _is_ids(prompt):
        return [prompt]
    if all(isinstance(item, list) and item and _is_ids(item) for item in prompt):
        return prompt
    raise InvalidRequest("prompt must hold only texts, only token ids, or only lists of token ids", param="prompt")


def _is_ids(items: list[Any]) -> bool:
    return all(type(item) is int for item in items)  # a bool is no token


def _message(message: ChatMessage, index: int) -> Message:
    return Message(_ROLES.get(message.role, message.role), _content(message, f"messages.{index}.content"))


def _content(message: ChatMessage, where: str) -> str:
    """Text, or parts of text joined; only an assistant's message may have none."""
    content = message.content
    if isinstance(content, str):
        return content
    if content is None and message.role == "assistant":
        return ""
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} must be text or a list of text parts", param=where)
    return "".join(_part(part, f"{where}.{index}") for index, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        text: str = part["text"]
        return text
    kind = part.get("type") if isinstance(part, dict) else None
    what = f"a part of type {str(kind)[:40]!r}" if kind else "this part"
    raise InvalidRequest(f"{where}: {what} is not supported; this model reads text", param=where)


def _continues(messages: Sequence[ChatMessage]) -> bool:
    """Whether the last message is the beginning of the answer."""
    for index, message in enumerate(messages):
        if message.prefix and (message.role != "assistant" or index != len(messages) - 1):
            raise InvalidRequest(
                "prefix belongs to the last message, and its role must be assistant", param=f"messages.{index}.prefix"
            )
    return bool(messages and messages[-1].prefix)
