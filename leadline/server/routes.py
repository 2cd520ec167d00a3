"""What the site's route tables share: how a route is written down, how a body is read, how a query is taken apart."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, TypeVar, cast

from fastapi import APIRouter, Path, Request
from sqlalchemy.ext.asyncio import AsyncConnection

from leadline.errors import InvalidRequest
from leadline.server import wallet
from leadline.server.body import read_json
from leadline.server.money import parse_money
from leadline.server.schemas import Schema, documented
from leadline.server.wallet import By

Model = TypeVar("Model", bound=Schema)

BODY_BYTES = 64 << 10
MESSAGE_BYTES = 2 << 20  # of what is said in a chat

# method, path, the handler's name, its body
Route = tuple[str, str, str, type[Schema] | None]

RowId = Annotated[int, Path(ge=0, lt=1 << 62)]

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


def build(handlers: Any, prefix: str, routes: Sequence[Route]) -> APIRouter:
    router = APIRouter(prefix=prefix)
    for method, path, name, schema in routes:
        router.add_api_route(
            path,
            getattr(handlers, name),
            methods=[method],
            name=name,
            response_model=None,
            openapi_extra=None if schema is None else documented(schema),
        )
    return router


async def body(request: Request, schema: type[Model], limit: int = BODY_BYTES) -> Model:
    return await read_json(request, schema, limit)


def address(request: Request) -> str:
    return request.client.host if request.client else ""


async def once(
    request: Request,
    connection: AsyncConnection,
    user_id: int,
    given: Schema,
    action: Callable[[], Awaitable[dict[str, Any]]],
    now: int,
) -> dict[str, Any]:
    """Do what is asked; the same request of the same user again, by its Idempotency-Key, gets the first answer."""
    asked = [request.url.path, given.model_dump()]
    return await wallet.once(connection, user_id, request.headers.get("idempotency-key"), asked, action, now)


def optional_money(text: str | None, param: str) -> int | None:
    return None if text is None else parse_money(text, param)


def report_query(request: Request, groups: Sequence[By] = ("day", "model", "key")) -> tuple[list[By], str, str]:
    """`by=day,model,key`, `from` and `to` of a usage report."""
    days = request.query_params.get("from", "0000-01-01"), request.query_params.get("to", "9999-12-31")
    return report_groups(request.query_params.get("by", "day"), groups), *report_days(*days)


def report_groups(by: str, groups: Sequence[By]) -> list[By]:
    wanted = by.split(",")
    if not set(wanted) <= set(groups):
        raise InvalidRequest(f"by must be some of {', '.join(groups)}, with commas between", param="by")
    return cast("list[By]", wanted)


def report_days(since: str, until: str) -> tuple[str, str]:
    if not (_DAY.fullmatch(since) and _DAY.fullmatch(until)):
        raise InvalidRequest("days are written as 2026-01-31", param="from")
    return since, until


def out_of_range(name: str, low: float, high: float) -> InvalidRequest:
    return InvalidRequest(f"{name} must lie in [{low}, {high}]", param=name, code="value_out_of_range")


def number_query(request: Request, name: str) -> int | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise InvalidRequest(f"{name} must be a number", param=name)
    return int(text)
