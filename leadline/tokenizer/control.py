"""The names of DeepSeek-V2's control tokens, and the parts a prompt is made of.

The bars are U+FF5C and the low lines U+2581: the same names in ASCII are plain text. A prompt is a sequence of
segments; only a `Control` ever becomes a control token's id, whatever a string spells.
"""

from __future__ import annotations

import dataclasses

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
FIM_HOLE = "<｜fim▁hole｜>"
FIM_BEGIN = "<｜fim▁begin｜>"
FIM_END = "<｜fim▁end｜>"


@dataclasses.dataclass(frozen=True, slots=True)
class Control:
    """A control token, by the text of its name."""

    text: str


Segment = str | Control


def in_ascii(name: str) -> str:
    """The look-alike that people type: `<|fim_hole|>` for `<｜fim▁hole｜>`."""
    return name.replace("｜", "|").replace("▁", "_")


def as_text(segments: list[Segment]) -> str:
    """What the segments look like when nobody tells control tokens from text."""
    return "".join(segment.text if isinstance(segment, Control) else segment for segment in segments)
