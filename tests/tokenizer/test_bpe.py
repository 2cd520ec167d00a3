"""Training: V2's splits, every byte, the same files every time."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from leadline.errors import ConfigError, ResourceError
from leadline.tokenizer import Tokenizer, train_bpe
from leadline.tokenizer.bpe import v2_pipeline
from tests.fixtures_tokenizer import SAMPLE, fuzz_text, make_tiny_tokenizer, official_folder

FILES = ("tokenizer.json", "tokenizer_config.json")


def test_the_pipeline_is_the_official_one() -> None:
    official = json.loads((official_folder() / "tokenizer.json").read_text(encoding="utf-8"))
    ours = json.loads(v2_pipeline().to_str())
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        assert ours[part] == official[part]


def test_the_same_texts_give_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        train_bpe(iter(SAMPLE.splitlines(keepends=True)), 400, tmp_path / name)
    for file in FILES:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(FILES)


def test_control_tokens_come_first_and_the_size_counts_all(tmp_path: Path) -> None:
    make_tiny_tokenizer(tmp_path / "plain", 320)
    make_tiny_tokenizer(tmp_path / "fim", 320, fim=True)
    plain, fim = Tokenizer.from_folder(tmp_path / "plain"), Tokenizer.from_folder(tmp_path / "fim")
    assert len(plain) == len(fim) == 320
    assert (plain.bos_id, plain.eos_id, plain.pad_id) == (0, 1, 1)
    assert plain.control_ids == {0, 1}
    assert fim.control_ids == {0, 1, 2, 3, 4}
    assert (plain.has_fim, fim.has_fim) == (False, True)
    assert plain.template_name == "deepseek-v2"
    assert plain.model_max_length == 4096


def test_the_smallest_vocabulary_is_all_bytes(tmp_path: Path) -> None:
    train_bpe([], 258, tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert sorted(tokenizer.token_bytes(i) for i in range(2, 258)) == [bytes([byte]) for byte in range(256)]
    with pytest.raises(ConfigError, match="vocab_size must be at least 258"):
        train_bpe([], 257, tmp_path)


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(ResourceError, match="could not be written: File exists"):
        train_bpe([], 258, tmp_path / "file")
    (tmp_path / "out" / "tokenizer_config.json.partial").mkdir(parents=True)
    with pytest.raises(ResourceError, match="could not be written: Is a directory"):
        train_bpe([], 258, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tokenizer_config.json.partial"]


def test_words_are_learned_and_digits_stay_single(tiny: Tokenizer) -> None:
    assert len(tiny.encode(" the water")) < len(" the water") / 2
    assert len(tiny.encode("20242024")) == 8


@given(st.text())
def test_any_text_comes_back(tiny: Tokenizer, text: str) -> None:
    assert tiny.decode(tiny.encode(text), skip_special_tokens=False) == text
    assert not tiny.control_ids & set(tiny.encode(text))


def test_transformers_reads_the_folder_alike(tmp_path: Path) -> None:
    """The class named in tokenizer_config.json does not change what tokenizer.json says."""
    make_tiny_tokenizer(tmp_path)
    tiny, oracle = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    random_ = random.Random(11)
    for _ in range(200):
        text = fuzz_text(random_)
        assert tiny.encode(text, parse_special=True) == oracle.encode(text, add_special_tokens=False)
    messages = [{"role": "user", "content": "How deep?"}, {"role": "assistant", "content": "Seven."}]
    assert list(tiny.render(messages)) == oracle.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
