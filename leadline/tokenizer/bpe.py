"""Training a byte-level BPE tokenizer with DeepSeek-V2's pre-tokenizer (section 3.1.1: byte-level BPE, trained once).

The splits are those of the official tokenizer.json: each newline alone, runs of cased letters with the space before them,
runs of punctuation, trailing spaces, runs of CJK, single digits. All 256 bytes are in the vocabulary, so that every text
has ids and every id has exact bytes. The same texts in the same order always give the same files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as RustTokenizer

from leadline.errors import ConfigError
from leadline.tokenizer.template import V2_TEMPLATE

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
FIM_HOLE = "<｜fim▁hole｜>"
FIM_BEGIN = "<｜fim▁begin｜>"
FIM_END = "<｜fim▁end｜>"

# Letters that have a case (Unicode's L&, as the official file lists them).
CASED_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376"
    "\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    "\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
PUNCTUATION = "!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002"
CJK = "\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff"


def v2_pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """The official tokenizer's splits, in its order, then bytes."""
    patterns = ("[\r\n]", rf"\s?[{CASED_LETTERS}]+", rf"\s?[{PUNCTUATION}]+", r"\s+$", f"[{CJK}]+")
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    digits = pre_tokenizers.Digits(individual_digits=True)
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)
    return pre_tokenizers.Sequence([*splits, digits, as_bytes])


def v2_pipeline() -> RustTokenizer:
    """An untrained tokenizer with everything of V2's but its vocabulary."""
    tokenizer = RustTokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.pre_tokenizer = v2_pre_tokenizer()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=True, trim_offsets=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=True)
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

    BOS is id 0, EOS and padding id 1; with `fim` the hole, begin and end tokens are 2, 3 and 4. Texts are split at their
    newlines like everything else, so a text may be a line or a whole document.
    """
    control = [BOS, EOS, *([FIM_HOLE, FIM_BEGIN, FIM_END] if fim else [])]
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
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "tokenizer.json", tokenizer.to_str(pretty=True))
    _write(out / "tokenizer_config.json", json.dumps(_tokenizer_config(model_max_length), ensure_ascii=False, indent=2))
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
        "chat_template": V2_TEMPLATE,
    }


def _added_token(content: str) -> dict[str, object]:
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    return {"__type": "AddedToken", "content": content, **flags}


def _write(path: Path, text: str) -> None:
    """Write whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)
