"""The tokenizer: tokenizer.json in, ids out; prompts built as ids; streaming decode; training a new one."""

from leadline.tokenizer.bpe import train_bpe
from leadline.tokenizer.control import Control, Segment
from leadline.tokenizer.stream import StopMatcher, StreamDecoder
from leadline.tokenizer.template import TEMPLATES, ChatTemplate, Message
from leadline.tokenizer.tokenizer import Prompt, Tokenizer

__all__ = [
    "TEMPLATES",
    "ChatTemplate",
    "Control",
    "Message",
    "Prompt",
    "Segment",
    "StopMatcher",
    "StreamDecoder",
    "Tokenizer",
    "train_bpe",
]
