"""Errors as OpenAI's body: {"error": {"message", "type", "param", "code"}}, whatever went wrong.

A `LeadlineError` answers with its own status; what FastAPI or Starlette refuse (an unknown path, a method, a body too
large) gets the same four keys. A fault of ours is logged whole and told in one line.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from leadline.errors import EngineError, InvalidRequest, LeadlineError

log = logging.getLogger("leadline.server")

MAX_MESSAGE = 1000  # characters: a message may quote what was sent
NEVER_RETRIED = (402, 403)
SERVED = "the base URL of the API ends in /v1 and has chat/completions, completions, models and user/balance"
RETRIED = (429, 503)

_HTTP_CODES = {
    403: "permission_denied",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    415: "unsupported_media_type",
}


def error_body(error: LeadlineError) -> dict[str, Any]:
    return _body(error.message, error.type, error.param, error.code)


def error_response(error: LeadlineError, retry_after: int = 1) -> Response:
    return json_response(error_body(error), error.status, retry_headers(error, retry_after))


def retry_headers(error: LeadlineError, retry_after: int = 1) -> dict[str, str]:
    """What tells clients whether, and when, to try again."""
    return _retry_headers(error.status, error.retry_after or retry_after)


def http_error_response(error: HTTPException) -> Response:
    kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
    body = _body(str(error.detail), kind, None, _HTTP_CODES.get(error.status_code, kind))
    return json_response(body, error.status_code, {**_retry_headers(error.status_code, 1), **(error.headers or {})})


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """UTF-8 that people can read in a terminal, with the newline that curl leaves out."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":")) + "\n"
    return Response(text.encode("utf-8", errors="replace"), status, headers, media_type="application/json")


def fault(error: BaseException) -> LeadlineError:
    """What a client is told of an unexpected exception; the log has the rest."""
    if isinstance(error, LeadlineError):
        return error
    log.error("unexpected error while answering", exc_info=error)
    return EngineError("an internal error; the server's log says more")


def install(app: FastAPI, retry_after: int) -> None:
    """Register the handlers on the app."""

    async def leadline_error(request: Request, error: Exception) -> Response:
        known = fault(error)
        request.scope["code"] = known.code  # for the line in the log
        if known.status == 500:
            log.warning("answered with 500: %s", known.message)
        return error_response(known, retry_after)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:  # Starlette's "Not Found" helps nobody who has the base URL wrong
            path = request.scope["path"][:100]
            error = HTTPException(404, f"there is no {request.method} {path} here; {SERVED}", error.headers)
        return http_error_response(error)

    async def validation_error(_: Request, error: Exception) -> Response:
        return error_response(InvalidRequest(f"invalid request: {type(error).__name__}"), retry_after)

    app.add_exception_handler(LeadlineError, leadline_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, validation_error)


def _retry_headers(status: int, retry_after: int) -> dict[str, str]:
    if status in RETRIED:
        return {"retry-after": str(retry_after)}
    return {"x-should-retry": "false"} if status in NEVER_RETRIED else {}


def _body(message: str, kind: str, param: str | None, code: str) -> dict[str, Any]:
    if len(message) > MAX_MESSAGE:
        message = message[:MAX_MESSAGE] + "..."
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
