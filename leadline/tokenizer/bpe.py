"""Training a byte-level BPE tokenizer with DeepSeek-V2's pre-tokenizer (section 3.1.1: byte-level BPE, trained once).

All 256 bytes are in the vocabulary, so every text has ids and every id has exact bytes. The same texts in the same
order always give the same files.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as RustTokenizer

from leadline.errors import ConfigError, ResourceError
from leadline.tokenizer.control import BOS, EOS, FIM_BEGIN, FIM_END, FIM_HOLE
from leadline.tokenizer.pretokenizer import v2_pre_tokenizer
from leadline.tokenizer.template import V2_JINJA


def v2_pipeline() -> RustTokenizer:
    """An untrained tokenizer with everything of V2's but its vocabulary."""
    tokenizer = RustTokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.pre_tokenizer = v2_pre_tokenizer()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=True, trim_offsets=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    out: Path,
    *,
    fim: bool = False,
    min_frequency: int = 2,
    max_token_length: int | None = None,
    model_max_length: int = 4096,
) -> RustTokenizer:
    """Learn `vocab_size` tokens (control tokens and bytes included) and write the tokenizer's two files into `out`.

    BOS is id 0, EOS and padding id 1; with `fim` the hole, begin and end tokens are 2, 3 and 4. The pre-tokenizer
    splits at newlines, so a text may be a line or a whole document.
    """
    control = [BOS, EOS, *((FIM_HOLE, FIM_BEGIN, FIM_END) if fim else ())]
    if vocab_size < 256 + len(control):
        raise ConfigError(
            f"vocab_size must be at least {256 + len(control)}: all bytes and {len(control)} control tokens"
        )
    tokenizer = v2_pipeline()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[AddedToken(text, special=True, normalized=True) for text in control],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=max_token_length,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    config = json.dumps(_tokenizer_config(model_max_length), ensure_ascii=False, indent=2)
    _write(out, {"tokenizer.json": tokenizer.to_str(pretty=True), "tokenizer_config.json": config})
    return tokenizer


def _tokenizer_config(model_max_length: int) -> dict[str, object]:
    """The config beside it. The class is named truly: a Llama class would replace the byte-level splits."""
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": _added_token(BOS),
        "clean_up_tokenization_spaces": False,
        "eos_token": _added_token(EOS),
        "model_max_length": model_max_length,
        "pad_token": _added_token(EOS),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
        "chat_template": V2_JINJA,
    }


def _added_token(content: str) -> dict[str, object]:
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    return {"__type": "AddedToken", "content": content, **flags}


def _write(folder: Path, texts: Mapping[str, str]) -> None:
    """Write each file whole or none of them."""
    partial = {folder / name: folder / f"{name}.partial" for name in texts}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in zip(partial.values(), texts.values(), strict=True):
            path.write_text(text + "\n", encoding="utf-8")
        for final, path in partial.items():
            path.replace(final)
    except OSError as error:
        raise ResourceError(f"{folder}: the tokenizer could not be written: {error.strerror}") from None
    finally:
        for path in partial.values():
            with contextlib.suppress(OSError):
                path.unlink()
