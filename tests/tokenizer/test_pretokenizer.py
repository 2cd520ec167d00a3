"""Long and hostile texts: the same ids as the library's, in linear time and little memory."""

from __future__ import annotations

import json
import random
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer

from leadline.errors import ContextLengthExceeded, InvalidRequest
from leadline.tokenizer import Tokenizer
from leadline.tokenizer.pretokenizer import chunks, is_v2, linear, v2_pre_tokenizer
from tests.fixtures_tokenizer import fuzz_text


@given(st.text(alphabet="aZé1 \t\n\r.,!。，深<｜👍\u2028\u3000\u00a0"), st.integers(1, 8))
def test_chunks_have_the_ids_of_the_whole(official: Tokenizer, text: str, size: int) -> None:
    parts = list(chunks(text, size))
    assert "".join(parts) == text
    assert [token_id for part in parts for token_id in official.encode(part)] == official.encode(text)


def test_chunks_of_fuzz_have_the_ids_of_the_library(official: Tokenizer, library: RustTokenizer) -> None:
    random_ = random.Random(7)
    for _ in range(2_000):
        text = "".join(fuzz_text(random_) for _ in range(3)).replace("<｜", "< ｜")
        ids = [token_id for part in chunks(text, 3) for token_id in official.encode(part)]
        assert ids == library.encode(text, add_special_tokens=False).ids


def test_long_texts_are_cut() -> None:
    for text in ("hello world " * 100, "深度求索，" * 100, "12345" * 100, "line\n" * 100, "f(x, y);" * 100):
        assert max(map(len, chunks(text, 32))) < 64
    assert list(chunks("👍" * 100, 8)) == ["👍" * 100]


@given(st.text(alphabet="a1 \t.\u2028\u3000\v深👍"))
def test_the_linear_form_has_the_same_ids(official: Tokenizer, library: RustTokenizer, text: str) -> None:
    assert official.encode(text) == library.encode(text, add_special_tokens=False).ids


def test_only_the_pattern_for_trailing_whitespace_changes() -> None:
    official = json.loads(v2_pre_tokenizer().__getstate__())
    assert is_v2(official)
    assert not is_v2(linear(official))
    assert linear(linear(official)) == linear(official)
    assert str(linear(official)).replace(r"(?<!\\s)\\s++$", r"\\s+$") == str(official)


@pytest.mark.parametrize("hostile", ["\t" * 200_000 + "7", " " * 200_000 + "👍", "\v" * 200_000 + "深"])
def test_whitespace_takes_linear_time(official: Tokenizer, hostile: str) -> None:
    start = time.thread_time()
    official.encode(hostile)
    assert time.thread_time() - start < 5  # the plain pattern takes minutes


def test_a_prompt_of_ten_megabytes_is_refused_early(official: Tokenizer) -> None:
    """As soon as there are more ids than fit; without encoding at all when no tokenization could fit."""
    text = "hello world " * (10_000_000 // 12)
    tracemalloc.start()
    start = time.thread_time()
    with pytest.raises(ContextLengthExceeded, match="at least 78125 tokens; at most 4096 fit"):
        official.encode(text, limit=4096)
    with pytest.raises(ContextLengthExceeded, match="at most 100000 fit"):
        official.encode_prompt(text, limit=100_000)
    assert time.thread_time() - start < 5
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()


def test_the_limit_is_exact(official: Tokenizer) -> None:
    ids = official.encode("How deep is the water here?")
    assert official.encode("How deep is the water here?", limit=len(ids)) == ids
    with pytest.raises(ContextLengthExceeded) as caught:
        official.encode("How deep is the water here?", limit=len(ids) - 1)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_lone_surrogates_are_refused(official: Tokenizer, text: str) -> None:
    for encode in (official.encode, official.encode_prompt):
        with pytest.raises(InvalidRequest, match="not valid Unicode: a lone surrogate at character"):
            encode(text)
