"""`leadline tokenizer encode | decode | train`: look at a tokenizer's ids, or make a new tokenizer."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App

from leadline.errors import DataError, InvalidRequest, ModelNotFound

if TYPE_CHECKING:
    from leadline.tokenizer import Tokenizer

app = App(name="tokenizer", help="Encode, decode and train tokenizers.")


@app.command
def encode(
    text: str | None = None,
    /,
    *,
    model: str | None = None,
    parse_special: bool = False,
    add_special_tokens: bool = False,
) -> None:
    """Print the ids of a text on one line.

    Args:
        text: The text; read from standard input, to the last byte, when it is missing.
        model: A folder with a tokenizer.json; the embedded model's by default.
        parse_special: Take what spells a control token for the control token.
        add_special_tokens: Put BOS before it, as a raw completion does, and warn of control strings.
    """
    tokenizer = _tokenizer(model)
    text = _standard_input() if text is None else text
    if not add_special_tokens:
        print(*tokenizer.encode(text, parse_special=parse_special))
        return
    prompt = tokenizer.encode_prompt(text, parse_special=parse_special)
    for warning in prompt.warnings:
        print(f"leadline: warning: {warning}", file=sys.stderr)
    print(*prompt.ids)


@app.command
def decode(ids: tuple[int, ...] = (), /, *, model: str | None = None, skip_special_tokens: bool = True) -> None:
    """Print the text of ids.

    Args:
        ids: The ids; read from standard input, with spaces or commas between, when there are none.
        model: A folder with a tokenizer.json; the embedded model's by default.
        skip_special_tokens: Leave control tokens out of the text.
    """
    tokenizer = _tokenizer(model)
    print(tokenizer.decode(ids or _ids(_standard_input()), skip_special_tokens=skip_special_tokens))


@app.command
def train(
    files: tuple[Path, ...],
    /,
    *,
    out: Path,
    vocab_size: int = 4096,
    fim: bool = False,
    min_frequency: int = 2,
    max_token_length: int | None = None,
    model_max_length: int = 4096,
) -> None:
    """Train a byte-level BPE tokenizer with DeepSeek-V2's splits and chat template.

    Args:
        files: Texts: .jsonl with a "text" in each line, anything else as plain UTF-8 text.
        out: The folder for tokenizer.json and tokenizer_config.json.
        vocab_size: Tokens to have in the end, control tokens and all 256 bytes included.
        fim: Include the fill-in-the-middle control tokens.
        min_frequency: How often a pair must occur to become a token.
        max_token_length: The longest token, in bytes; unlimited by default.
        model_max_length: The context length to write into tokenizer_config.json.
    """
    from leadline.tokenizer import Tokenizer, train_bpe

    for path in files:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
    train_bpe(
        _texts(files),
        vocab_size,
        out,
        fim=fim,
        min_frequency=min_frequency,
        max_token_length=max_token_length,
        model_max_length=model_max_length,
    )
    print(f"{out}: {len(Tokenizer.from_folder(out))} tokens")


def _tokenizer(model: str | None) -> Tokenizer:
    from leadline.checkpoint.source import Folder, find_source
    from leadline.tokenizer import Tokenizer

    source = find_source(model)
    if not isinstance(source, Folder):
        raise ModelNotFound(f"{model}: no such folder; a tokenizer is read from a folder on this machine")
    return Tokenizer.from_folder(source.path)


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"standard input is not UTF-8: byte {error.start}") from None


def _ids(text: str) -> list[int]:
    words = text.replace(",", " ").split()
    wrong = next((word for word in words if not word.isdecimal()), None)
    if wrong is not None:
        raise InvalidRequest(f"{wrong!r} is not a token id")
    return list(map(int, words))


def _texts(files: Sequence[Path]) -> Iterator[str]:
    """Line by line, so that a corpus need not fit in memory."""
    for path in files:
        with path.open(encoding="utf-8", newline="") as lines:
            try:
                for number, line in enumerate(lines, 1):
                    yield _text(path, number, line) if path.suffix == ".jsonl" else line
            except UnicodeDecodeError:
                raise DataError(f"{path}: not UTF-8") from None


def _text(path: Path, number: int, line: str) -> str:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise DataError(f'{path}:{number}: not a JSON object with a "text"')
    return str(row["text"])
