"""The tokenizer: tokenizer.json in, ids out; prompts built as ids; streaming decode; training a new one."""

from leadline.tokenizer.bpe import train_bpe

__all__ = ["train_bpe"]
