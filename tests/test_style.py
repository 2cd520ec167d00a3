"""Budgets and manners of the source that a reader relies on and a linter does not know."""

from __future__ import annotations

import ast
import re
import statistics
from pathlib import Path

import pytest

from tests.source import PACKAGE, ROOT, body_lines, files, functions, modules, tree

MAX_FILE = 500
MAX_FUNCTION = 40
LONG_FUNCTION = 30
MAX_LONG_SHARE = 0.02
MAX_MEDIAN = 9

# Written in pieces, so that this file does not name them either.
PRIVATE = re.compile(
    "|".join(
        [
            r"(?<![\w.~-])/(?:work|root)/",
            r"/opt/(?:pypi|wheels)",
            r"\bissue #\d",
            r"files\.python" + "hosted",
            r"\bpypi\." + "org",
            r"\bhelper \"",
        ]
    )
)
TEXT = (".py", ".md", ".toml", ".txt", ".cff", ".cfg", ".yml", ".yaml", ".json", ".sh", "Makefile", "run", ".cpp", ".h")
LENGTHS = {
    f"{path.relative_to(ROOT)}:{function.name}": body_lines(function)
    for path in modules().values()
    for function in functions(path)
}


@pytest.mark.parametrize("module", list(modules()))
def test_files_are_short_and_say_what_they_are(module: str) -> None:
    text = modules()[module].read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_FILE
    assert not text.strip() or ast.get_docstring(tree(modules()[module])), "a module begins with its docstring"


def test_functions_are_short() -> None:
    assert {name: lines for name, lines in LENGTHS.items() if lines > MAX_FUNCTION} == {}
    assert sum(lines > LONG_FUNCTION for lines in LENGTHS.values()) <= MAX_LONG_SHARE * len(LENGTHS)
    assert statistics.median(LENGTHS.values()) <= MAX_MEDIAN


@pytest.mark.parametrize("path", list(files(*TEXT)), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_names_the_machine_it_was_written_on(path: Path) -> None:
    if path != Path(__file__):
        found = [(number, line) for number, line in enumerate(_lines(path), 1) if PRIVATE.search(line)]
        assert found == []


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def test_nothing_is_left_to_do() -> None:
    marks = re.compile(r"#\s*(?:TODO|FIXME|XXX|HACK)\b")
    assert [path for path in PACKAGE.rglob("*.py") if marks.search(path.read_text(encoding="utf-8"))] == []
