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
from leadline.server.tools import call_text, calls_text, result_text
from leadline.tokenizer import Prompt, Tokenizer
from leadline.tokenizer.template import Message

T = TypeVar("T")

LONG = 1 << 14  # characters: encoding fewer takes about as long as handing them to a thread

_ROLES = {"developer": "system", "tool": "user", "function": "user"}
_TOOL_ROLES = ("tool", "function")


@dataclasses.dataclass(frozen=True, slots=True)
class ChatPrompt:
    """`continues`: the prompt ends inside the answer, whose text goes on without a space to strip."""

    ids: tuple[int, ...]
    continues: bool


async def chat_prompt(tokenizer: Tokenizer, body: ChatRequest, limit: int, tools: str | None = None) -> ChatPrompt:
    """`tools`: what the model is told about the functions that it may call."""
    continues = _continues(body.messages)
    messages = _results_joined([_message(message, index) for index, message in enumerate(body.messages)], body)
    if tools is not None:
        messages = _with_tools(messages, tools)

    def render() -> tuple[int, ...]:
        return tokenizer.render(messages, continue_final=continues, limit=limit)

    ids = await _encoded(sum(len(message.content) for message in messages), render)
    return ChatPrompt(ids, continues and bool(messages[-1].content))


async def completion_prompts(
    tokenizer: Tokenizer, body: CompletionRequest, prompts: Sequence[Any], limit: int
) -> list[Prompt]:
    return [await _completion_prompt(tokenizer, body, prompt, limit) for prompt in prompts]


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
    where = f"messages.{index}"
    text = _content(message, f"{where}.content")
    if message.role in _TOOL_ROLES:
        text = result_text(text)
    if message.tool_calls:
        text = calls_text(text, message.tool_calls, f"{where}.tool_calls")
    elif message.function_call is not None:
        text = "\n".join([*([text] if text else []), call_text(message.function_call, f"{where}.function_call")])
    return Message(_ROLES.get(message.role, message.role), text)


def _results_joined(messages: Sequence[Message], body: ChatRequest) -> list[Message]:
    """The results of one answer's calls are one message: V2's template ends each user's message with a new turn."""
    joined: list[Message] = []
    for place, message in enumerate(messages):
        follows = (
            place > 0 and body.messages[place].role in _TOOL_ROLES and body.messages[place - 1].role in _TOOL_ROLES
        )
        if follows:
            message = Message(message.role, f"{joined.pop().content}\n{message.content}")
        joined.append(message)
    return joined


def _with_tools(messages: Sequence[Message], tools: str) -> list[Message]:
    """The last system message also says which functions there are; of several, some templates show the last alone."""
    places = [place for place, message in enumerate(messages) if message.role == "system"]
    if not places:
        return [Message("system", tools), *messages]
    told = Message("system", f"{messages[places[-1]].content}\n\n{tools}".lstrip("\n"))
    return [*messages[: places[-1]], told, *messages[places[-1] + 1 :]]


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
