"""A server without accounts: loopback only, its own names only, no page of another origin."""

from __future__ import annotations

import pytest

from leadline.errors import ConfigError
from leadline.server.hosts import check_bind_host
from tests.fixtures_server import LiveServer

BODY = b'{"prompt": "x", "max_tokens": 1}'


def post(server: LiveServer, **headers: str) -> int:
    sent = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    response = server.http.post("/v1/completions", content=BODY, headers=sent)
    assert not [name for name in response.headers if name.startswith("access-control")]
    return response.status_code


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:80", "[::1]", "[::1]:8000", "127.0.0.1:1"])
def test_names_of_this_machine(server: LiveServer, host: str) -> None:
    assert post(server, host=host) == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io:8000", "[::2]", "0.0.0.0", "", "a@localhost"]
)
def test_a_rebound_name_is_refused(server: LiveServer, host: str) -> None:
    assert post(server, host=host) == 403
    assert server.http.get("/", headers={"host": host}).status_code == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1", "https://[", "file://"])
def test_a_foreign_origin_is_refused(server: LiveServer, origin: str) -> None:
    assert post(server, origin=origin) == 403


def test_the_own_origin_is_welcome(server: LiveServer) -> None:
    assert post(server, origin=server.url) == 200


def test_fetch_metadata(server: LiveServer) -> None:
    assert post(server, sec_fetch_site="cross-site") == 403
    assert post(server, sec_fetch_site="same-site") == 403
    assert post(server, sec_fetch_site="cross-site", sec_fetch_mode="navigate") == 403
    assert post(server, sec_fetch_site="same-origin") == 200
    visit = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert server.http.get("/", headers=visit).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_a_page_may_send_unasked_is_not_read(server: LiveServer, kind: str) -> None:
    assert post(server, content_type=kind) == 415


def test_json_with_a_charset_is_read(server: LiveServer) -> None:
    assert post(server, content_type="application/json; charset=utf-8") == 200


def test_a_preflight_allows_nothing(server: LiveServer) -> None:
    headers = {"origin": server.url, "access-control-request-method": "POST"}
    response = server.http.options("/v1/chat/completions", headers=headers)
    assert response.status_code == 405
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"])
def test_loopback_may_be_bound(host: str) -> None:
    assert check_bind_host(host) == host.strip("[]")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.com", "", "*"])
def test_other_addresses_are_refused_in_one_line(host: str) -> None:
    with pytest.raises(ConfigError, match="without accounts") as caught:
        check_bind_host(host)
    assert "\n" not in caught.value.message
