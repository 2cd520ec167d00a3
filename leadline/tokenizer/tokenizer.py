"""The tokenizer: text to ids and back, prompts as ids.

It reads tokenizer.json itself and never looks at `tokenizer_class`: a Llama class would replace the byte-level splits
and lose every space. Text is encoded by a vocabulary without control tokens, so that no text, whatever it spells,
becomes one; control tokens enter a prompt as ids only. Between two of them the text is encoded in one piece, which
gives the ids that the rendered template has.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from leadline.errors import ContextLengthExceeded, InvalidRequest, TokenizerError
from leadline.tokenizer import pretokenizer, template
from leadline.tokenizer.control import FIM_BEGIN, FIM_END, FIM_HOLE, Control, Segment, in_ascii
from leadline.tokenizer.files import TokenizerFiles, plain_vocabulary, read_files, token_bytes
from leadline.tokenizer.stream import StreamDecoder

# One of every byte that UTF-8 can hold, and what has gone wrong elsewhere: spaces, line ends, digits, CJK, emoji.
_ROUND_TRIPS = (
    "hello world",
    "  two  spaces\tand\r\nlines\n\n\u2028 \u2029 end ",
    "12345 １２ naïve cafe\u0301 深度求索，你好。 こんにちは 안녕 👍🏽👩‍👩‍👧",
    "".join(map(chr, range(0x800))),
    "".join(chr(lead << 12 | 0xFC0 | tail) for lead in range(16) if lead != 0xD for tail in (0x00, 0x3F)),
    "".join(chr(plane << 16 | 0x1F600) for plane in (0, 3, 7, 11, 15)) + "\ud000\U0010ffff",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """A raw completion's prompt, and what its author should know about it."""

    ids: tuple[int, ...]
    warnings: tuple[str, ...] = ()


