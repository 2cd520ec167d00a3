"""The checkout as the tests about it read it: its files, its modules, their syntax trees."""

from __future__ import annotations

import ast
import dataclasses
import functools
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "leadline"
_NOT_OURS = {".git", ".venv", "node_modules", "__pycache__", "build", "dist", "runs", ".cmake", "CMakeFiles"}
_BUILT = ("CMakeCache.txt", "cmake_install.cmake", "CMakeInit.txt", ".skbuild-info.json")


@dataclasses.dataclass(frozen=True)
class Import:
    """An import statement's target, e.g. `leadline.engine.types`; eager when importing the importer runs it."""

    module: str
    line: int
    eager: bool


def files(*suffixes: str) -> Iterator[Path]:
    """The project's own files: not its environment, its caches, its builds."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = sorted(f for f in folders if f not in _NOT_OURS and not f.endswith(("_cache", ".egg-info")))
        for name in sorted(names):
            if name.endswith(suffixes or name) and name not in _BUILT:
                yield Path(folder, name)


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    return {_dotted(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def _dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@functools.cache
def imports(module: str) -> tuple[Import, ...]:
    return tuple(_imports(tree(modules()[module]).body, eager=True))


def _imports(body: list[ast.stmt], eager: bool) -> Iterator[Import]:
    for node in body:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, eager) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (_from(node, alias.name, eager) for alias in node.names)
        else:
            inside = eager and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not _typing_only(node)
            for block in ("body", "orelse", "finalbody"):
                yield from _imports(getattr(node, block, []), inside or (eager and block == "orelse"))
            for handler in getattr(node, "handlers", []):
                yield from _imports(handler.body, inside)


def _from(node: ast.ImportFrom, name: str, eager: bool) -> Import:
    full = f"{node.module}.{name}"
    return Import(full if full in modules() else node.module or "", node.lineno, eager)


def _typing_only(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


@functools.cache
def loads(module: str) -> frozenset[str]:
    """Every module that importing `module` imports, ours followed through, others by their top name."""
    found: set[str] = set()
    queue = [module]
    while queue:
        name = queue.pop()
        for part in _with_parents(name):
            if part not in found:
                found.add(part)
                queue += [each.module for each in imports(part) if each.eager]
    return frozenset(found)


def _with_parents(name: str) -> list[str]:
    if name.split(".")[0] != "leadline":
        return []
    parts = name.split(".")
    return [dotted for dotted in (".".join(parts[: i + 1]) for i in range(len(parts))) if dotted in modules()]


def foreign(module: str) -> frozenset[str]:
    """The packages of others that importing `module` imports, through our own modules."""
    reached = (each.module for name in loads(module) for each in imports(name) if each.eager)
    return frozenset(name.split(".")[0] for name in reached) - {"leadline"}


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of the body without its docstring."""
    docstring = ast.get_docstring(function) is not None
    body = function.body[1:] if docstring else function.body
    return 0 if not body else (function.end_lineno or 0) - body[0].lineno + 1
