"""A tokenizer's files: tokenizer.json, tokenizer_config.json and chat_template.jinja, read and checked.

Only what the files say about the vocabulary counts; `tokenizer_class` is never looked at.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from leadline.errors import TokenizerError
from leadline.tokenizer import pretokenizer
from leadline.tokenizer.control import BOS, EOS

_UNLIMITED = 10**12  # transformers writes 1e30 for "no limit"


@dataclasses.dataclass(frozen=True, slots=True)
class TokenizerFiles:
    name: str  # where it was read, for error messages
    data: Mapping[str, Any]  # tokenizer.json
    bos_token: str
    eos_token: str
    pad_token: str
    add_bos: bool
    model_max_length: int | None
    chat_template: str | None  # Jinja source

    @property
    def added_tokens(self) -> list[Mapping[str, Any]]:
        return list(self.data.get("added_tokens") or ())


def read_files(folder: Path) -> TokenizerFiles:
    """Read a folder, or the folder of a tokenizer.json."""
    folder = folder.parent if folder.name == "tokenizer.json" else folder
    data = _read_json(folder / "tokenizer.json")
    config_path = folder / "tokenizer_config.json"
    config = _read_json(config_path) if config_path.exists() else {}
    _check_kind(data, folder)
    eos_token = _token_name(config, "eos_token") or EOS
    length = config.get("model_max_length")
    return TokenizerFiles(
        name=str(folder / "tokenizer.json"),
        data=data,
        bos_token=_token_name(config, "bos_token") or BOS,
        eos_token=eos_token,
        pad_token=_token_name(config, "pad_token") or eos_token,
        add_bos=config.get("add_bos_token") is not False,
        model_max_length=int(length) if isinstance(length, int | float) and 0 < length < _UNLIMITED else None,
        chat_template=_chat_template(folder, config),
    )


def plain_vocabulary(files: TokenizerFiles) -> tuple[RustTokenizer, bool]:
    """The vocabulary without control tokens, and whether long texts may be encoded in `pretokenizer.chunks`."""
    names = {str(token["content"]) for token in files.added_tokens}
    model = dict(files.data["model"])
    model["vocab"] = {token: token_id for token, token_id in model["vocab"].items() if token not in names}
    model["dropout"] = None
    data = dict(files.data, model=model, added_tokens=[], post_processor=None, truncation=None, padding=None)
    data["pre_tokenizer"] = pretokenizer.linear(files.data.get("pre_tokenizer"))
    try:
        tokenizer = RustTokenizer.from_str(json.dumps(data))
    except Exception as error:  # the library raises Exception itself
        raise TokenizerError(f"{files.name}: cannot be read: {error}") from None
    normalizer = files.data.get("normalizer")
    unnormalized = not normalizer or normalizer == {"type": "Sequence", "normalizers": []}
    return tokenizer, unnormalized and pretokenizer.is_v2(files.data.get("pre_tokenizer"))


def token_bytes(files: TokenizerFiles) -> list[bytes]:
    """Each id's bytes; an id that the files leave out stands for none."""
    alphabet = byte_alphabet()
    ids = dict(files.data["model"]["vocab"])
    ids.update((str(token["content"]), int(token["id"])) for token in files.added_tokens)
    table = [b""] * (max(ids.values()) + 1)
    for token, token_id in ids.items():
        try:
            table[token_id] = bytes([alphabet[character] for character in token])
        except KeyError:  # a control token: its name has characters that stand for no byte
            table[token_id] = token.encode()
    return table


def byte_alphabet() -> dict[str, int]:
    """The character that byte-level BPE writes for each byte: itself if visible, else the next from U+0100."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + rank): byte for rank, byte in enumerate(hidden)}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TokenizerError(f"{path}: no such file; a model folder needs it") from None
    except OSError as error:
        raise TokenizerError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: not JSON: {error}") from None
    if not isinstance(data, dict):
        raise TokenizerError(f"{path}: not a JSON object")
    return data


def _check_kind(data: Mapping[str, Any], folder: Path) -> None:
    """Only a byte-level BPE has exact bytes for every id."""
    model, decoder = data.get("model"), data.get("decoder")
    kind = model.get("type") if isinstance(model, dict) else None
    decoding = decoder.get("type") if isinstance(decoder, dict) else None
    if kind != "BPE" or decoding != "ByteLevel":
        raise TokenizerError(f"{folder / 'tokenizer.json'}: not a byte-level BPE (model {kind}, decoder {decoding})")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict) or not vocab or not all(_is_id(value) for value in vocab.values()):
        raise TokenizerError(f"{folder / 'tokenizer.json'}: the vocabulary must give each token its id")
    added = data.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) and _is_added(token) for token in added):
        raise TokenizerError(f"{folder / 'tokenizer.json'}: added_tokens must have contents and ids")


def _is_id(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < 1 << 24


def _is_added(token: Mapping[str, object]) -> bool:
    return bool(token.get("content")) and isinstance(token["content"], str) and _is_id(token.get("id"))


def _token_name(config: Mapping[str, Any], key: str) -> str | None:
    """A control token's name in either spelling: a string, or an AddedToken's dictionary."""
    value = config.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The template's source: a file of its own, a string, or the default of a list of named ones."""
    path = folder / "chat_template.jinja"
    if path.exists():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerError(f"{path}: cannot be read: {error}") from None
    value = config.get("chat_template")
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None
