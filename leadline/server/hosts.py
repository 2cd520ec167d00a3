"""Who may talk to a server without accounts: this machine, and no web page of another origin.

Three doors are shut. A name that an attacker's DNS rebinds to loopback arrives with its own Host. A page elsewhere that
calls us from a browser arrives with its Origin, or with Sec-Fetch-Site. And what a page may send without being asked
first, a form or plain text, is no JSON, which is the only thing bodies are read as. No CORS header is ever sent.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from leadline.errors import ConfigError, LeadlineError, PermissionDenied
from leadline.server.errors import error_response


class LoopbackGuard:
    """ASGI middleware that refuses what did not come from this machine's own programs and pages."""

    def __init__(self, app: ASGIApp, allowed_hosts: Collection[str]) -> None:
        self.app = app
        self.allowed_hosts = frozenset(host.lower() for host in allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = self._refusal(scope) if scope["type"] == "http" else None
        if refused is None:
            await self.app(scope, receive, send)
        else:
            await error_response(refused)(scope, receive, send)

    def _refusal(self, scope: Scope) -> LeadlineError | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if host_name(host) not in self.allowed_hosts:
            text = f"the Host {host[:100]!r} is not this server's: use http://127.0.0.1 and its port"
            return PermissionDenied(text, code="wrong_host")
        origin = headers.get("origin")
        if origin is not None and urlsplit_netloc(origin) != host.lower():
            return PermissionDenied(f"requests from the origin {origin[:100]!r} are not accepted", code="wrong_origin")
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not _is_visit(scope, headers):
            return PermissionDenied("requests from other sites are not accepted", code="wrong_origin")
        return None


def host_name(host: str) -> str:
    """The Host header without its port, in lower case; an IPv6 address keeps its brackets."""
    name, bracket, _ = host.partition("]")
    return f"{name}]".lower() if bracket else host.partition(":")[0].lower()


def urlsplit_netloc(origin: str) -> str:
    """An Origin's host and port; empty for `null` and for what is no URL."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def check_bind_host(host: str) -> str:
    """`host` when it is loopback; without accounts nothing else may be bound."""
    if is_loopback(host):
        return host.strip("[]")
    raise ConfigError(
        f"--host {host}: a server without accounts answers this machine only; use 127.0.0.1, ::1 or localhost",
        param="host",
    )


def check_public_host(host: str, *, private: bool) -> str:
    """`host` for a server with accounts; one that others reach needs a `private` way for their passwords and keys."""
    if is_loopback(host) or private:
        return host.strip("[]")
    raise ConfigError(
        f"--host {host}: passwords and keys would travel in the clear; give --tls-cert and --tls-key, or the address "
        "of the proxy that does TLS as --trusted-proxy, or say --insecure",
        param="host",
    )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _is_visit(scope: Scope, headers: Headers) -> bool:
    """Someone followed a link to us: the page is shown to them, not to the other site."""
    return scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"
