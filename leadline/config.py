"""Configuration: frozen dataclasses filled from defaults < TOML file < environment < flags.

    @dataclass(frozen=True)
    class Optimizer:
        lr: float = 4.2e-4
        betas: tuple[float, float] = (0.9, 0.95)

    @dataclass(frozen=True)
    class Recipe:
        data: Path
        steps: int = 1000
        optimizer: Optimizer = Optimizer()

    recipe = load(Recipe, Path("small.toml"), os.environ, {"steps": 20, "optimizer.lr": 1e-3})

In the environment `steps` is LEADLINE_STEPS and `optimizer.lr` is LEADLINE_OPTIMIZER__LR. There, and in a flag given
as text, a value is parsed by its field's type: numbers, true/false, none, comma-separated tuples. Nothing is guessed: a
key that no field has is an error that names its source and the nearest field, and so is a value of the wrong type. The
only widening is an int where a float is wanted. Paths are relative to the working directory, `~` is expanded.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from leadline.errors import ConfigError

T = TypeVar("T")
Tree = dict[str, Any]  # nested mappings; the leaves are checked values

ENV_PREFIX = "LEADLINE_"
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def load(
    cls: type[T],
    toml: Path | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
    *,
    prefix: str = ENV_PREFIX,
) -> T:
    """The configuration `cls`, the later source winning field by field.

    Of `env`, the process's environment, only names that begin with `prefix` are read, and each must be a field. A flag
    is a field's dotted name or a nested mapping; a flag that is None was not given.
    """
    tree: Tree = {}
    if toml is not None:
        _merge(tree, _check(cls, read_toml(toml), str(toml)))
    _merge(tree, _check(cls, _env_tree(env or {}, prefix), "environment", textual=True))
    _merge(tree, _check(cls, _flag_tree(flags or {}), "flags", textual=True))
    return _build(cls, tree)


def read_toml(path: Path) -> Tree:
    """The file's tables; one line says what is wrong with a missing or malformed file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:  # not UTF-8, or not TOML
        raise ConfigError(f"{path}: {error}") from None


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`; did you mean 'nearest'?`, or nothing when no choice is near."""
    near = difflib.get_close_matches(word, list(choices), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _env_tree(env: Mapping[str, str], prefix: str) -> Tree:
    tree: Tree = {}
    for name in sorted(env):
        if name.startswith(prefix):
            _put(tree, name.removeprefix(prefix).lower().split("__"), env[name], "environment")
    return tree


def _flag_tree(flags: Mapping[str, Any]) -> Tree:
    tree: Tree = {}
    for name, value in flags.items():
        if isinstance(value, Mapping):
            value = _flag_tree(value)
        if value is not None:
            _put(tree, name.split("."), value, "flags")
    return tree


def _put(tree: Tree, path: list[str], value: Any, source: str) -> None:
    """Set `tree[path[0]][path[1]]... = value`; a table and a plain value of one name cannot both be given."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{source}: {'.'.join(path)} is set, and {key} as a whole too", param=".".join(path))
    leaf = path[-1]
    both = [entry for entry in (tree.get(leaf), value) if isinstance(entry, dict)]
    if leaf in tree and len(both) == 1:
        raise ConfigError(f"{source}: {'.'.join(path)} is set as a whole, and a part of it too", param=".".join(path))
    if len(both) == 2:
        _merge(tree[leaf], value)
    else:
        tree[leaf] = value


def _merge(tree: Tree, later: Tree) -> None:
    for key, value in later.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = value


def _check(cls: type, given: Mapping[str, Any], source: str, path: str = "", *, textual: bool = False) -> Tree:
    """`given` with every key known and every leaf of its field's type; tables of nested dataclasses stay tables."""
    hints = _fields(cls)
    checked: Tree = {}
    for key, value in given.items():
        name = f"{path}{key}"
        if key not in hints:
            known = [f"{path}{field}" for field in hints]
            raise ConfigError(f"{source}: unknown key {name!r}{did_you_mean(name, known)}", param=name)
        nested = _dataclass_in(hints[key])
        if nested is not None and isinstance(value, Mapping):
            checked[key] = _check(nested, value, source, f"{name}.", textual=textual)
        else:
            checked[key] = _leaf(hints[key], value, source, name, textual)
    return checked


