"""Did the answer do what it was told? Instructions that a program can check, under the names of IFEval's data.

`follows` is strict; `follows_loosely` also takes an answer without its first or last line or without asterisks, since
"Sure, here it is:" is no disobedience. Both also serve as rewards. Languages are told apart by their script, so those
that share the Latin one are not.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from leadline.errors import DataError

Check = Callable[..., bool]
CHECKS: dict[str, Check] = {}

SCRIPTS = {
    "ARABIC": ("ar", "fa", "ur"),
    "BENGALI": ("bn",),
    "CJK": ("zh",),
    "CYRILLIC": ("bg", "ru", "uk"),
    "DEVANAGARI": ("hi", "mr", "ne"),
    "GUJARATI": ("gu",),
    "GURMUKHI": ("pa",),
    "HANGUL": ("ko",),
    "HIRAGANA": ("ja",),
    "KANNADA": ("kn",),
    "TAMIL": ("ta",),
    "TELUGU": ("te",),
    "THAI": ("th",),
}
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def follows(answer: str, names: Sequence[str], arguments: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every instruction is followed. An empty answer follows none."""
    return bool(answer.strip()) and all(
        _check(name)(answer, **{key: value for key, value in given.items() if value is not None})
        for name, given in zip(names, arguments, strict=True)
    )


def follows_loosely(answer: str, names: Sequence[str], arguments: Sequence[Mapping[str, Any]]) -> bool:
    return any(follows(variant, names, arguments) for variant in variants(answer))


def variants(answer: str) -> Iterator[str]:
    lines = answer.split("\n")
    for text in (answer, "\n".join(lines[1:]), "\n".join(lines[:-1]), "\n".join(lines[1:-1])):
        yield text.strip()
        yield text.replace("*", "").strip()


def _check(name: str) -> Check:
    if name not in CHECKS:
        raise DataError(f"unknown instruction {name!r}; known are {', '.join(sorted(CHECKS))}")
    return CHECKS[name]


def check(name: str) -> Callable[[Check], Check]:
    def register(function: Check) -> Check:
        CHECKS[name] = function
        return function

    return register


def _holds(count: int, relation: str, wanted: int) -> bool:
    return count < wanted if relation == "less than" else count >= wanted


def words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’-]\w+)*", text)


def sentences(text: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.!?。！？])\s*", text.strip()) if words(part)]


def _occurrences(word: str, text: str) -> int:
    return len(re.findall(rf"\b{re.escape(word)}\b", text, re.IGNORECASE))


# ---- keywords and letters -----------------------------------------------------------------------------------------


@check("keywords:existence")
def _existence(answer: str, keywords: list[str]) -> bool:
    return all(_occurrences(word, answer) for word in keywords)


@check("keywords:forbidden_words")
def _forbidden(answer: str, forbidden_words: list[str]) -> bool:
    return not any(_occurrences(word, answer) for word in forbidden_words)


@check("keywords:frequency")
def _frequency(answer: str, keyword: str, frequency: int, relation: str) -> bool:
    return _holds(_occurrences(keyword, answer), relation, int(frequency))


