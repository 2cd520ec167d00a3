"""`from leadline import ...`: the public names are there, lazily, and agree with what type checkers see."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys

import pytest

import leadline
from tests.source import PACKAGE, tree


def declared() -> dict[str, str]:
    """name -> module of the imports that only type checkers see."""
    blocks = [node for node in tree(PACKAGE / "__init__.py").body if isinstance(node, ast.If)]
    statements = [line for block in blocks for line in block.body if isinstance(line, ast.ImportFrom)]
    return {alias.name: line.module or "" for line in statements for alias in line.names}


def test_all_is_what_type_checkers_see() -> None:
    assert sorted(leadline.__all__) == sorted([*declared(), "__version__"])
    assert dir(leadline) == sorted(leadline.__all__)


@pytest.mark.parametrize("name", sorted(declared()))
def test_every_name_is_its_homes(name: str) -> None:
    assert getattr(leadline, name) is getattr(importlib.import_module(declared()[name]), name)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'LLMM'"):
        leadline.LLMM  # noqa: B018


def test_importing_leadline_imports_nothing_heavy() -> None:
    code = (
        "import sys, leadline; print(sorted({'torch', 'rich', 'tokenizers', 'httpx2', 'cyclopts'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