def _leaf(hint: Any, value: Any, source: str, name: str, textual: bool) -> Any:
    try:
        return _convert(hint, value, textual, f"{source}: {name}")
    except (TypeError, ValueError):
        shown = f"{value!r}" if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
        raise ConfigError(f"{source}: {name} must be {_describe(hint)}, got {shown}", param=name) from None


def _fields(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass that `hint` is, or is an optional of."""
    options = typing.get_args(hint) if _is_union(hint) else (hint,)
    return next((option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)), None)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (Union, types.UnionType)


def _build(cls: type[T], tree: Tree, base: T | None = None, path: str = "") -> T:
    """Values of `tree` over those of `base`, or over the class's defaults where there is no base."""
    values: Tree = {}
    for name, hint in _fields(cls).items():
        given = tree.get(name, dataclasses.MISSING)
        default = _default(cls, name) if base is None else getattr(base, name)
        nested = _dataclass_in(hint)
        if nested is not None and (isinstance(given, dict) or given is default is dataclasses.MISSING):
            inner = default if isinstance(default, nested) else None
            values[name] = _build(nested, given if isinstance(given, dict) else {}, inner, f"{path}{name}.")
        else:
            values[name] = default if given is dataclasses.MISSING else given
        if values[name] is dataclasses.MISSING:
            raise ConfigError(f"{path}{name} is required", param=f"{path}{name}")
    return cls(**values)


def _default(cls: type, name: str) -> Any:
    field = next(field for field in dataclasses.fields(cls) if field.name == name)
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _convert(hint: Any, value: Any, textual: bool, where: str) -> Any:
    """`value` as the type `hint`, text parsed when `textual`; ValueError or TypeError when it does not fit."""
    origin = typing.get_origin(hint)
    if _is_union(hint):
        return _convert_union(hint, value, textual, where)
    if origin is Literal:
        return _convert_literal(hint, value, textual)
    if origin is tuple:
        return _convert_tuple(typing.get_args(hint), value, textual, where)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):  # an array of tables
        return _build(typing.cast(type, hint), _check(typing.cast(type, hint), value, where))
    if textual and isinstance(value, str):
        value = _parse(hint, value)
    return _exact(hint, value)


def _exact(hint: Any, value: Any) -> Any:
    if hint is float and type(value) is int:
        value = float(value)
    if hint is Path and isinstance(value, str):
        value = Path(value)
    if type(value) is not hint and not (isinstance(value, hint) and not isinstance(value, bool)):
        raise TypeError
    if hint is float and math.isnan(value):
        raise ValueError
    return value.expanduser() if isinstance(value, Path) else value


def _parse(hint: Any, text: str) -> Any:
    if hint is bool:
        return _WORDS.get(text.strip().lower())
    return hint(text) if hint in (int, float) else text


def _convert_union(hint: Any, value: Any, textual: bool, where: str) -> Any:
    options = typing.get_args(hint)
    if types.NoneType in options and (value is None or (textual and value == "none")):
        return None
    for option in options:
        if option is not types.NoneType:
            try:
                return _convert(option, value, textual, where)
            except (TypeError, ValueError):
                continue
    raise TypeError


def _convert_literal(hint: Any, value: Any, textual: bool) -> Any:
    for choice in typing.get_args(hint):
        if (type(value) is type(choice) and value == choice) or (textual and value == str(choice)):
            return choice
    raise ValueError


def _convert_tuple(items: tuple[Any, ...], value: Any, textual: bool, where: str) -> tuple[Any, ...]:
    if textual and isinstance(value, str):
        value = [part.strip() for part in value.split(",")] if value.strip() else []
    if not isinstance(value, list | tuple):
        raise TypeError
    hints = items[:1] * len(value) if items[1:] == (Ellipsis,) else items
    return tuple(_convert(hint, item, textual, where) for hint, item in zip(hints, value, strict=True))


def _describe(hint: Any) -> str:
    """The type in a user's words, for an error."""
    if _is_union(hint):
        return " or ".join(_describe(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return _describe_tuple(typing.get_args(hint))
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    return names.get(hint, "none" if hint is types.NoneType else f"a table of {getattr(hint, '__name__', hint)}")


def _describe_tuple(items: tuple[Any, ...]) -> str:
    if items[1:] == (Ellipsis,):
        return f"a list, each {_describe(items[0])}"
    return f"a list of {len(items)}: {', '.join(_describe(item) for item in items)}"
