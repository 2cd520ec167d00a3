"""Running an app with uvicorn: the port first, then the model, then the requests.

The socket is bound before the slow part, so that a port in use is said at once, and listens only when the app can
answer. A first SIGTERM or Ctrl-C lets running answers finish for `grace` seconds; a second one leaves at once.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn
from starlette.types import ASGIApp

from leadline.errors import ConfigError
from leadline.server.connections import Connection, allow_many

IDLE_SECONDS = 75  # a kept connection is closed after: longer than common clients and proxies keep theirs


class Tls(NamedTuple):
    cert: Path
    key: Path


def check_tls(cert: Path | None, key: Path | None) -> Tls | None:
    """The files, when they are given and fit."""
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise ConfigError("--tls-cert and --tls-key belong together", param="tls_cert")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)
    except OSError as error:  # SSLError is one
        raise ConfigError(f"{cert} and {key} cannot be used for TLS: {error}", param="tls_cert") from None
    return Tls(cert, key)


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet; port 0 takes any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except (OSError, OverflowError) as error:
        sock.close()
        raise ConfigError(_why_not(error, host, port), param="port") from None
    return sock


def url(sock: socket.socket, scheme: str = "http") -> str:
    host, port = sock.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class Server(uvicorn.Server):
    """`ready` is called once requests are answered."""

    def __init__(self, app: ASGIApp, *, ready: Callable[[], None], grace: int, tls: Tls | None = None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ws="none",
                timeout_keep_alive=IDLE_SECONDS,
                timeout_graceful_shutdown=grace,
                ssl_certfile=tls.cert if tls else None,
                ssl_keyfile=tls.key if tls else None,
            )
        )
        self._ready = ready
        logging.getLogger("uvicorn.access").disabled = True  # its lines have queries; ours are `leadline.access`

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()


def serve_app(
    app: ASGIApp, sock: socket.socket, *, ready: Callable[[], None], grace: int = 30, tls: Tls | None = None
) -> None:
    """Serve until a signal comes; returns when every answer has ended or the grace is over."""

    def settled() -> None:
        calm_collector()
        ready()

    allow_many()
    with _quiet_end():
        Server(app, ready=settled, grace=grace, tls=tls).run(sockets=[sock])


def calm_collector() -> None:
    """Python's collector stops every stream while it walks through what is there: a quarter of a second, once torch is
    loaded. What is there when serving begins stays, so it is set aside; the rest is looked through less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


@contextlib.contextmanager
def _quiet_end() -> Generator[None, None, None]:
    """uvicorn raises the signal that stopped it once more at its end; by then there is nothing left to stop."""
    before: Any = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


def _why_not(error: OSError | OverflowError, host: str, port: int) -> str:
    if isinstance(error, OverflowError):
        return f"--port {port}: a port lies between 0 and 65535"
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use; choose another with --port"
    return f"cannot listen on {host}, port {port}: {error.strerror}"
