"""The application: an engine and a tokenizer behind the OpenAI API, with /health and /metrics.

`create_app` never loads a model and never imports torch: it takes any `EngineProtocol`. The app owns the engine from
then on and closes it when the server stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leadline import __version__
from leadline.engine.types import EngineProtocol
from leadline.errors import EngineDead
from leadline.server import errors
from leadline.server.completion import CompletionService
from leadline.server.hosts import LoopbackGuard
from leadline.server.logs import ACCESS
from leadline.server.metrics import CONTENT_TYPE, Metrics
from leadline.server.openai import PREFIXES, build_router
from leadline.server.pages import Pages, wants_page
from leadline.server.settings import DISCLAIMER, ServerSettings
from leadline.server.sse import STOPPING
from leadline.tokenizer import Tokenizer

if TYPE_CHECKING:
    from leadline.server.platform import Platform

access = logging.getLogger(ACCESS)

_SLASHES = re.compile("//+")

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")  # a label takes no word of a client's choosing


def create_app(
    engine: EngineProtocol,
    tokenizer: Tokenizer,
    settings: ServerSettings | None = None,
    platform: Platform | None = None,
) -> FastAPI:
    """Without a `platform` there are no accounts, and whoever is on this machine is served."""
    settings = settings or ServerSettings()
    metrics = Metrics(engine)
    service = CompletionService(engine, tokenizer, settings, metrics, platform)
    app = FastAPI(
        title="leadline",
        description=DISCLAIMER,
        version=__version__,
        lifespan=_lifespan(engine, platform, metrics, settings),
        docs_url=None,  # the documentation page would load its scripts from another host
        redoc_url=None,
        redirect_slashes=False,
    )
    errors.install(app, settings.retry_after_seconds)
    _add_index(app, service, platform)
    _add_probes(app, service, platform)
    router = build_router(service)
    for prefix in PREFIXES:
        app.include_router(router, prefix=prefix)
    if platform is None:
        _add_balance(app)
        app.add_middleware(LoopbackGuard, allowed_hosts=settings.allowed_hosts)
    else:
        from leadline.server.site import add_platform  # brings the database along

        add_platform(app, platform, service)
    app.add_middleware(RequestContext, metrics=metrics)
    return app


def _add_index(app: FastAPI, service: CompletionService, platform: Platform | None) -> None:
    """The website and its files, if there are accounts; at `/` a person gets the page and a program what is served."""
    pages = None if platform is None else Pages()
    if pages is not None:
        pages.add_to(app)
        _add_nowhere(app, pages)

    @app.head("/", include_in_schema=False)
    @app.get("/")
    async def index(request: Request) -> Response:
        if pages is not None and wants_page(request):
            return await pages.page(request)
        return errors.json_response(
            {
                "name": "leadline",
                "version": __version__,
                "model": service.model,
                "about": DISCLAIMER,
                "links": {"api": "/v1", "models": "/v1/models", "health": "/health", "metrics": "/metrics"},
            }
        )


def _add_nowhere(app: FastAPI, pages: Pages) -> None:
    """A person who mistypes an address gets a page, a program the error."""

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 404 and request.method in ("GET", "HEAD") and wants_page(request):
            return pages.nowhere(request)
        return errors.http_error_response(error)

    app.add_exception_handler(HTTPException, http_error)


def _add_probes(app: FastAPI, service: CompletionService, platform: Platform | None) -> None:
    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> Response:
        """The process is to be restarted when this fails."""
        _check_engine(service)
        return errors.json_response({"status": "ok"})

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready")
    async def ready() -> Response:
        """Requests are to be sent elsewhere while this fails."""
        _check_engine(service)
        if platform is not None:
            await platform.check_ready()
        return errors.json_response({"status": "ready"})

    @app.head("/metrics", include_in_schema=False)
    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        if platform is not None:
            await platform.operator(request)
        return Response(service.metrics.render(), media_type=CONTENT_TYPE)


def _check_engine(service: CompletionService) -> None:
    if not service.engine.stats().alive:
        raise EngineDead("the engine has stopped; restart the server")


def _add_balance(app: FastAPI) -> None:
    """Where nothing costs anything, clients that look first are told that they may go on."""

    async def user_balance() -> Response:
        return errors.json_response({"is_available": True, "balance_infos": []})

    for prefix in PREFIXES:
        app.add_api_route(f"{prefix}/user/balance", user_balance, methods=["GET"])


class RequestContext:
    """The outermost middleware: a request id on every answer, a count and a line of it, a JSON 500 for a fault of ours.

    The line has the route and not the path, which may hold the secret of a link, and nothing of what was said.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["path"] = _tidy(scope["path"])
        request_id = f"req_{uuid.uuid4().hex}".encode("ascii")
        started, begun = False, time.monotonic()

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id)]}
                scope["status"] = message["status"]
                self._count(scope, message["status"])
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception as error:
            if started:
                raise  # uvicorn logs it and cuts the connection, which is all that can still be said
            await errors.error_response(errors.fault(error))(scope, receive, send_with_id)
        except asyncio.CancelledError:  # the server stops and its grace is over
            if not started:
                await errors.error_response(STOPPING)(scope, receive, send_with_id)
        finally:
            self._note(scope, request_id.decode("ascii"), time.monotonic() - begun)

    def _note(self, scope: Scope, request_id: str, seconds: float) -> None:
        if access.isEnabledFor(logging.INFO):
            facts = {"route": _route(scope), "status": scope.get("status"), "ms": round(1000 * seconds)}
            facts |= {"account": scope.get("account"), "request": request_id}
            facts |= {name: scope[name] for name in ("code", "answer") if name in scope}
            access.info("%s %s", _method(scope), _route(scope), extra=facts)

    def _count(self, scope: Scope, status: int) -> None:
        self.metrics.responses.labels(_method(scope), _route(scope), str(status)).inc()


def _route(scope: Scope) -> str:
    """The route as it is written down, never what a client wrote. A router that is included under several prefixes has
    its paths without them."""
    path = getattr(scope.get("route"), "path", None)
    if path is None:
        return "other"
    asked = str(scope["path"])
    under = (each for each in PREFIXES if asked.startswith(f"{each}/") and not path.startswith(f"{each}/"))
    return max(under, key=len, default="") + str(path)


def _tidy(path: str) -> str:
    """Without the slashes that clients add when they join a base URL that ends in one to a path: all they mean is said
    without them. It comes before every check of a path."""
    return "/" + _SLASHES.sub("/", path).strip("/")


def _method(scope: Scope) -> str:
    return str(scope["method"]) if scope["method"] in _METHODS else "other"


def _lifespan(
    engine: EngineProtocol, platform: Platform | None, metrics: Metrics, settings: ServerSettings
) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            with metrics.listening(settings.metrics_address):
                async with platform.running(engine.info.model, metrics) if platform else contextlib.nullcontext():
                    yield
        finally:
            await engine.close()

    return lifespan
