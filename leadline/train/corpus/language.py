"""Which language a document is in, by its script and, between languages in Latin letters, by its commonest words."""

from __future__ import annotations

import re

LANGUAGES = ("en", "zh", "other")
HAN, KANA, LATIN = re.compile(r"[\u3400-\u9fff]"), re.compile(r"[\u3040-\u30ff]"), re.compile(r"[A-Za-z]")
SAMPLE = 20_000  # characters
ENOUGH_WORDS = 30
"""From so many words on, a text without English's own is another language's."""
FUNCTION_WORDS = frozenset(
    "the of and a to in is was it that he for on are with as i his they be at one have this from or had by but not "
    "what all were we when your can said there use an each which she do how their if will you".split()
)
LEAST_FUNCTION_WORDS = 0.15
LEAST_SHARE = 0.5


def language_of(text: str) -> str:
    """`zh` where most letters are Han and almost none kana, `en` where they are Latin and the words English."""
    text = text[:SAMPLE]
    han, kana, latin = (len(script.findall(text)) for script in (HAN, KANA, LATIN))
    letters = sum(ch.isalpha() for ch in text)
    if han + kana > LEAST_SHARE * letters and letters:
        return "zh" if kana * 10 < han else "other"
    if latin <= LEAST_SHARE * letters:
        return "other"
    words = re.findall(r"[A-Za-z']+", text.lower())
    english = sum(word in FUNCTION_WORDS for word in words)
    return "en" if len(words) < ENOUGH_WORDS or english >= LEAST_FUNCTION_WORDS * len(words) else "other"