class Tokenizer:
    """One folder's vocabulary, control tokens and chat template. Unchanging after the start, so any thread may use it.

    Every method that takes text takes `limit`: encoding stops with `ContextLengthExceeded` as soon as there are more
    ids than that, and at once when the text is too long for any tokenization to fit.
    """

    def __init__(self, files: TokenizerFiles) -> None:
        self._name = files.name
        self._added = {str(token["content"]): int(token["id"]) for token in files.added_tokens}
        self._plain, self._chunked = plain_vocabulary(files)
        self._bytes = token_bytes(files)
        self._longest = max(map(len, self._bytes))
        self.bos_token, self.eos_token = files.bos_token, files.eos_token
        self.bos_id, self.eos_id = self._named(files.bos_token), self._named(files.eos_token)
        self.pad_id = self._named(files.pad_token)
        self.add_bos = files.add_bos
        self.model_max_length = files.model_max_length
        self.special_ids = frozenset(int(token["id"]) for token in files.added_tokens if token.get("special"))
        self.control_ids = frozenset(self._added.values()) | {self.bos_id, self.eos_id, self.pad_id}
        self._control = re.compile("|".join(map(re.escape, sorted(self._added, key=len, reverse=True))) or r"(?!)")
        self._template = self._recognise(files.chat_template)

    @classmethod
    def from_folder(cls, folder: Path | str, *, chat_template: str | None = None) -> Self:
        """Read and check a folder's tokenizer; `chat_template` names a known template to use instead of its own."""
        tokenizer = cls(read_files(Path(folder)))
        if chat_template is not None:
            tokenizer._template = template.TEMPLATES.load(chat_template)
        tokenizer.check()
        return tokenizer

    @property
    def vocab_size(self) -> int:
        """Ids from here on stand for nothing: a model may have more rows, and they are never sampled."""
        return len(self._bytes)

    def __len__(self) -> int:
        return self.vocab_size

    def check(self) -> None:
        """Refuse a tokenizer that does not give back what it was given."""
        for text in _ROUND_TRIPS:
            if self.decode(self.encode(text), skip_special_tokens=False) != text:
                raise TokenizerError(f"{self._name}: decoding does not give back the text {text[:24]!r}")
        for name in self._added:
            if self.control_ids & set(self.encode(name)):
                raise TokenizerError(f"{self._name}: the text {name!r} cannot be told from the control token")

    # Text to ids

    def encode(self, text: str, *, parse_special: bool = False, limit: int | None = None) -> list[int]:
        """The ids of a text, without BOS. What spells a control token stays text, unless `parse_special`."""
        return self._ids(self._parse(text) if parse_special else [text], limit)

    def encode_prompt(self, text: str, *, parse_special: bool = False, limit: int | None = None) -> Prompt:
        """A raw completion's prompt: one BOS, also when the text begins with its own."""
        while text.startswith(self.bos_token):
            text = text[len(self.bos_token) :]
        start: list[Segment] = [Control(self.bos_token)] if self.add_bos else []
        ids = self._ids(start + (self._parse(text) if parse_special else [text]), limit)
        return Prompt(tuple(ids), () if parse_special else self._warnings(text))

    def prompt_ids(self, ids: Sequence[int]) -> tuple[int, ...]:
        """A prompt that came as ids: all known, and with one BOS before them."""
        self._check_ids(ids)
        start = 0
        while start < len(ids) and ids[start] == self.bos_id:
            start += 1
        return ((self.bos_id,) if self.add_bos or start else ()) + tuple(ids[start:])

    def token_id(self, text: str) -> int | None:
        """A control token's id."""
        return self._added.get(text)

    def _parse(self, text: str) -> list[Segment]:
        segments: list[Segment] = []
        start = 0
        for match in self._control.finditer(text):
            segments += [text[start : match.start()], Control(match.group())]
            start = match.end()
        return [*segments, text[start:]]

    def _ids(self, segments: Sequence[Segment], limit: int | None) -> list[int]:
        ids: list[int] = []
        for segment in _joined(segments):
            if isinstance(segment, Control):
                ids.append(self._named(segment.text))
                self._check_limit(len(ids), limit)
                continue
            _check_unicode(segment)
            self._check_limit(len(ids) + -(-len(segment) // self._longest), limit, at_least=True)
            for part in pretokenizer.chunks(segment) if self._chunked else [segment]:
                ids += self._plain.encode(part, add_special_tokens=False).ids
                self._check_limit(len(ids), limit, at_least=True)
        return ids

    def _check_limit(self, count: int, limit: int | None, *, at_least: bool = False) -> None:
        if limit is not None and count > limit:
            raise ContextLengthExceeded(
                f"the prompt has {'at least ' if at_least else ''}{count} tokens; at most {limit} fit", param="prompt"
            )

    def _warnings(self, text: str) -> tuple[str, ...]:
        """Control tokens, or their ASCII look-alikes, that a raw prompt spells: they are plain text."""
        found = []
        for name in self._added:
            if name in text:
                found.append(f"{name} in the prompt is plain text; parse_special makes it the control token")
            elif in_ascii(name) != name and in_ascii(name) in text:
                found.append(f"{in_ascii(name)} in the prompt is plain text; the control token is spelled {name}")
        return tuple(found)

    # Conversations and fill-in-the-middle

    @property
    def has_chat_template(self) -> bool:
        return isinstance(self._template, template.ChatTemplate)

    @property
    def template_name(self) -> str | None:
        return self._template.name if isinstance(self._template, template.ChatTemplate) else None

    @property
    def answer_opens_with_space(self) -> bool:
        """Whether an answer begins with a space of the template's: the model writes it after V2's `Assistant:`.

        Whoever shows an answer takes it off once; rendering the answer into the next prompt puts it back.
        """
        return isinstance(self._template, template.ChatTemplate) and self._template.answer_opens_with_space

    def render(
        self,
        messages: Sequence[Mapping[str, str] | template.Message],
        *,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        limit: int | None = None,
    ) -> tuple[int, ...]:
        """A conversation's prompt. `continue_final` leaves the last assistant message open, for a given beginning."""
        if not isinstance(self._template, template.ChatTemplate):
            raise TokenizerError(f"{self._name}: {self._template}")
        checked = template.checked(messages, continue_final=continue_final)
        segments = self._template.segments(
            checked, self.bos_token, self.eos_token, generate=add_generation_prompt, continue_final=continue_final
        )
        return tuple(self._ids(segments, limit))

    def _recognise(self, source: str | None) -> template.ChatTemplate | str:
        """The template of the folder, or why there is none."""
        if source is None:
            return "no chat template; a chat_template.jinja in the folder would give it one"
        known = template.recognise(source, self.bos_token, self.eos_token)
        if known is None:
            return f"unknown chat template; known are {', '.join(template.TEMPLATES.names())}"
        return known

    @property
    def has_fim(self) -> bool:
        return all(name in self._added for name in (FIM_BEGIN, FIM_HOLE, FIM_END))

    def fim(self, prefix: str, suffix: str, *, limit: int | None = None) -> tuple[int, ...]:
        """The prompt for the text between `prefix` and `suffix` (prefix, suffix, middle)."""
        if not self.has_fim:
            raise InvalidRequest("this model has no fill-in-the-middle tokens: suffix is not supported", param="suffix")
        marks = [Control(name) for name in (FIM_BEGIN, FIM_HOLE, FIM_END)]
        return tuple(self._ids([Control(self.bos_token), marks[0], prefix, marks[1], suffix, marks[2]], limit))

    # Ids to text

    def token_bytes(self, token_id: int, /) -> bytes:
        """The bytes an id stands for: for an ordinary token any bytes, for a control token its name."""
        if not 0 <= token_id < len(self._bytes):
            raise InvalidRequest(f"token id {token_id} is outside the vocabulary of {len(self._bytes)}")
        return self._bytes[token_id]

    def token_text(self, token_id: int) -> str:
        """One token for people to read; half a character shows as U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD."""
        skipped = self.special_ids if skip_special_tokens else frozenset[int]()
        joined = b"".join(self.token_bytes(token_id) for token_id in ids if token_id not in skipped)
        return joined.decode("utf-8", errors="replace")

    def stream(self, stop: Sequence[str] = (), **options: Any) -> StreamDecoder:
        """A `StreamDecoder` for one sequence of this tokenizer's ids."""
        return StreamDecoder(self, stop, **options)

    def _check_ids(self, ids: Sequence[int]) -> None:
        for token_id in ids:
            self.token_bytes(token_id)

    def _named(self, token: str) -> int:
        if token not in self._added:
            raise TokenizerError(f"{self._name}: tokenizer.json has no control token {token!r}")
        return self._added[token]


def _joined(segments: Sequence[Segment]) -> Iterator[Segment]:
    """The same prompt with neighbouring texts in one piece, as the golden ids have them."""
    for is_text, group in itertools.groupby(segments, key=lambda segment: isinstance(segment, str)):
        if not is_text:
            yield from group
        elif text := "".join(str(part) for part in group):
            yield text


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"not valid Unicode: a lone surrogate at character {error.start}") from None
