"""The platform's own routes and its doors: who may call what from where.

Under /api the site talks to its own origin: the cookie is sent nowhere else, what changes something must come from a
page of ours, and no CORS header is ever given. Everything else is for programs with a key, which any page may be:
there CORS is open, and cookies mean nothing.
"""

from __future__ import annotations

from collections.abc import Collection

from fastapi import APIRouter, FastAPI, Request
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from leadline.errors import LeadlineError, PermissionDenied
from leadline.server.account import AccountRoutes
from leadline.server.admin import AdminRoutes
from leadline.server.answer_routes import AnswerRoutes
from leadline.server.answers import Answers
from leadline.server.billing import current_price
from leadline.server.chat_routes import ChatRoutes
from leadline.server.completion import CompletionService
from leadline.server.errors import error_response, json_response
from leadline.server.hosts import host_name, urlsplit_netloc
from leadline.server.ledger import balance
from leadline.server.legacy import LegacyRoutes
from leadline.server.library_routes import LibraryRoutes
from leadline.server.money import format_money
from leadline.server.openai import PREFIXES
from leadline.server.platform import Platform
from leadline.server.settings import ANY_HOST
from leadline.server.site_routes import SiteRoutes
from leadline.server.temporary import TemporaryRoutes
from leadline.server.titles import Titler

SITE = "/api/"
LEGACY = "/api/v0/"  # the chat protocol of 2024: bearer tokens alone, from programs that send another site's Origin
_SAFE = ("GET", "HEAD", "OPTIONS")
_OWN = ("same-origin", "none")

_CORS = [
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", b"x-request-id, x-leadline-warning, retry-after"),
]
_PREFLIGHT = {
    "access-control-allow-methods": "GET, POST, DELETE",
    "access-control-allow-headers": "authorization, content-type, idempotency-key, x-requested-with",
    "access-control-max-age": "600",
}


def add_platform(app: FastAPI, platform: Platform, service: CompletionService) -> None:
    titler = Titler(service, lambda: platform.store.database, platform.settings.titles)
    answers = Answers(service, lambda: platform.store.database, platform.settings.linger_seconds, titler)
    platform.answers = answers
    pages = (
        SiteRoutes(platform, service),
        AccountRoutes(platform),
        ChatRoutes(platform, answers),
        AnswerRoutes(platform, service, answers),
        TemporaryRoutes(platform, service),
        LegacyRoutes(platform, service, answers),
        LibraryRoutes(platform),
        AdminRoutes(platform, service, answers),
    )
    for routes in pages:
        app.include_router(routes.router())
    for prefix in PREFIXES:
        app.include_router(_balance_router(platform), prefix=prefix)
    app.add_middleware(SiteGuard, allowed_hosts=service.settings.allowed_hosts)
    if platform.settings.trusted_proxies:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=list(platform.settings.trusted_proxies))


def _balance_router(platform: Platform) -> APIRouter:
    router = APIRouter()

    @router.get("/user/balance")
    async def user_balance(request: Request) -> Response:
        """In DeepSeek's format."""
        principal = await platform.admit(request)
        store = platform.store
        async with store.database.read() as connection:
            has = await balance(connection, principal.owner, store.now())
            price = await current_price(connection, platform.model)
        info = {
            "currency": platform.settings.currency,
            "total_balance": format_money(has.total),
            "granted_balance": format_money(has.granted),
            "topped_up_balance": format_money(has.topped_up),
        }
        free = price.ceiling(1, 1) == 0
        return json_response({"is_available": free or has.available > 0, "balance_infos": [info]})

    return router


class SiteGuard:
    """ASGI middleware: the Host, the Origin, and CORS."""

    def __init__(self, app: ASGIApp, allowed_hosts: Collection[str]) -> None:
        self.app = app
        self.allowed_hosts = frozenset(host.lower() for host in allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        site = scope["path"].startswith(SITE) and not scope["path"].startswith(LEGACY)
        if (refused := self._refusal(scope["method"], headers, site=site)) is not None:
            await error_response(refused)(scope, receive, send)
        elif site:
            await self.app(scope, receive, send)
        elif scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await Response(status_code=204, headers=_PREFLIGHT)(scope, receive, _with_cors(send))
        else:
            await self.app(scope, receive, _with_cors(send))

    def _refusal(self, method: str, headers: Headers, *, site: bool) -> LeadlineError | None:
        host = headers.get("host", "")
        if ANY_HOST not in self.allowed_hosts and host_name(host) not in self.allowed_hosts:
            text = f"the Host {host[:100]!r} is not this server's; a name that it should answer to is an --allowed-host"
            return PermissionDenied(text, code="wrong_host")
        if not site or method in _SAFE:
            return None
        origin = headers.get("origin")
        if origin is not None and urlsplit_netloc(origin) != host.lower():
            text = f"requests from the origin {origin[:100]!r} are not accepted by the Host {host[:100]!r}; "
            text += "a proxy between the two must pass on the browser's Host, with its port"
            return PermissionDenied(text, code="wrong_origin")
        if headers.get("sec-fetch-site", "same-origin") not in _OWN:
            return PermissionDenied("requests from other sites are not accepted", code="wrong_origin")
        return None


def _with_cors(send: Send) -> Send:
    async def sender(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *_CORS]}
        await send(message)

    return sender
