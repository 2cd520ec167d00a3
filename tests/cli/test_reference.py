"""docs/cli.md is what the commands say of themselves."""

from __future__ import annotations

from leadline.cli import VERBS
from tests.cli.reference import PAGE, reference


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "run `make docs`"


def test_every_verb_and_every_option_is_explained() -> None:
    text = reference()
    assert all(f"## leadline {verb}" in text for verb in VERBS)
    bare = [line for line in text.splitlines() if line.startswith("* `") and "`:" not in line and "](" not in line]
    assert bare == [], "options without a word in their verb's Args section"
