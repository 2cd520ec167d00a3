"""Registries that other packages can add to: one entry-point group a registry, nothing imported before it is asked for.

    TEMPLATES: Registry[Template] = Registry("leadline.templates", "chat template", {"v2": "leadline.tokenizer:V2"})
    TEMPLATES.load("v2")

A package that wants to bring another names it in its own pyproject.toml:

    [project.entry-points."leadline.templates"]
    mine = "my_package.templates:MINE"

A built-in name cannot be taken over, so that what a name means does not depend on what else is installed.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from typing import Generic, TypeVar, cast

from leadline.config import did_you_mean
from leadline.errors import ConfigError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Registry(Generic[T]):
    """Objects of one kind by name. `builtin` holds "module:attribute" as an entry point does; `kind` is for errors."""

    group: str
    kind: str
    builtin: Mapping[str, str]

    def names(self) -> list[str]:
        return sorted(self._entries())

    def load(self, name: str) -> T:
        """The object called `name`; a ConfigError when there is none or its package does not import."""
        entries = self._entries()
        if name not in entries:
            raise ConfigError(f"unknown {self.kind} {name!r}{did_you_mean(name, entries)}", param=self.kind)
        try:
            return cast(T, entries[name].load())
        except (ImportError, AttributeError) as error:
            if name in self.builtin:
                raise
            raise ConfigError(f"{self.kind} {name!r} ({entries[name].value}) cannot be loaded: {error}") from error

    def _entries(self) -> dict[str, EntryPoint]:
        found = {entry.name: entry for entry in importlib.metadata.entry_points(group=self.group)}
        return found | {name: EntryPoint(name, value, self.group) for name, value in self.builtin.items()}
