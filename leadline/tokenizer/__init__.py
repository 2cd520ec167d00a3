"""The tokenizer: tokenizer.json in, ids out; prompts built as ids; streaming decode; training a new one."""

from leadline.tokenizer.bpe import train_bpe
from leadline.tokenizer.control import Control, Segment
from leadline.tokenizer.stream import StopMatcher, StreamDecoder
from leadline.tokenizer.template import ChatTemplate, Message, register
from leadline.tokenizer.tokenizer import Prompt, Tokenizer

__all__ = [
    "ChatTemplate",
    "Control",
    "Message",
    "Prompt",
    "Segment",
    "StopMatcher",
    "StreamDecoder",
    "Tokenizer",
    "register",
    "train_bpe",
]
