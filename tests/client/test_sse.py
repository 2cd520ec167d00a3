"""Reading events: however the bytes are cut, the same events come out."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from leadline.client.sse import EventDecoder

TEXT = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))


def decoded(pieces: list[bytes]) -> list[str]:
    decoder = EventDecoder()
    return [event for piece in pieces for event in decoder.feed(piece)]


def test_fields_comments_and_line_ends() -> None:
    stream = b": hello\n\nevent: x\ndata: one\n\ndata:two\r\n\r\ndata: a\rdata: b\r\rid: 3\n\ndata\n\n"
    assert decoded([stream]) == ["one", "two", "a\nb", ""]


def test_characters_that_look_like_line_ends_are_none() -> None:
    assert decoded(["data: a\u2028b\x85c\x0bd\n\n".encode()]) == ["a\u2028b\x85c\x0bd"]


def test_an_unfinished_event_is_not_given_out() -> None:
    assert decoded([b"data: one\n\ndata: two\n"]) == ["one"]


@given(st.lists(TEXT, max_size=5), st.sampled_from(["\n", "\r\n", "\r"]), st.lists(st.integers(0, 200)))
def test_cuts_do_not_matter(texts: list[str], end: str, cuts: list[int]) -> None:
    stream = "".join(f"data: {text}{end}{end}" for text in texts).encode() + b": end\n"
    places = sorted({0, len(stream), *[cut for cut in cuts if cut < len(stream)]})
    pieces = [stream[a:b] for a, b in itertools.pairwise(places)]
    assert decoded(pieces) == texts
