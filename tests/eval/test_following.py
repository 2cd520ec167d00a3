"""Each instruction with an answer that follows it and one that does not."""

from __future__ import annotations

from typing import Any

import pytest

from leadline.errors import DataError
from leadline.eval.following import CHECKS, follows, follows_loosely

CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "keywords:existence": ({"keywords": ["rope", "sea"]}, "A Rope at sea.", "A roper at sea."),
    "keywords:forbidden_words": ({"forbidden_words": ["sea"]}, "A seal.", "The Sea."),
    "keywords:frequency": ({"keyword": "sea", "frequency": 2, "relation": "at least"}, "Sea, sea.", "sea"),
    "keywords:letter_frequency": ({"letter": "q", "let_frequency": 2, "let_relation": "less than"}, "q", "Qq"),
    "length_constraints:number_words": ({"num_words": 3, "relation": "at least"}, "it's all one", "a b"),
    "length_constraints:number_sentences": ({"num_sentences": 2, "relation": "less than"}, "One. ", "One. Two?"),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        "a\n\nThen b",
        "a\n\nb then",
    ),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "- a\n* b", "- a"),
    "detectable_format:number_highlighted_sections": ({"num_highlights": 2}, "*a* and **b**", "*a*"),
    "detectable_format:multiple_sections": (
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\na\nSection 2\nb",
        "Section 1",
    ),
    "detectable_format:json_format": ({}, '```json\n{"a": 1}\n```', "{a: 1}"),
    "detectable_format:title": ({}, "<<Depth>>\na", "<< >>"),
    "detectable_format:constrained_response": ({}, "My answer is maybe.", "Maybe."),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, "[name] [place]", "[name]"),
    "detectable_content:postscript": ({"postscript_marker": "P.S."}, "a\nP. S. b", "a\nb"),
    "language:response_language": ({"language": "ru"}, "Глубина моря", "The depth"),
    "combination:repeat_prompt": ({"prompt_to_repeat": "How deep?"}, "how deep? Seven.", "Seven."),
    "combination:two_responses": ({}, "a\n******\nb", "a\n******\na"),
    "change_case:english_capital": ({}, "DEEP 7", "DEEp"),
    "change_case:english_lowercase": ({}, "deep 7", "Deep"),
    "change_case:capital_word_frequency": (
        {"capital_frequency": 1, "capital_relation": "at least"},
        "It is DEEP",
        "It is deep",
    ),
    "punctuation:no_comma": ({}, "a. b", "a，b"),
    "startend:end_checker": ({"end_phrase": "That is all."}, 'So. That is ALL."', "That is all. Or?"),
    "startend:quotation": ({}, '"deep"', '"deep'),
}


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_every_instruction(name: str) -> None:
    arguments, right, wrong = CASES[name]
    assert follows(right, [name], [arguments])
    assert not follows(wrong, [name], [arguments])
    assert not follows("  ", [name], [arguments])


def test_arguments_that_are_null_are_not_given() -> None:
    assert follows("abc", ["punctuation:no_comma"], [{"num_words": None}])


@pytest.mark.parametrize(
    ("language", "text"),
    [("zh", "水有多深"), ("ja", "水の深さはいくつ"), ("ko", "물은 깊다"), ("de", "Wie tief?"), ("hi", "पानी")],
)
def test_languages_by_their_script(language: str, text: str) -> None:
    assert follows(text, ["language:response_language"], [{"language": language}])
    assert follows("water", ["language:response_language"], [{"language": language}]) is (language == "de")


def test_loosely_a_polite_line_is_no_disobedience() -> None:
    names: list[str] = ["change_case:english_lowercase"]
    arguments: list[dict[str, Any]] = [{}]
    for answer in ("Sure!\nthe sea is deep", "the sea is deep\nBye!", "Sure!\nthe sea\nBye!"):
        assert not follows(answer, names, arguments)
        assert follows_loosely(answer, names, arguments)
    assert follows_loosely('*"deep"*', ["startend:quotation"], [{}])
    assert not follows_loosely("The Sea", names, arguments)


def test_an_unknown_instruction_is_said() -> None:
    with pytest.raises(DataError, match="unknown instruction 'sing:loudly'"):
        follows("la", ["sing:loudly"], [{}])
