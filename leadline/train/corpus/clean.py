"""Normalisation, and the filters that a document must pass."""

from __future__ import annotations

import re
import unicodedata

from leadline.train.corpus.read import Document
from leadline.train.corpus.recipe import CorpusRecipe, SourceSpec

COMMON = frozenset(" \n.,;:!?'\"()-")


def clean_text(text: str) -> str:
    """NFC, no control characters, single spaces, at most one empty line, nothing at the ends."""
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\u2028", "\n").replace("\u2029", "\n\n")
    text = "".join(ch for ch in text if ch == "\n" or ch == "\t" or unicodedata.category(ch) not in ("Cc", "Cf", "Co"))
    text = re.sub(r"[^\S\n]+", " ", text)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" ?\n ?", "\n", text)).strip()


def clean_markdown(text: str) -> str:
    """Markdown's marks and the licence pages of digitised books taken away; the words stay."""
    text = re.sub(r"(?s)^.*?\*\*\* ?START OF TH.*?\*\*\*|\*\*\* ?END OF TH.*$", "", text)
    text = re.sub(r"(?m)^(#+|>|[-*_]{3,}\s*$)\s*", "", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"(\*\*|__|(?<!\w)[*_](?=\w)|(?<=[\w.,!?])[*_](?!\w))", "", text)


def clean_document(document: Document, recipe: CorpusRecipe, source: SourceSpec) -> tuple[Document, str]:
    """The document as it will be encoded, and why it is left out, or nothing."""
    if isinstance(document, list):
        turns = [{"role": turn["role"], "content": clean_text(turn["content"])} for turn in document]
        return turns, "" if all(turn["content"] for turn in turns) else "short"
    text = clean_text(clean_markdown(document) if source.format == "markdown" else document)
    return text, fault(text, recipe, source)


def fault(text: str, recipe: CorpusRecipe, source: SourceSpec) -> str:
    """`short`, `odd`, `repeated`, or nothing."""
    if len(text) < max(recipe.min_chars, source.min_chars):
        return "short"
    if sum(not (ch.isalnum() or ch in COMMON) for ch in text) > recipe.max_odd * len(text):
        return "odd"
    return "repeated" if repeated_lines(text) > recipe.max_repeated_lines else ""


def repeated_lines(text: str) -> float:
    """Share of the characters in lines that the text has had before: menus, refrains, broken extraction."""
    seen: set[str] = set()
    again = total = 0
    for line in filter(None, text.split("\n")):
        total += len(line)
        again += len(line) if line in seen else 0
        seen.add(line)
    return again / max(1, total)
