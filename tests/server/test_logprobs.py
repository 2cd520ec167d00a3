"""Tokens and text in step, whatever was held back."""

from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from leadline.engine.types import TokenLogprob
from leadline.server.logprobs import Aligner, ShownToken, chat_logprobs, completion_logprobs
from leadline.tokenizer import StreamDecoder, Tokenizer


def entry(token_id: int, data: bytes, logprob: float = -1.0) -> TokenLogprob:
    return TokenLogprob(token_id, data, logprob)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), st.booleans())
def test_tokens_spell_the_text(tokenizer: Tokenizer, text: str, strip: bool) -> None:
    aligner, decoder = Aligner(tokenizer.special_ids, strip_space=strip), StreamDecoder(tokenizer)
    shown, spelled = "", b""
    for token_id in [*tokenizer.encode(text), tokenizer.eos_id]:
        last = token_id == tokenizer.eos_id
        piece = decoder.push(token_id) + (decoder.finish() if last else "")
        piece, entries = aligner.push(
            piece, [entry(token_id, tokenizer.token_bytes(token_id))], "stop" if last else None
        )
        shown += piece
        spelled += b"".join(each.text_bytes for each in entries)
    assert shown == (text.removeprefix(" ") if strip else text)
    assert spelled == shown.encode()


def test_tokens_wait_for_their_text() -> None:
    aligner = Aligner(frozenset(), strip_space=False)
    assert aligner.push("", [entry(1, b"wa")], None) == ("", ())
    assert aligner.push("", [entry(2, b"ter")], None) == ("", ())
    text, entries = aligner.push("waters", [entry(3, b"s")], None)
    assert (text, [each.token_id for each in entries]) == ("waters", [1, 2, 3])


def test_tokens_of_a_stop_string_are_not_shown() -> None:
    aligner = Aligner(frozenset(), strip_space=False)
    assert aligner.push("a", [entry(1, b"a")], None)[1]
    assert aligner.push("", [entry(2, b"ST")], None)[1] == ()
    assert aligner.push("", [entry(3, b"OP")], "stop")[1] == ()


def test_half_a_character_at_the_end_is_shown() -> None:
    aligner = Aligner(frozenset(), strip_space=False)
    assert aligner.push("", [entry(1, b"\xe6")], None)[1] == ()
    _, entries = aligner.push("\ufffd", [entry(2, b"\xb0")], "length")
    assert len(entries) == 2


def test_what_is_impossible_is_still_json() -> None:
    token = TokenLogprob(1, b"x", -math.inf, 1, (entry(2, b"y", -math.inf),))
    assert json.dumps(chat_logprobs([token]), allow_nan=False)
    assert json.dumps(completion_logprobs([ShownToken("x", 1, token)], 0), allow_nan=False)