@check("keywords:letter_frequency")
def _letters(answer: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _holds(answer.lower().count(letter.lower()), let_relation, int(let_frequency))


# ---- lengths ------------------------------------------------------------------------------------------------------


@check("length_constraints:number_words")
def _word_count(answer: str, num_words: int, relation: str) -> bool:
    return _holds(len(words(answer)), relation, int(num_words))


@check("length_constraints:number_sentences")
def _sentence_count(answer: str, num_sentences: int, relation: str) -> bool:
    return _holds(len(sentences(answer)), relation, int(num_sentences))


@check("length_constraints:number_paragraphs")
def _paragraphs(answer: str, num_paragraphs: int) -> bool:
    return len([part for part in re.split(r"\s*\*\*\*\s*", answer.strip()) if part]) == int(num_paragraphs)


@check("length_constraints:nth_paragraph_first_word")
def _first_word(answer: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = [part.strip() for part in answer.split("\n\n") if part.strip()]
    if len(parts) != int(num_paragraphs) or int(nth_paragraph) > len(parts):
        return False
    opening = words(parts[int(nth_paragraph) - 1])
    return bool(opening) and opening[0].lower() == first_word.lower()


# ---- forms --------------------------------------------------------------------------------------------------------


@check("detectable_format:number_bullet_lists")
def _bullets(answer: str, num_bullets: int) -> bool:
    return len(re.findall(r"^\s*(?:\*(?!\*)|-)\s*\S", answer, re.MULTILINE)) == int(num_bullets)


@check("detectable_format:number_highlighted_sections")
def _highlights(answer: str, num_highlights: int) -> bool:
    return len(re.findall(r"\*\*[^\n*]*\S[^\n*]*\*\*|\*[^\n*]*\S[^\n*]*\*", answer)) >= int(num_highlights)


@check("detectable_format:multiple_sections")
def _sections(answer: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"\b{re.escape(section_spliter.strip())}\s?\d+", answer)) >= int(num_sections)


@check("detectable_format:json_format")
def _json(answer: str) -> bool:
    text = re.sub(r"^```(?:json)?\s*|\s*```$", "", answer.strip(), flags=re.IGNORECASE)
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@check("detectable_format:title")
def _title(answer: str) -> bool:
    return any(found.strip(" <>") for found in re.findall(r"<<[^\n]+>>", answer))


@check("detectable_format:constrained_response")
def _constrained(answer: str) -> bool:
    return any(option in answer for option in OPTIONS)


# ---- contents -----------------------------------------------------------------------------------------------------


@check("detectable_content:number_placeholders")
def _placeholders(answer: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[[^\]]+\]", answer)) >= int(num_placeholders)


@check("detectable_content:postscript")
def _postscript(answer: str, postscript_marker: str) -> bool:
    marker = re.sub(r"[\s.]", "", postscript_marker).lower()
    lines = (re.sub(r"[\s.]", "", line).lower() for line in answer.splitlines())
    return any(line.startswith(marker) and len(line) > len(marker) for line in lines)


@check("language:response_language")
def _language(answer: str, language: str) -> bool:
    letters = [unicodedata.name(char, "") for char in answer if char.isalpha()]
    script = next((script for script, languages in SCRIPTS.items() if language in languages), "LATIN")
    return bool(letters) and sum(_in_script(name, script) for name in letters) > len(letters) / 2


def _in_script(name: str, script: str) -> bool:
    """Japanese is written in three."""
    return name.startswith(("HIRAGANA", "KATAKANA", "CJK") if script == "HIRAGANA" else script)


@check("combination:repeat_prompt")
def _repeat(answer: str, prompt_to_repeat: str) -> bool:
    return answer.strip().lower().startswith(prompt_to_repeat.strip().lower())


@check("combination:two_responses")
def _two(answer: str) -> bool:
    parts = [part.strip() for part in answer.split("******")]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


# ---- case, punctuation, ends --------------------------------------------------------------------------------------


@check("change_case:english_capital")
def _capital(answer: str) -> bool:
    return answer.isupper()


@check("change_case:english_lowercase")
def _lowercase(answer: str) -> bool:
    return answer.islower()


@check("change_case:capital_word_frequency")
def _capital_words(answer: str, capital_frequency: int, capital_relation: str) -> bool:
    return _holds(sum(word.isupper() for word in words(answer)), capital_relation, int(capital_frequency))


@check("punctuation:no_comma")
def _no_comma(answer: str) -> bool:
    return "," not in answer and "，" not in answer


@check("startend:end_checker")
def _end(answer: str, end_phrase: str) -> bool:
    return answer.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@check("startend:quotation")
def _quotation(answer: str) -> bool:
    text = answer.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'
