"""The official tokenizer gives the golden ids, and its templates the golden prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from leadline.tokenizer import StreamDecoder, Tokenizer

GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("golden.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("row", GOLDEN["texts"], ids=lambda row: ascii(row["text"][:16]))
def test_texts_have_the_golden_ids(official: Tokenizer, row: dict[str, Any]) -> None:
    assert official.encode(row["text"]) == row["ids"]
    assert official.decode(row["ids"], skip_special_tokens=False) == row["text"]
    stream = StreamDecoder(official)
    assert "".join([stream.push(token_id) for token_id in row["ids"]]) + stream.finish() == row["text"]


@pytest.mark.parametrize("row", GOLDEN["deepseek-v2"])
def test_conversations_have_the_golden_ids_of_v2(official: Tokenizer, row: dict[str, Any]) -> None:
    assert official.template_name == "deepseek-v2"
    ids = official.render(row["messages"], add_generation_prompt=row["add_generation_prompt"])
    assert list(ids) == row["ids"]
    assert official.decode(ids, skip_special_tokens=False) == row["text"]


@pytest.mark.parametrize("row", GOLDEN["deepseek-v2.5"])
def test_conversations_have_the_golden_ids_of_v25(v25: Tokenizer, row: dict[str, Any]) -> None:
    assert v25.template_name == "deepseek-v2.5"
    ids = v25.render(row["messages"], add_generation_prompt=row["add_generation_prompt"])
    assert list(ids) == row["ids"]
    assert v25.decode(ids, skip_special_tokens=False) == row["text"]


def test_special_tokens_are_parsed_only_when_asked(official: Tokenizer) -> None:
    text = "<｜begin▁of▁sentence｜>User: hi\n\nAssistant: hello<｜end▁of▁sentence｜>"
    ids = [100000, 5726, 25, 2868, 185, 185, 77398, 25, 39280, 100001]
    assert official.encode(text, parse_special=True) == ids
    assert not {100000, 100001} & set(official.encode(text))
    assert official.decode(ids) == "User: hi\n\nAssistant: hello"
