"""Streaming gives the text of all ids at once, whatever the ids, and cuts it at stop strings."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadline.errors import InvalidRequest
from leadline.tokenizer import StopMatcher, StreamDecoder, Tokenizer


class Bytes:
    """A vocabulary whose id b is byte b; 256 is a control token."""

    special_ids = frozenset({256})

    def token_bytes(self, token_id: int, /) -> bytes:
        return b"<eos>" if token_id == 256 else bytes([token_id])


def _streamed(decoder: StreamDecoder, ids: Sequence[int]) -> str:
    return "".join([decoder.push(token_id) for token_id in ids]) + decoder.finish()


UTF8_BYTES = st.lists(
    st.sampled_from([0x41, 0x80, 0xBF, 0xC3, 0xE0, 0xE6, 0xED, 0xF0, 0xF4, 0xF5, 0xFF, 0xA0, 0x9F, 256])
)


@given(UTF8_BYTES, st.booleans())
def test_any_bytes_stream_to_their_decoding(ids: list[int], skip: bool) -> None:
    decoder = StreamDecoder(Bytes(), skip_special_tokens=skip)
    kept = [token_id for token_id in ids if not (skip and token_id == 256)]
    expected = b"".join(map(Bytes().token_bytes, kept)).decode("utf-8", errors="replace")
    assert _streamed(decoder, ids) == expected


@given(st.data())
def test_any_ids_stream_to_their_decoding(official: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, len(official) - 1)))
    skip = data.draw(st.booleans())
    decoder = official.stream(skip_special_tokens=skip)
    pieces = [decoder.push(token_id) for token_id in ids]
    assert "".join(pieces) + decoder.finish() == official.decode(ids, skip_special_tokens=skip)
    assert decoder.finish() == ""


SHORT = st.text("ab", max_size=4)


@given(st.lists(SHORT), st.lists(SHORT.filter(bool)), st.booleans())
def test_stop_strings_cut_at_their_first_completion(parts: list[str], stops: list[str], include: bool) -> None:
    text = "".join(parts)
    ends = [(end, -len(stop), stop) for stop in stops for end in range(len(text) + 1) if text[:end].endswith(stop)]
    expected, stopped = text, None
    if ends:
        end, _, stopped = min(ends)
        expected = text[:end] if include else text[: end - len(stopped)]
    matcher = StopMatcher(stops, include_stop=include)
    given_out = ""
    for part in parts:
        given_out += matcher.push(part)
        assert expected.startswith(given_out), "no part of a stop string may be given out"
    assert given_out + matcher.finish() == expected
    assert matcher.stopped == stopped


def test_nothing_is_held_back_without_need() -> None:
    matcher = StopMatcher(["User:"])
    assert [matcher.push(part) for part in ("hello U", "se", "d Use", "r!", "User", ": x")] == [
        "hello ",
        "",
        "Used ",
        "User!",
        "",
        "",
    ]
    assert matcher.stopped == "User:"
    assert (matcher.push("more"), matcher.finish()) == ("", "")


def test_a_stop_string_may_span_tokens_and_cut_one(official: Tokenizer) -> None:
    ids = official.encode("Seven fathoms.\n\nUser: thanks")
    for include, expected in ((False, "Seven fathoms."), (True, "Seven fathoms.\n\nUser:")):
        decoder = StreamDecoder(official, ["\n\nUser:"], include_stop=include)
        assert _streamed(decoder, ids) == expected
        assert decoder.stopped == "\n\nUser:"
    decoder = StreamDecoder(official, ["fath"])
    assert _streamed(decoder, ids) == "Seven "


def test_a_stop_string_that_never_comes_is_given_out_at_the_end(official: Tokenizer) -> None:
    decoder = StreamDecoder(official, ["thanks, sailor"])
    assert _streamed(decoder, official.encode("User: thanks")) == "User: thanks"
    assert decoder.stopped is None


def test_a_cut_character_can_complete_a_stop_string() -> None:
    decoder = StreamDecoder(Bytes(), ["\ufffd"])
    assert _streamed(decoder, [0x41, 0xE6]) == "A"
    assert decoder.stopped == "\ufffd"


def test_stop_strings_wait_for_the_minimum(tiny: Tokenizer) -> None:
    ids = tiny.encode("1212")
    assert len(ids) == 4
    decoder = StreamDecoder(tiny, ["2"], min_tokens=2)
    assert [decoder.push(token_id) for token_id in ids] == ["1", "2", "1", ""]
    assert decoder.stopped == "2"


def test_special_tokens_are_shown_when_asked(official: Tokenizer) -> None:
    ids = [*official.encode("hi"), official.eos_id]
    assert _streamed(StreamDecoder(official), ids) == "hi"
    assert _streamed(StreamDecoder(official, skip_special_tokens=False), ids) == "hi<｜end▁of▁sentence｜>"
    with pytest.raises(InvalidRequest):
        StreamDecoder(official).push(len(official))


def test_an_id_takes_constant_time(official: Tokenizer) -> None:
    """Ten times the ids take about ten times as long, even when a long stop string is always nearly complete."""

    def seconds(count: int) -> float:
        decoder = StreamDecoder(official, ["a" * 5_000 + "b"])
        token = official.encode("a")[0]
        start = time.thread_time()
        for _ in range(count):
            decoder.push(token)
        return time.thread_time() - start

    seconds(1_000)
    assert seconds(50_000) < 40 * max(seconds(5_000), 1e-3)
