"""The website's files: one page that its script fills, and what the page loads. Nothing comes from another host.

The build in `static/` is made from `web/` (`make web`) and travels in the wheel. It is read once, at the start, and
looked up by name, so that no path of a request ever meets the file system. Names under /assets carry a digest of
their content and are kept for good; everything else is asked for again by its ETag.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import mimetypes
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI, Request
from starlette.responses import Response

STATIC = Path(__file__).with_name("static")
ASSETS = "assets/"

# What the page shows at these addresses is its script's decision; none of them is an address of the API.
PAGES = (
    "/c/{chat}",
    "/s/{token}",
    "/login",
    "/signup",
    "/signin",
    "/reset",
    "/terms",
    "/platform",
    "/platform/{page}",
    "/admin",
    "/admin/{page}",
)

# No script but ours, no style in an attribute, nothing from elsewhere, in nobody's frame. `data:` is for one's own
# pictures in the style sheet.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=()",
    "vary": "accept, accept-encoding",
}
_TYPES = {".js": "text/javascript", ".svg": "image/svg+xml", ".woff2": "font/woff2"}
_PACKED = (".js", ".css", ".html", ".svg", ".json", ".txt")


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    content: bytes
    packed: bytes | None  # gzip
    etag: str
    media_type: str
    cache_control: str


class Pages:
    def __init__(self, folder: Path = STATIC) -> None:
        self.files = {
            path.relative_to(folder).as_posix(): _read(path, folder) for path in folder.rglob("*") if path.is_file()
        }

    def add_to(self, app: FastAPI) -> None:
        """All but `/`, which is the API's too."""
        for path in PAGES:
            app.add_api_route(path, self.page, methods=["GET", "HEAD"], include_in_schema=False)
        for name in sorted(self.files.keys() - {"index.html", "build.json"}):
            app.add_api_route(f"/{name}", self._one(name), methods=["GET", "HEAD"], include_in_schema=False)

    async def page(self, request: Request) -> Response:
        return self.answer(request, "index.html")

    def nowhere(self, request: Request) -> Response:
        """The page, which says that it does not exist."""
        answer = self.answer(request, "index.html", fresh=True)
        answer.status_code = 404
        return answer

    def answer(self, request: Request, name: str, *, fresh: bool = False) -> Response:
        file = self.files[name]
        headers = {**_HEADERS, "etag": file.etag, "cache-control": file.cache_control}
        if not fresh and file.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        content = file.content
        if file.packed is not None and "gzip" in request.headers.get("accept-encoding", ""):
            content, headers["content-encoding"] = file.packed, "gzip"
        return Response(content, headers=headers, media_type=file.media_type)

    def _one(self, name: str) -> Callable[[Request], Awaitable[Response]]:
        async def file(request: Request) -> Response:
            return self.answer(request, name)

        return file


def wants_page(request: Request) -> bool:
    """Whether a person's browser asks, and not a program."""
    return "text/html" in request.headers.get("accept", "")


def _read(path: Path, folder: Path) -> File:
    content = path.read_bytes()
    kind = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    named = path.relative_to(folder).as_posix().startswith(ASSETS)
    packed = gzip.compress(content, 9, mtime=0) if path.suffix in _PACKED else None
    return File(
        content,
        packed if packed is not None and len(packed) < len(content) else None,
        f'"{hashlib.sha256(content).hexdigest()[:32]}"',
        kind,
        "public, max-age=31536000, immutable" if named else "no-cache",
    )
