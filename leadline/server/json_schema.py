"""JSON schemas that requests bring: how large they may be, and what is said in them beside the schema.

They are limited in size, depth and what would make an automaton explode before anything compiles them: this module
knows the traps, the engine's compiler the language.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from leadline.errors import InvalidRequest

NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}", re.ASCII)

MAX_SCHEMA = 100_000  # characters
MAX_VALUES = 4_000  # of all kinds, at all depths
MAX_DEPTH = 64
MAX_MULTIPLE = 1_000_000  # an automaton that counts remainders has as many states

_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")
_SINGLES = ("items", "additionalProperties", "not")


def check_schema(schema: Mapping[str, Any], where: str) -> None:
    """Refuse what would take the compiler long, before it sees it."""
    multiples = 1
    for values, (depth, value) in enumerate(_walk(schema), 1):
        if depth > MAX_DEPTH:
            raise InvalidRequest(f"{where} is nested deeper than {MAX_DEPTH}", param=where)
        if values > MAX_VALUES:
            raise InvalidRequest(f"{where} has more than {MAX_VALUES} values", param=where)
        if isinstance(value, dict) and isinstance(multiple := value.get("multipleOf"), int | float):
            multiples *= _remainders(multiple)
            if multiples > MAX_MULTIPLE:
                raise InvalidRequest(f"multipleOf in {where} asks for too large a remainder", param=where)
    if len(json.dumps(schema, ensure_ascii=False)) > MAX_SCHEMA:
        raise InvalidRequest(f"{where} is longer than {MAX_SCHEMA} characters", param=where)


def subschemas(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The schemas right inside a schema, each with its path."""
    for key in _MAPS:
        inner = schema.get(key)
        found = inner.items() if isinstance(inner, dict) else ()
        yield from ((f"{key}.{name}", each) for name, each in found if isinstance(each, dict))
    for key in _LISTS:
        inner = schema.get(key)
        inner = inner if isinstance(inner, list) else []
        yield from ((f"{key}.{place}", each) for place, each in enumerate(inner) if isinstance(each, dict))
    yield from ((key, schema[key]) for key in _SINGLES if isinstance(schema.get(key), dict))


def is_strict(given: Mapping[str, Any], where: str) -> bool:
    strict = given.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise InvalidRequest(f"{where}.strict must be true or false", param=f"{where}.strict")
    return bool(strict)


def _walk(root: Any) -> Iterator[tuple[int, Any]]:
    """Every value with its depth, without recursion."""
    left = [(0, root)]
    while left:
        depth, value = left.pop()
        yield depth, value
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        left += [(depth + 1, each) for each in inner]


def _remainders(multiple: float) -> int:
    """How many remainders there are to tell apart: those of the number's digits without the point."""
    digits = Decimal(str(multiple)).normalize().as_tuple().digits
    return max(int("".join(map(str, digits))), 1)
