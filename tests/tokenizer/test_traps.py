"""What goes wrong with this family's tokenizer elsewhere, one test each."""

from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer as RustTokenizer

from leadline.errors import InvalidRequest
from leadline.tokenizer import StreamDecoder, Tokenizer
from tests.fixtures_tokenizer import V25_TOKENS, fuzz_text

BOS, EOS = 100000, 100001


def test_trap_bos_eos_and_pad_ids(official: Tokenizer) -> None:
    """BOS 100000, EOS 100001, padding is EOS, and every prompt has one BOS, its author's own or ours."""
    assert (official.bos_id, official.eos_id, official.pad_id) == (BOS, EOS, EOS)
    assert official.add_bos
    bos = official.bos_token
    for text in ("hi", bos + "hi", bos * 3 + "hi", bos, ""):
        for parse_special in (False, True):
            ids = official.encode_prompt(text, parse_special=parse_special).ids
            assert ids.count(BOS) == 1
            assert ids == (BOS, *official.encode(text.replace(bos, "")))
    assert official.prompt_ids([5726]) == official.prompt_ids([BOS, 5726]) == (BOS, 5726)
    assert official.render([{"role": "user", "content": bos + "hi"}]).count(BOS) == 1


def test_trap_template_has_no_space_after_assistant_and_eos_after_each_answer(official: Tokenizer) -> None:
    conversation = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user")]
    ids = official.render(conversation)
    answered = "<｜begin▁of▁sentence｜>system\n\nUser: user\n\nAssistant: assistant<｜end▁of▁sentence｜>"
    assert official.decode(ids, skip_special_tokens=False) == answered + "User: user\n\nAssistant:"
    assert ids.count(EOS) == 1
    assert official.answer_opens_with_space


def test_trap_single_digits_newlines_and_line_separators(official: Tokenizer, library: RustTokenizer) -> None:
    """Not SentencePiece: digits and newlines are tokens of their own, U+2028 and U+2029 survive, spaces too."""
    assert len(official.encode("2024")) == 4
    assert official.encode("\n\n\n") == [185] * 3
    for text in ("a\u2028b", "a\u2029b", "\u2029\u2029", "\r\n\r\n", "  a  b  ", "\u3000", "\t\t1"):
        assert official.encode(text) == library.encode(text, add_special_tokens=False).ids
        assert official.decode(official.encode(text)) == text


def test_trap_fuzz_against_the_library(official: Tokenizer, library: RustTokenizer) -> None:
    seed = 20240507
    print(f"seed {seed}")
    random_ = random.Random(seed)
    for _ in range(10_000):
        text = fuzz_text(random_)
        ids = library.encode(text, add_special_tokens=False).ids
        assert official.encode(text, parse_special=True) == ids
        assert official.decode(ids) == library.decode(ids)
        assert official.decode(official.encode(text), skip_special_tokens=False) == text


def test_trap_ascii_lookalikes_are_plain_text(v25: Tokenizer) -> None:
    assert [v25.token_id(name) for name in V25_TOKENS] == [100002, 100003, 100004, 100005, 100006]
    for name in V25_TOKENS:
        ascii_name = name.replace("｜", "|").replace("▁", "_")
        prompt = v25.encode_prompt(f"x {ascii_name} y", parse_special=True)
        assert v25.control_ids & set(prompt.ids) == {BOS}
        assert v25.encode_prompt(f"x {ascii_name} y").warnings == (
            f"{ascii_name} in the prompt is plain text; the control token is spelled {name}",
        )


def test_trap_rows_past_the_tokenizer(official: Tokenizer) -> None:
    """The model has 102,400 rows; ids from 100,002 on stand for nothing."""
    assert len(official) == official.vocab_size == 100_002
    assert official.token_bytes(100_001) == "<｜end▁of▁sentence｜>".encode()
    for token_id in (100_002, 102_399, -1):
        with pytest.raises(InvalidRequest, match="outside the vocabulary"):
            official.token_bytes(token_id)
        with pytest.raises(InvalidRequest, match="outside the vocabulary"):
            official.prompt_ids([token_id])


def test_trap_half_characters_are_held_back(official: Tokenizer) -> None:
    text = "深度 👍🏽 𝕳𝖊 안녕 naïve"
    ids = official.encode(text)
    assert any("\ufffd" in official.token_text(token_id) for token_id in ids)
    stream = StreamDecoder(official)
    pieces = [stream.push(token_id) for token_id in ids]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) + stream.finish() == text
    cut = StreamDecoder(official)
    assert [cut.push(token_id) for token_id in official.encode("👍")[:1]] == [""]
    assert cut.finish() == "\ufffd"


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_trap_control_strings_in_content_stay_text(official: Tokenizer, v25: Tokenizer, role: str) -> None:
    """Whatever a message spells, the prompt has the control tokens of its template and no other."""
    for tokenizer in (official, v25):
        for name in ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", *V25_TOKENS):
            for content in (name, f"a{name}b", f" {name * 2}\n", f"{name[:-1]}{name}"):
                messages = [{"role": role, "content": content}, {"role": "user", "content": "hi"}]
                harmless = [{"role": role, "content": "x"}, {"role": "user", "content": "hi"}]
                ids, expected = tokenizer.render(messages), tokenizer.render(harmless)
                controls = [token_id for token_id in ids if token_id in tokenizer.control_ids]
                assert controls == [token_id for token_id in expected if token_id in tokenizer.control_ids]
                assert content in tokenizer.decode(ids, skip_special_tokens=False)
