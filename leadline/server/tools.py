"""Tools for a model whose template has none: how they are written into the prompt, and how calls are read back.

V2's template knows system, user and assistant. So the functions stand in the system message, a call is text of the
answer between two marks, and a result is a user's message between two others (docs/api.md shows all of it). The
answer's grammar guarantees the form, so that reading calls back (`leadline.server.calls`) never has to guess.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from leadline.errors import InvalidRequest
from leadline.server.json_schema import NAME, check_schema, is_strict, subschemas

MAX_TOOLS = 128
CALL = "<tool_call>"
CALL_END = "}\n</tool_call>"
RESULT, RESULT_END = "<tool_response>\n", "\n</tool_response>"


_INTRODUCTION = f"""\
You can call functions. A call is written so, and the answer ends after it:
{CALL}
{{"name": "FUNCTION", "arguments": {{...}}}}
</tool_call>
What a function gives back comes between <tool_response> and </tool_response>.
The functions, one a line, with the JSON schema of their arguments:
"""
_MUST = "Answer with a call and nothing else."


@dataclasses.dataclass(frozen=True, slots=True)
class Tool:
    name: str
    description: str
    schema: Mapping[str, Any]  # of the arguments, an object
    strict: bool

    @property
    def opening(self) -> str:
        """What stands between a call's mark and its arguments."""
        return f'\n{{"name": "{self.name}", "arguments": '

    @property
    def line(self) -> str:
        shown = {"name": self.name, "description": self.description, "parameters": self.schema}
        return json.dumps({key: value for key, value in shown.items() if value}, ensure_ascii=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Toolbox:
    """`shown` stand in the prompt, `allowed` may be called; `legacy`: asked for as `functions`, answered so too."""

    shown: tuple[Tool, ...]
    allowed: tuple[Tool, ...]
    must_call: bool
    parallel: bool
    legacy: bool = False

    @property
    def prompt(self) -> str:
        lines = "\n".join(tool.line for tool in self.shown)
        return _INTRODUCTION + lines + (f"\n{_MUST}" if self.must_call else "")


def read_toolbox(tools: Any, choice: Any, parallel: bool | None) -> Toolbox | None:
    """From `tools` and `tool_choice`; None when nothing is to be called."""
    found = tuple(_tool(tool, f"tools.{place}") for place, tool in enumerate(_limited(tools, "tools")))
    if not found:
        if choice not in (None, "none", "auto"):
            raise InvalidRequest("tool_choice needs tools", param="tool_choice")
        return None
    if isinstance(choice, dict):
        named = choice.get("function")
        name = named.get("name") if choice.get("type") == "function" and isinstance(named, dict) else None
        return _named(found, name, "tool_choice")
    if choice not in (None, "none", "auto", "required"):
        raise InvalidRequest("tool_choice must be none, auto, required or name a function", param="tool_choice")
    if choice == "none":
        return None
    return Toolbox(found, found, must_call=choice == "required", parallel=parallel is not False)


def read_functions(functions: Any, choice: Any) -> Toolbox | None:
    """The same from OpenAI's earlier fields, `functions` and `function_call`."""
    found = tuple(_function(each, f"functions.{place}") for place, each in enumerate(_limited(functions, "functions")))
    if not found or choice == "none":
        return None
    if isinstance(choice, dict):
        return dataclasses.replace(_named(found, choice.get("name"), "function_call"), legacy=True)
    if choice not in (None, "auto"):
        raise InvalidRequest("function_call must be none, auto or name a function", param="function_call")
    return Toolbox(found, found, must_call=False, parallel=False, legacy=True)


def calls_text(content: str, calls: Sequence[Any], where: str) -> str:
    """An assistant's message of the past, as the model wrote it."""
    parts = [content] if content else []
    for place, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        parts.append(call_text(function, f"{where}.{place}.function"))
    return "\n".join(parts)


def call_text(function: Any, where: str) -> str:
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidRequest(f"{where} must have a name and arguments", param=where)
    arguments = function.get("arguments", "{}")
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    if not isinstance(arguments, str):
        raise InvalidRequest(f"{where}.arguments must be JSON text", param=f"{where}.arguments")
    return f'{CALL}\n{{"name": {json.dumps(function["name"])}, "arguments": {arguments}{CALL_END}'


def result_text(content: str) -> str:
    return f"{RESULT}{content}{RESULT_END}"


# ---- what a request says -----------------------------------------------------------------------------------------


def _limited(tools: Any, name: str) -> Sequence[Any]:
    if tools is not None and len(tools) > MAX_TOOLS:
        raise InvalidRequest(f"at most {MAX_TOOLS} {name}, got {len(tools)}", param=name)
    return tools or ()


def _tool(tool: Any, where: str) -> Tool:
    if not isinstance(tool, dict) or tool.get("type", "function") != "function":
        raise InvalidRequest(f"{where}.type must be function", param=where)
    return _function(tool.get("function"), f"{where}.function")


def _function(function: Any, where: str) -> Tool:
    if not isinstance(function, dict):
        raise InvalidRequest(f"{where} must describe a function", param=where)
    name, description = function.get("name"), function.get("description")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InvalidRequest(f"{where}.name must be 1 to 64 of a-z, A-Z, 0-9, _ and -", param=f"{where}.name")
    if description is not None and not isinstance(description, str):
        raise InvalidRequest(f"{where}.description must be text", param=f"{where}.description")
    parameters, strict = function.get("parameters"), is_strict(function, where)
    if parameters is not None and not isinstance(parameters, dict):
        raise InvalidRequest(f"{where}.parameters must be a JSON schema", param=f"{where}.parameters")
    return Tool(name, description or "", _arguments_schema(parameters, f"{where}.parameters", strict), strict)


def _arguments_schema(parameters: Mapping[str, Any] | None, where: str, strict: bool) -> dict[str, Any]:
    """Arguments are an object, and of named properties only, unless the schema says otherwise."""
    schema = {"type": "object", **(parameters or {"properties": {}})}
    if schema["type"] != "object":
        raise InvalidRequest(f"{where}.type must be object", param=f"{where}.type")
    check_schema(schema, where)
    if strict:
        _check_strict(schema, where)
    if "properties" in schema:
        schema.setdefault("additionalProperties", False)
    return schema


def _check_strict(schema: Mapping[str, Any], where: str) -> None:
    """Strict mode's two rules: every property is required, and there are no others."""
    properties = schema.get("properties")
    if isinstance(properties, dict):
        required = schema.get("required")
        if not isinstance(required, list) or any(name not in required for name in properties):
            raise InvalidRequest(f"{where}: with strict every property must be required", param=where)
        if schema.get("additionalProperties") is not False:
            raise InvalidRequest(f"{where}: with strict additionalProperties must be false", param=where)
    for path, inner in subschemas(schema):
        _check_strict(inner, f"{where}.{path}")


def _named(tools: tuple[Tool, ...], name: Any, where: str) -> Toolbox:
    chosen = tuple(tool for tool in tools if tool.name == name)
    if not chosen:
        raise InvalidRequest(f"{where} names no function of this request", param=where)
    return Toolbox(tools, chosen[:1], must_call=True, parallel=False)
