"""What an answer must look like: `response_format` and tools as one grammar for the engine.

What of a JSON schema the engine's compiler does not know is refused where it must hold (`strict`) and not enforced
elsewhere. V2's template leaves an answer's first space to the model, so that a grammar begins with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from leadline.engine.types import Grammar
from leadline.errors import InvalidRequest
from leadline.server.json_schema import NAME, check_schema, is_strict
from leadline.server.tools import CALL, CALL_END, Toolbox

# Between JSON's signs, of answers and of calls, which are one line. With more of it weak models never come back.
ANSWER_SPACE, CALL_SPACE = r"( |\n[ ]{0,20})?", r" ?"
MAX_GRAMMAR = 1_000_000  # characters: a toolbox of 128 functions, each with its schema
_TEXT = r"/(.|\n)*/"  # every text; valid Unicode by itself


def answer_grammar(response_format: Mapping[str, Any] | None, tools: Toolbox | None, *, space: bool) -> Grammar | None:
    """The grammar of an answer, or None when it is free; `space`: it begins with one."""
    shape = response_schema(response_format)
    if shape is None and tools is None:
        return None
    rules = [f"start: {_quoted(' ') if space else ''} answer"]
    if shape is not None:
        rules.append(f"shape: %json {_compiled(*shape, ANSWER_SPACE)}")
    rules += ["answer: shape"] if tools is None else _tool_rules(tools, shaped=shape is not None)
    said = json.dumps(response_format) if tools is None else ""
    return Grammar("lark", "\n".join(rules), said)


def raw_grammar(structured_outputs: Mapping[str, Any] | None) -> Grammar | None:
    """vLLM's field, as far as another leadline sends it: exactly one of grammar, regex and json."""
    if structured_outputs is None:
        return None
    where = "structured_outputs"
    given = {name: value for name, value in structured_outputs.items() if value is not None}
    if len(given) != 1 or not given.keys() <= {"grammar", "regex", "json"}:
        raise InvalidRequest(f"{where} has one of grammar, regex and json", param=where)
    ((kind, value),) = given.items()
    if kind == "json":
        if not isinstance(value, dict):
            raise InvalidRequest(f"{where}.json must be a JSON schema", param=f"{where}.json")
        check_schema(value, f"{where}.json")
        return Grammar("json_schema", json.dumps(value))
    if not isinstance(value, str) or not 0 < len(value) <= MAX_GRAMMAR:
        raise InvalidRequest(
            f"{where}.{kind} must be text of at most {MAX_GRAMMAR} characters", param=f"{where}.{kind}"
        )
    return Grammar("lark" if kind == "grammar" else "regex", value)


def response_schema(response_format: Mapping[str, Any] | None) -> tuple[dict[str, Any], bool] | None:
    """The schema of a JSON answer and whether all of it must hold; None for text."""
    kind = (response_format or {}).get("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}, True
    if kind != "json_schema":
        raise InvalidRequest(
            "response_format.type must be text, json_object or json_schema", param="response_format.type"
        )
    assert response_format is not None
    given = response_format.get("json_schema")
    where = "response_format.json_schema"
    if not isinstance(given, dict) or not isinstance(given.get("schema"), dict):
        raise InvalidRequest(f"{where}.schema must be a JSON schema", param=f"{where}.schema")
    name = given.get("name", "answer")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InvalidRequest(f"{where}.name must be 1 to 64 of a-z, A-Z, 0-9, _ and -", param=f"{where}.name")
    check_schema(given["schema"], f"{where}.schema")
    return given["schema"], is_strict(given, where)


def _tool_rules(tools: Toolbox, *, shaped: bool) -> list[str]:
    """Text or calls, as the choice has it. A call's mark never appears in the text before."""
    begun = f"{_quoted(CALL)} calls"
    if tools.must_call:
        answer = begun
    elif shaped:
        answer = f"shape | {begun}"
    else:
        answer = "TEXT | BEFORE calls"
    more = f"({_quoted(chr(10) + CALL)} call)*" if tools.parallel else ""
    kinds = [
        f"call{number}: {_quoted(tool.opening)} arguments{number} {_quoted(CALL_END)}"
        for number, tool in enumerate(tools.allowed)
    ]
    arguments = [
        f"arguments{number}: %json {_compiled(tool.schema, tool.strict, CALL_SPACE)}"
        for number, tool in enumerate(tools.allowed)
    ]
    marked = rf"/(.|\n)*{re.escape(CALL)}(.|\n)*/"
    return [
        f"answer: {answer}",
        f"calls: call {more}",
        f"call: {' | '.join(f'call{number}' for number in range(len(tools.allowed)))}",
        *kinds,
        *arguments,
        f"TEXT: {_TEXT} & ~{marked}",
        rf"BEFORE: /(.|\n)*{re.escape(CALL)}/ & ~/(.|\n)*{re.escape(CALL)}(.|\n)+/",
    ]


def _compiled(schema: Mapping[str, Any], strict: bool, space: str) -> str:
    """The schema with what we tell its compiler; a request cannot tell it anything else."""
    return json.dumps({**schema, "x-guidance": {"whitespace_pattern": space, "lenient": not strict}})


def _quoted(text: str) -> str:
    """A literal of the grammar."""
    return json.dumps(text)
