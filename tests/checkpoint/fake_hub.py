"""Both hubs on a loopback port: the calls that downloads make, with ranges, and connections that break on demand."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """Serves one repository, `org/model`, from a folder. `break_after` cuts each answer until it has run out."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.requested: list[tuple[str, str | None]] = []  # (file, Range header)
        self.breaks: list[int] = []  # bytes after which the next answers break off
        self.lies: dict[str, str] = {}  # file -> the sha256 to state instead of the true one

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def digest(self, name: str) -> str:
        return self.lies.get(name) or hashlib.sha256((self.folder / name).read_bytes()).hexdigest()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path.startswith("/api/models/org/model"):
            self.json(200, {"id": "org/model", "sha": COMMIT, "siblings": list(self.siblings())})
        elif url.path.startswith("/org/model/resolve/"):
            self.file(url.path.split("/", 5)[5])
        elif url.path == "/api/v1/models/org/model/repo/files":
            self.json(200, {"Code": 200, "Data": {"Files": list(self.modelscope_files())}})
        elif url.path == "/api/v1/models/org/model/repo":
            self.file(parse_qs(url.query)["FilePath"][0])
        else:
            self.json(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})

    def names(self) -> list[str]:
        return sorted(path.name for path in self.server.folder.iterdir())

    def siblings(self) -> Iterator[dict[str, Any]]:
        for name in self.names():
            size = (self.server.folder / name).stat().st_size
            large = {"lfs": {"sha256": self.server.digest(name), "size": size, "pointerSize": 100}}
            yield {"rfilename": name, "size": size, **(large if name.endswith(".safetensors") else {})}

    def modelscope_files(self) -> Iterator[dict[str, Any]]:
        for name in self.names():
            size = (self.server.folder / name).stat().st_size
            yield {"Path": name, "Size": size, "Sha256": self.server.digest(name), "Type": "blob"}

    def file(self, name: str) -> None:
        if name not in self.names():
            self.json(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        data, span = (self.server.folder / name).read_bytes(), self.headers.get("Range")
        start = int(span.removeprefix("bytes=").partition("-")[0]) if span else 0
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(len(data) - start))
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Size", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.server.requested.append((name, span))
            self.body(data[start:])

    def body(self, data: bytes) -> None:
        if self.server.breaks and self.server.breaks[0] < len(data):
            data = data[: self.server.breaks.pop(0)]
            self.close_connection = True
        self.wfile.write(data)

    def json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@contextmanager
def serving(folder: Path) -> Iterator[FakeHub]:
    with FakeHub(folder) as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()
