"""Chat templates: from messages to segments of text and control tokens.

A folder brings its template as Jinja source. That source is never used to build a prompt, because a rendered string
no longer tells control tokens from what a user typed. Instead it is recognised: the source and each template known
here render the same probe conversations, and the one that agrees on all of them is taken. A source that agrees with
none is an error, never V2's by default.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Literal, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from leadline.errors import InvalidRequest
from leadline.plugins import Registry
from leadline.tokenizer.control import ASSISTANT, USER, Control, Segment, as_text

ROLES = ("system", "user", "assistant")

V2_JINJA = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclasses.dataclass(frozen=True, slots=True)
class ChatTemplate:
    """BOS, then each message between its role's marks, then what invites the answer; EOS closes every answer.

    `system` says where system messages stand: each in its place, or before everything else, the last one alone or all
    of them with an empty line between.
    """

    name: str
    user: tuple[Segment, Segment]  # before and after a user's message
    assistant: Segment  # before an answer
    generation: Segment  # invites the answer; V2's has no space after the colon
    system_after: str = ""
    system: Literal["in place", "last", "joined"] = "in place"

    @property
    def answer_opens_with_space(self) -> bool:
        return isinstance(self.generation, str) and self.assistant == f"{self.generation} "

    def segments(
        self, messages: Sequence[Message], bos: str, eos: str, *, generate: bool, continue_final: bool = False
    ) -> list[Segment]:
        """The prompt. With `continue_final` the last answer stays open: no EOS, and nothing invites another."""
        segments: list[Segment] = [Control(bos), self._hoisted(messages)]
        for message in messages:
            segments += self._turn(message, eos)
        if continue_final:
            segments[-3:] = [self.assistant, messages[-1].content] if messages[-1].content else [self.generation]
        elif generate:
            segments.append(self.generation)
        return segments

    def _hoisted(self, messages: Sequence[Message]) -> str:
        if self.system == "in place":
            return ""
        texts = [message.content for message in messages if message.role == "system"]
        return "\n\n".join(texts if self.system == "joined" else texts[-1:])

    def _turn(self, message: Message, eos: str) -> list[Segment]:
        if message.role == "assistant":
            return [self.assistant, message.content, Control(eos)]
        if message.role == "user":
            return [self.user[0], message.content, self.user[1]]
        return [message.content, self.system_after] if self.system == "in place" else []


V2 = ChatTemplate("deepseek-v2", ("User: ", "\n\n"), "Assistant: ", "Assistant:", system_after="\n\n")
V25 = ChatTemplate("deepseek-v2.5", (Control(USER), ""), Control(ASSISTANT), Control(ASSISTANT), system="last")
V25_JOINED = dataclasses.replace(V25, name="deepseek-v2.5-joined", system="joined")

TEMPLATES: Registry[ChatTemplate] = Registry(
    "leadline.templates",
    "chat template",
    {
        "deepseek-v2": "leadline.tokenizer.template:V2",
        "deepseek-v2.5": "leadline.tokenizer.template:V25",
        "deepseek-v2.5-joined": "leadline.tokenizer.template:V25_JOINED",
    },
)

# Conversations that tell templates apart: order of roles, several system messages, whitespace, reasoning marks.
_PROBES: tuple[tuple[tuple[tuple[str, str], ...], bool], ...] = (
    ((("user", "one"),), True),
    ((("user", "one"), ("assistant", "two")), False),
    ((("system", "one"), ("user", "two"), ("assistant", "three"), ("user", "four")), True),
    ((("system", "one"), ("system", "two"), ("user", "three"), ("user", "four"), ("system", "five")), True),
    ((("user", " \n one \n"), ("assistant", "\n <think>two</think>three "), ("assistant", ""), ("user", "")), True),
)


def recognise(source: str, bos: str, eos: str) -> ChatTemplate | None:
    """The known template that renders every probe as this Jinja source does, if there is one."""
    try:
        rendered = [_render_jinja(source, probe, bos, eos, generate) for probe, generate in _PROBES]
    except Exception:  # foreign source: whatever it runs into, it is not a template known here
        return None
    others = map(TEMPLATES.load, TEMPLATES.names())
    known = itertools.chain((V2, V25, V25_JOINED), others)
    return next((template for template in known if _render(template, bos, eos) == rendered), None)


def _render(template: ChatTemplate, bos: str, eos: str) -> list[str]:
    probes = [([Message(*pair) for pair in probe], generate) for probe, generate in _PROBES]
    return [as_text(template.segments(messages, bos, eos, generate=generate)) for messages, generate in probes]


def _render_jinja(source: str, probe: tuple[tuple[str, str], ...], bos: str, eos: str, generate: bool) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _raise_exception
    messages = [{"role": role, "content": content} for role, content in probe]
    text = environment.from_string(source).render(
        messages=messages, bos_token=bos, eos_token=eos, add_generation_prompt=generate
    )
    # V2.5's source indents the line that takes a system message, which leaves spaces before BOS. Its documentation has
    # none, and a prompt begins with BOS.
    return text.lstrip()


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def checked(messages: Sequence[Mapping[str, str] | Message], *, continue_final: bool) -> list[Message]:
    """The messages as data, or what is wrong with them."""
    if not messages:
        raise InvalidRequest("messages must not be empty", param="messages")
    result = [_checked(message, index) for index, message in enumerate(messages)]
    if continue_final and result[-1].role != "assistant":
        raise InvalidRequest("only an assistant message can be continued, and it must be the last", param="messages")
    return result


def _checked(message: Mapping[str, str] | Message, index: int) -> Message:
    where = f"messages[{index}]"
    if not isinstance(message, Message):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise InvalidRequest(f"{where} must have a role and a content", param=where)
        message = Message(message["role"], message["content"])
    if message.role not in ROLES:
        raise InvalidRequest(f"{where}.role must be one of {', '.join(ROLES)}, not {message.role!r}", param=where)
    if not isinstance(message.content, str):
        raise InvalidRequest(f"{where}.content must be a string", param=where)
    return message
