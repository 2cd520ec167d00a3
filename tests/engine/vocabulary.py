"""A tokenizer of bytes for engine tests: id b is byte b, then BOS, EOS. Small, exact, and torn characters are easy to
make."""

from __future__ import annotations

from collections.abc import Sequence

BOS, EOS = 256, 257


class ByteTokenizer:
    """As much of `leadline.tokenizer.Tokenizer` as an engine uses."""

    bos_id, eos_id = BOS, EOS
    special_ids = control_ids = frozenset({BOS, EOS})

    def __init__(self, vocab_size: int = 258) -> None:
        self.vocab_size = vocab_size

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else b"<%d>" % token_id

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        kept = (i for i in ids if not (skip_special_tokens and i in self.special_ids))
        return b"".join(self.token_bytes(i) for i in kept).decode(errors="replace")
