"""Grammars for an engine on another machine: what that server can hold an answer to, and how it is told.

Servers pass over fields that they do not know, and answer freely: so each way is tried once, with a grammar that
leaves no choice. `grammar` is vLLM's `structured_outputs` with llguidance's language, which leadline takes too: tools
and JSON alike. `schema` is OpenAI's `response_format` on `completions`: JSON, but no tools.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, Literal

from leadline.client.http import AsyncClient
from leadline.engine.types import Grammar
from leadline.errors import ConnectionFailed, EngineOverloaded, InvalidRequest, LeadlineError, RateLimited

Way = Literal["grammar", "schema", "none"]

_WORD = "fathom"
_PROBES: tuple[tuple[Way, dict[str, Any], str], ...] = (
    ("grammar", {"structured_outputs": {"grammar": f'start: "{_WORD}" n\nn: %json {{"enum": [1]}}'}}, f"{_WORD}1"),
    (
        "schema",
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": {"enum": [_WORD]}, "strict": True},
            }
        },
        f'"{_WORD}"',
    ),
)
_TOKENS = 16  # enough to spell the word letter by letter


class Forms:
    """What one server can do, found out when it is first needed."""

    def __init__(self, client: AsyncClient, model: str) -> None:
        self.client = client
        self.model = model
        self._way: Way | None = None
        self._asking = asyncio.Lock()

    async def fields(self, grammar: Grammar | None) -> dict[str, Any]:
        """What a request's body says of its grammar; `InvalidRequest` where the server cannot hold to it."""
        if grammar is None:
            return {}
        async with self._asking:
            self._way = self._way or await self._find()
        if self._way == "grammar":
            return {"structured_outputs": _structured(grammar)}
        if self._way == "schema" and (wanted := _response_format(grammar)) is not None:
            return {"response_format": wanted}
        able = "takes JSON schemas only" if self._way == "schema" else "holds answers to no form"
        raise InvalidRequest(f"the engine behind this server {able}", param="grammar")

    async def _find(self) -> Way:
        for way, fields, wanted in _PROBES:
            if await self._says(fields, wanted):
                return way
        return "none"

    async def _says(self, fields: dict[str, Any], wanted: str) -> bool:
        """Whether the answer is `wanted`. A server that is away or full has said nothing yet, and is asked again."""
        asked = {"model": self.model, "prompt": "Say yes.", "max_tokens": _TOKENS, "temperature": 0, **fields}
        try:
            answer = await self.client.call("POST", "completions", asked)
            return str(answer["choices"][0]["text"]).strip() == wanted
        except (ConnectionFailed, RateLimited, EngineOverloaded):
            raise
        except (LeadlineError, LookupError, TypeError):
            return False


_TIGHT = {"x-guidance": {"whitespace_flexible": False}}
_PATTERN = re.compile(r'"whitespace_pattern": "(?:[^"\\]|\\.)*"')


def _structured(grammar: Grammar) -> dict[str, Any]:
    """Without a space between JSON's signs: llguidance before 1.8 repeats `whitespace_pattern` without end, and a model
    that begins to write spaces seldom stops."""
    if grammar.kind == "json_object":
        return {"json": {"type": "object", **_TIGHT}}
    if grammar.kind == "json_schema":
        return {"json": {**json.loads(grammar.text), **_TIGHT}}
    if grammar.kind == "regex":
        return {"regex": grammar.text}
    return {"grammar": _PATTERN.sub('"whitespace_flexible": false', grammar.text)}


def _response_format(grammar: Grammar) -> dict[str, Any] | None:
    """The grammar in OpenAI's words, if it has any."""
    if grammar.kind == "json_object":
        return {"type": "json_object"}
    if grammar.kind == "json_schema":
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": json.loads(grammar.text)}}
    found: dict[str, Any] | None = json.loads(grammar.response_format) if grammar.response_format else None
    return found
