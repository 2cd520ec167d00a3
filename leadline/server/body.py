"""Request bodies: read with limits of size and time, parsed strictly, checked against a schema.

JSON as RFC 8259 has it and nothing beside: no NaN, no key twice, no lone surrogate, no number that is not finite. A
body over the limit is read to its end without being kept, so that its sender gets to see the answer.
"""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any, NoReturn, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from leadline.errors import InvalidRequest

Model = TypeVar("Model", bound=BaseModel)

DRAINED = 4  # times the limit: past this the connection is simply closed
LARGE = 256 << 10  # bytes; what is larger is read in a thread, so that it does not stop everyone's streams
BODY_SECONDS = 300.0  # for all of it: 32 MB at a megabit a second


async def read_json(request: Request, schema: type[Model], limit: int) -> Model:
    """The body as `schema`, or an error that names the field."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise HTTPException(415, "send the body as JSON, with the header content-type: application/json")
    body = await _read(request, limit)
    if len(body) > LARGE:
        return await asyncio.to_thread(_parsed, schema, body)
    return _parsed(schema, body)


def _parsed(schema: type[Model], body: bytes) -> Model:
    return validate(schema, parse_json(body))


def parse_json(body: bytes) -> Any:
    try:
        value = json.loads(
            body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
        )
        if b"\\u" in body:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # fails on a lone surrogate
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not valid UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise InvalidRequest("the body has a lone surrogate: text must be valid Unicode") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    except ValueError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    return value


def validate(schema: type[Model], value: Any) -> Model:
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise _first(error) from None


async def _read(request: Request, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= limit:
                    chunks.append(chunk)
                elif size > DRAINED * limit:
                    break
    except ClientDisconnect:
        raise HTTPException(400, "the body ended too early") from None
    except TimeoutError:
        text = f"the body did not come within {BODY_SECONDS:.0f} seconds"
        raise HTTPException(408, text, {"connection": "close"}) from None
    if size > limit:
        raise HTTPException(413, f"the body is larger than {limit} bytes", {"connection": "close"})
    return b"".join(chunks)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object has the same key twice")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _first(error: ValidationError) -> InvalidRequest:
    """One line for the first fault: where it is in the body, and what is wrong."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = ".".join(str(part) for part in fault["loc"])[:200]
    message = fault["msg"].removeprefix("Value error, ")
    return InvalidRequest(f"{path}: {message}" if path else message, param=path or None)
