"""A corpus recipe: sources with their licences, filters and mix, from TOML."""

from __future__ import annotations

import re
import typing
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from leadline.config import did_you_mean, read_toml
from leadline.errors import ConfigError, DataError
from leadline.train.corpus.language import LANGUAGES

FORMATS = ("jsonl", "text", "markdown", "parquet")
HUB = "hub:"
LICENCES = re.compile(
    r"(CC0(-1\.0)?|CC-BY(-SA)?-[1-4]\.\d(-[A-Z]{2,3})?|public-domain|Apache-2\.0|MIT|BSD-[23]-Clause|PSF-2\.0"
    r"|WordNet-3\.0)"
)


@dataclass(frozen=True)
class SourceSpec:
    """One source: files of one format under one licence (several joined by " AND ").

    `path` is a file, a folder, a glob, or `hub:owner/name` for a dataset of the hub, of which `files` (a glob) are
    taken at `revision`. `repeat` is its weight: how often its documents are in the training split, 1.5 or 0.25 too.
    """

    name: str
    path: str
    licence: str
    format: str = "jsonl"
    field: str = "text"
    origin: str = ""
    files: str = "*"
    revision: str = "main"
    min_chars: int = 1
    repeat: float = 1


@dataclass(frozen=True)
class CorpusRecipe:
    """What to build. Relative paths are relative to `folder`.

    max_odd               share of characters that are no letters, digits, white space or common punctuation
    max_repeated_lines    share of characters in lines that the document has had before; 1: any
    near_duplicates       Jaccard similarity from which a document counts as one seen before; 0: only equal ones do
    decontaminate         files of evaluation sets: a document that shares `overlap_words` words in a row is left out
    languages             those that are kept; none: all
    mix                   share of the training tokens that each language gets; the others get none
    """

    tokenizer: str
    output: str
    sources: tuple[SourceSpec, ...]
    valid_permille: int = 10
    min_chars: int = 20
    max_odd: float = 0.3
    max_repeated_lines: float = 1.0
    near_duplicates: float = 0.0
    decontaminate: tuple[str, ...] = ()
    overlap_words: int = 13
    languages: tuple[str, ...] = ()
    mix: dict[str, float] = field(default_factory=dict)
    folder: str = "."

    def locate(self, path: str) -> Path:
        return Path(self.folder) / path


Table = TypeVar("Table", SourceSpec, CorpusRecipe)


def load_recipe(path: Path, *, folder: Path | None = None) -> CorpusRecipe:
    """Read a TOML recipe (top-level keys and `[[source]]` tables), its paths relative to `folder` or to its own."""
    table = read_toml(path)
    sources = tuple(_from_table(SourceSpec, source, f"{path}: [[source]]") for source in table.pop("source", []))
    recipe = _from_table(CorpusRecipe, table | {"sources": sources, "folder": str(folder or path.parent)}, str(path))
    check_recipe(recipe)
    return recipe


def _from_table(cls: type[Table], table: dict[str, Any], where: str) -> Table:
    """A frozen dataclass from a TOML table, every key known and of its type, none missing."""
    known, hints = {entry.name: entry for entry in fields(cls)}, typing.get_type_hints(cls)
    values = {}
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{did_you_mean(key, known)}", param=key)
        if (fitting := _fitting(hints[key], value)) is None:
            name = getattr(hints[key], "__name__", str(hints[key])) if key != "mix" else "a table of shares"
            raise ConfigError(f"{where}: {key} must be {name}, got {value!r}", param=key)
        values[key] = fitting
    for key, entry in known.items():
        if key not in table and entry.default is MISSING and entry.default_factory is MISSING:
            raise ConfigError(f"{where}: {key} is required", param=key)
    return cls(**values)


def _fitting(hint: Any, value: Any) -> Any:
    """The value as the type, or None where it is of another."""
    if hint is float:
        return value if type(value) in (int, float) else None
    if hint == tuple[str, ...]:
        return tuple(value) if isinstance(value, list | tuple) and all(type(each) is str for each in value) else None
    if hint == dict[str, float]:
        shares = isinstance(value, dict) and all(type(each) in (int, float) for each in value.values())
        return value if shares else None
    return value if hint not in (str, int) or type(value) is hint else None


def check_recipe(recipe: CorpusRecipe) -> None:
    """Refuse a recipe without sources, with two sources of one name, with numbers that filter nothing or everything, or
    with a source whose licence is not allowed."""
    if not recipe.sources:
        raise ConfigError("the recipe names no [[source]]")
    _check_numbers(recipe)
    names = [source.name for source in recipe.sources]
    for source in recipe.sources:
        if names.count(source.name) > 1 or not re.fullmatch(r"[\w-]+", source.name):
            raise ConfigError(f"source name {source.name!r} is used twice or is not one word")
        if source.format not in FORMATS:
            raise ConfigError(f"source {source.name}: format {source.format!r} is not one of {', '.join(FORMATS)}")
        if source.repeat < 0:
            raise ConfigError(f"source {source.name}: repeat must not be negative")
        check_licence(source)


def _check_numbers(recipe: CorpusRecipe) -> None:
    if not 0 <= recipe.valid_permille < 1000:
        raise ConfigError(f"valid_permille is {recipe.valid_permille}, not between 0 and 999")
    for name in ("max_odd", "max_repeated_lines", "near_duplicates"):
        if not 0 <= getattr(recipe, name) <= 1:
            raise ConfigError(f"{name} is a share, from 0 to 1, not {getattr(recipe, name)}")
    if recipe.overlap_words < 1:
        raise ConfigError("overlap_words must be at least 1")
    for name in (*recipe.languages, *recipe.mix):
        if name not in LANGUAGES:
            raise ConfigError(f"language {name!r} is not one of {', '.join(LANGUAGES)}{did_you_mean(name, LANGUAGES)}")
    if recipe.mix and min(recipe.mix.values()) <= 0:
        raise ConfigError("mix: a share must be more than 0; leave a language out instead")


def check_licence(source: SourceSpec) -> None:
    parts = source.licence.split(" AND ")
    if not all(LICENCES.fullmatch(part.strip()) for part in parts):
        stated = f"licence {source.licence!r} is not an allowed one" if source.licence else "no licence is stated"
        raise DataError(
            f"source {source.name}: {stated} (CC0, CC-BY, CC-BY-SA with version, public-domain, Apache-2.0, MIT, BSD)"
        )
