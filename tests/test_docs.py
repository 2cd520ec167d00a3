"""The documents' links and paths lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.source import ROOT, files

PAGES = [path for path in files(".md") if path.name != "CHANGELOG.md"]
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")
SOURCE = re.compile(r"`((?:leadline|tests|docs|recipes|benchmarks)/[\w./-]+)`")


TEST = re.compile(r"`(tests/[\w./-]+\.py)::(test_\w+)`")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [page.parent / target for target in LINK.findall(text)]
    sources = [ROOT / target for target in SOURCE.findall(text)]
    assert [name(path.resolve()) for path in [*links, *sources] if not path.exists()] == []


def test_the_tests_that_are_named_are_there() -> None:
    named = [each for page in PAGES for each in TEST.findall(page.read_text(encoding="utf-8"))]
    assert len(named) > 15
    missing = [(file, test) for file, test in named if f"def {test}(" not in (ROOT / file).read_text(encoding="utf-8")]
    assert missing == []


def test_the_house_is_drawn_as_it_stands() -> None:
    """Every folder of the package is in the drawing of docs/architecture.md, and nothing else."""
    drawing = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").split("```")[1]
    drawn = set(re.findall(r"^  (\w+)/", drawing, re.MULTILINE))
    rooms = {path.parent.name for path in (ROOT / "leadline").glob("*/*.py")}
    assert rooms == drawn
