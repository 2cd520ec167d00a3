"""DeepSeek-V2's pre-tokenizer, and how to walk through long texts with it.

The splits are those of the official tokenizer.json: each newline alone, runs of cased letters with the space before
them, runs of punctuation, trailing whitespace, runs of CJK, single digits; then bytes. Two things are added for texts
that strangers send, and neither changes an id: the pattern for trailing whitespace is given a linear form, and a long
text is cut where the splits cut it anyway, so that memory stays small and counting can stop early.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tokenizers import Regex, pre_tokenizers

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
TRAILING_SPACE = r"\s+$"
# The same matches in linear time: a run of whitespace is tried at its first character only and never shortened.
# Without it 30,000 tabs before a digit take four seconds, and ten times as many a hundred times as long.
TRAILING_SPACE_LINEAR = r"(?<!\s)\s++$"

# Places where the splits always cut: after a newline or a digit; between an ASCII letter and an ASCII character that is
# none; between punctuation and an ASCII letter or digit, a space or a CJK character.
_CUT = re.compile(
    r"(?<=[\r\n0-9])"
    r"|(?<=[A-Za-z])(?=[\t -@\[-`{-~])"
    r"|(?<=[!-/:-@\[-`{-~，。！？；：、])(?=[A-Za-z0-9 \u4e00-\u9fa5])"
)
CHUNK = 1 << 16


def v2_pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """The official tokenizer's splits, in its order, then bytes."""
    patterns = ("[\r\n]", rf"\s?[{CASED_LETTERS}]+", rf"\s?[{PUNCTUATION}]+", TRAILING_SPACE, f"[{CJK}]+")
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    digits = pre_tokenizers.Digits(individual_digits=True)
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)
    return pre_tokenizers.Sequence([*splits, digits, as_bytes])


def is_v2(pre_tokenizer: Any) -> bool:
    """Whether this part of a tokenizer.json is V2's pre-tokenizer, the one that `chunks` knows."""
    return bool(pre_tokenizer == json.loads(v2_pre_tokenizer().__getstate__()))


def linear(pre_tokenizer: Any) -> Any:
    """The same splits, with every pattern for trailing whitespace in its linear form."""
    if isinstance(pre_tokenizer, dict):
        return {key: linear(value) for key, value in pre_tokenizer.items()}
    if isinstance(pre_tokenizer, list):
        return [linear(value) for value in pre_tokenizer]
    return TRAILING_SPACE_LINEAR if pre_tokenizer == TRAILING_SPACE else pre_tokenizer


def chunks(text: str, size: int = CHUNK) -> Iterator[str]:
    """Parts of `text` of at least `size` characters whose ids, one after the other, are the ids of the whole."""
    start = 0
    while len(text) - start > size and (cut := _CUT.search(text, start + size)):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]
