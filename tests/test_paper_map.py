"""docs/paper-map.md points at code that exists and forgets no equation."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.source import ROOT, tree

TEXT = (ROOT / "docs/paper-map.md").read_text(encoding="utf-8")
ENTRIES = sorted(set(re.findall(r"`([\w/]+\.py)::([\w.]+)`", TEXT)))
LAST_EQUATION = 47


def defined(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    """Dotted names of the classes, functions, methods and constants of a module."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield f"{prefix}{node.name}"
            yield from defined(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}{node.name}"
        elif isinstance(node, ast.Assign):
            yield from (f"{prefix}{target.id}" for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield f"{prefix}{node.target.id}"


@pytest.mark.parametrize(("file", "symbol"), ENTRIES)
def test_every_entry_resolves(file: str, symbol: str) -> None:
    assert symbol in set(defined(tree(ROOT / file).body))


def test_every_row_is_an_entry_or_not_yet() -> None:
    here, not_yet = TEXT.split("## Not yet")
    rows = [line for line in here.splitlines() if re.match(r"\| (\d|app)", line)]
    assert len(rows) >= 30
    assert all(re.search(r"`[\w/]+\.py::[\w.]+` \|$", row) for row in rows)
    assert "::" not in not_yet


def test_every_equation_is_accounted_for() -> None:
    found: set[int] = set()
    for column in re.findall(r"^\| ([^|]*eq\.[^|]*) \|", TEXT, re.MULTILINE):
        for first, last in re.findall(r"(\d+)(?:-(\d+))?", column.partition("eq.")[2]):
            found |= set(range(int(first), int(last or first) + 1))
    assert found == set(range(1, LAST_EQUATION + 1))


def test_every_format_of_the_appendix_is_accounted_for() -> None:
    found: set[int] = set()
    for first, last in re.findall(r"^\| 3\.2, app\. G, tables? (\d+)(?:-(\d+))? \|", TEXT, re.MULTILINE):
        found |= set(range(int(first), int(last or first) + 1))
    assert found == set(range(12, 38))
