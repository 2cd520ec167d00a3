"""The website's build: it belongs to its sources, it is whole and small, and it is served safely."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from leadline.server.pages import PAGES, POLICY, STATIC
from leadline.tokenizer import Tokenizer
from tests.fixtures_server import LiveServer
from tests.server.platform.site import Site, live_site
from tests.source import ROOT

WEB = ROOT / "web"
TOP = (
    "index.html package.json package-lock.json sources.mjs svelte.config.js tsconfig.json vite.config.ts".split()
)  # the same list as web/sources.mjs
FIRST_LOAD = 300_000  # bytes, gzipped
BROWSER = {"accept": "text/html,application/xhtml+xml"}


@pytest.fixture(scope="module")
def site(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Generator[Site, None, None]:
    with live_site(tokenizer, tmp_path_factory.mktemp("pages")) as live:
        yield live


def record() -> dict[str, object]:
    found: dict[str, object] = json.loads((STATIC / "build.json").read_text())
    return found


def sources_digest() -> str:
    names = [*TOP, *(str(path.relative_to(WEB)) for top in ("src", "public") for path in (WEB / top).rglob("*"))]
    digest = hashlib.sha256()
    for name in sorted(name for name in names if (WEB / name).is_file()):
        digest.update(f"{name} {hashlib.sha256((WEB / name).read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def test_the_build_belongs_to_its_sources() -> None:
    assert record()["sources"] == sources_digest(), "web/ was changed: run `make web`"


def test_the_build_is_whole() -> None:
    files = {
        path.relative_to(STATIC).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in STATIC.rglob("*")
        if path.is_file()
    }
    copied = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (WEB / "public").iterdir()}
    del files["build.json"]
    assert files == {**copied, **record()["files"]}  # type: ignore[dict-item]


@pytest.mark.slow
def test_building_again_gives_the_same_bytes(tmp_path: Path) -> None:
    """Needs npm and its registry."""
    shutil.copytree(WEB, tmp_path / "web", ignore=shutil.ignore_patterns("node_modules"))
    for command in ("ci", "run check", "run build"):
        subprocess.run(["npm", *command.split()], cwd=tmp_path / "web", check=True, timeout=600)
    built = tmp_path / "leadline/server/static"
    names = {path.relative_to(root) for root in (built, STATIC) for path in root.rglob("*") if path.is_file()}
    assert [name for name in names if (built / name).read_bytes() != (STATIC / name).read_bytes()] == []


def test_the_first_load_is_small_and_comes_from_here() -> None:
    index = (STATIC / "index.html").read_text()
    linked = re.findall(r'(?:src|href)="([^"]+)"', index)
    assert all(link.startswith("/") and not link.startswith("//") for link in linked)
    assert "style=" not in index
    assert "<script>" not in index
    loaded = [STATIC / "index.html", *(STATIC / link.lstrip("/") for link in linked)]
    assert sum(len(gzip.compress(path.read_bytes())) for path in loaded) < FIRST_LOAD


def test_every_refusal_has_its_words_in_chinese() -> None:
    """The server speaks English; the page says in its own language what a code means."""
    listed = (ROOT / "docs/site-api.md").read_text().partition("\n## Errors\n")[2]
    cells = " ".join(line.split("|")[2] for line in listed.splitlines() if "| `" in line)
    said = (WEB / "src/locales/errors.zh.ts").read_text()
    assert set(re.findall(r"`([a-z_]+)`", cells)) == set(re.findall(r"^  ([a-z_]+): '.+',$", said, re.MULTILINE))


def test_nothing_of_the_build_names_another_host_to_load_from() -> None:
    """Addresses in texts and namespaces are not loaded; what a style or script would load is a quoted path or url()."""
    for path in [*STATIC.rglob("*.js"), *STATIC.rglob("*.css")]:
        text = path.read_text(encoding="utf-8")
        assert re.findall(r"""(?:import|fetch|importScripts)\(\s*["'`]https?:""", text) == []
        assert re.findall(r"url\(\s*[\"']?(?:https?:)?//", text) == []


@pytest.mark.parametrize("path", ["/", *PAGES])
def test_every_page_is_the_one_page(site: Site, path: str) -> None:
    answer = site.client().get(re.sub(r"\{\w+\}", "any", path), headers=BROWSER)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.content == (STATIC / "index.html").read_bytes()


def test_a_program_gets_json_at_the_root(site: Site) -> None:
    assert site.client().get("/", headers={"accept": "*/*"}).json()["name"] == "leadline"


def test_without_accounts_there_is_no_website(server: LiveServer) -> None:
    assert server.http.get("/", headers=BROWSER).json()["name"] == "leadline"
    assert server.http.get("/login", headers=BROWSER).status_code == 404


def test_files_with_a_digest_in_their_name_are_kept(site: Site) -> None:
    name = next(path.name for path in (STATIC / "assets").glob("index-*.js"))
    answer = site.client().get(f"/assets/{name}", headers={"accept-encoding": "gzip"})
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["content-type"].startswith("text/javascript")
    assert answer.content == (STATIC / "assets" / name).read_bytes()
    plain = site.client().get(f"/assets/{name}", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == answer.content


def test_the_page_is_sent_again_only_when_it_changed(site: Site) -> None:
    first = site.client().get("/login", headers=BROWSER)
    assert first.headers["cache-control"] == "no-cache"
    again = site.client().get("/login", headers={**BROWSER, "if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert site.client().head("/login", headers=BROWSER).headers["etag"] == first.headers["etag"]


def test_an_address_that_is_none_is_a_page_for_people_and_an_error_for_programs(site: Site) -> None:
    seen = site.client().get("/nowhere", headers=BROWSER)
    assert (seen.status_code, seen.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert seen.headers["content-security-policy"] == POLICY
    again = site.client().get("/nowhere", headers={**BROWSER, "if-none-match": seen.headers["etag"]})
    assert again.status_code == 404
    assert site.client().get("/nowhere").json()["error"]["code"] == "not_found"
    assert site.client().post("/nowhere", headers=BROWSER).json()["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    "path",
    [
        "/assets/../pages.py",
        "/assets/..%2fpages.py",
        "/assets/%2e%2e/%2e%2e/pages.py",
        "/assets/....//pages.py",
        "/assets//etc/passwd",
        "/assets/index.js%00.css",
        "/static/index.html",
        "/build.json",
        "/admin/a/b",
        "/assets/",
    ],
)
def test_nothing_else_is_served(site: Site, path: str) -> None:
    person = site.client().get(path, headers=BROWSER)
    assert (person.status_code, person.content) == (404, (STATIC / "index.html").read_bytes())
    answer = site.client().get(path)
    assert answer.status_code == 404
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
