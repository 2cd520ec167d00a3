"""Bodies: strict JSON, limits, and OpenAI's four keys in every refusal."""

from __future__ import annotations

import math
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from leadline.engine.fake import FakeEngine
from leadline.errors import InsufficientBalance, InvalidRequest, PermissionDenied, RateLimited
from leadline.server.app import create_app
from leadline.server.body import LARGE, parse_json
from leadline.server.errors import error_response
from leadline.server.settings import ServerSettings
from leadline.tokenizer import Tokenizer
from tests.fixtures_server import LiveServer, live_server

JSON = {"content-type": "application/json"}


def check_error(response: httpx2.Response, status: int) -> Any:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"].startswith("req_")
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"[]",
        b'"text"',
        b"null",
        b"1",
        b"\xff\xfe",
        b'{"prompt": "\xc3"}',
        b'{"prompt": "x", "temperature": NaN}',
        b'{"prompt": "x", "temperature": Infinity}',
        b'{"prompt": "x", "temperature": 1e999}',
        b'{"prompt": "x", "n": ' + b"9" * 5000 + b"}",
        b'{"prompt": "x", "seed": ' + b"9" * 400 + b"}",
        b'{"prompt": "x", "prompt": "y"}',
        b'{"prompt": "x", "metadata": {"a": 1, "a": 2}}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "x", "user": "\\udfff"}',
        b'{"\\ud800": 1, "prompt": "x"}',
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"prompt": "x"} {}',
        b'{"prompt": "x",}',
    ],
)
def test_what_is_not_json_is_400(server: LiveServer, body: bytes) -> None:
    check_error(server.http.post("/v1/completions", content=body, headers=JSON), 400)


def test_what_json_allows_is_accepted(server: LiveServer) -> None:
    body = b'\n {"prompt": "\\ud83d\\ude00 \\u0000 \x7f", "temperature": 1, "x": [1e3, -0.0, "\\u2028"]} \n'
    assert server.http.post("/v1/completions", content=body, headers=JSON).status_code == 200


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}] * 10_001}, "messages"),
        ("/v1/completions", {"prompt": "x", "logit_bias": {str(i): 1 for i in range(10_001)}}, "logit_bias"),
        ("/v1/completions", {"prompt": "x", "stop_token_ids": [5] * 1001}, "stop_token_ids"),
    ],
)
def test_lists_that_would_take_seconds_to_look_at(server: LiveServer, path: str, fields: Any, param: str) -> None:
    assert check_error(server.post(path, fields), 400)["param"] == param


def test_a_large_body_is_read_like_a_small_one(server: LiveServer) -> None:
    """In a thread: what is wrong with it comes out all the same."""
    rest = {"metadata": {"x": "y" * LARGE}}
    assert server.complete(max_tokens=1, **rest).status_code == 200
    assert check_error(server.complete(temperature="x", **rest), 400)["param"] == "temperature"
    body = b'{"prompt": "' + b"x" * LARGE + b'", }'
    check_error(server.http.post("/v1/completions", content=body, headers=JSON), 400)


def test_parse_json_keeps_numbers() -> None:
    assert parse_json(b'{"a": 1, "b": 1.5}') == {"a": 1, "b": 1.5}
    with pytest.raises(InvalidRequest, match="NaN"):
        parse_json(b"NaN")
    assert math.isfinite(parse_json(b"1e308"))


def test_paths_and_methods(server: LiveServer) -> None:
    check_error(server.http.get("/v1/nope"), 404)
    assert "ends in /v1" in check_error(server.post("/v1/embeddings", {"input": "x"}), 404)["message"]
    error = check_error(server.http.get("/v1/chat/completions"), 405)
    assert error["code"] == "method_not_allowed"
    response = server.http.delete("/v1/models")
    assert response.headers["allow"]
    check_error(response, 405)
    check_error(server.http.options("/v1/chat/completions"), 405)
    assert server.http.head("/v1/models").status_code == 200
    assert server.http.head("/health").status_code == 200


def test_a_body_over_the_limit_is_413(tokenizer: Tokenizer) -> None:
    with live_server(tokenizer, ServerSettings(max_body_bytes=10_000)) as server:
        check_error(server.complete("x" * 10_000), 413)
        check_error(server.complete("x" * 100_000), 413)
        chunks = (b"x" * 1000 for _ in range(20))
        check_error(server.http.post("/v1/completions", content=chunks, headers=JSON), 413)
        assert server.complete("x").status_code == 200


def test_thirty_three_megabytes(server: LiveServer) -> None:
    check_error(server.complete("x" * (33 << 20)), 413)


@pytest.mark.parametrize(
    ("error", "headers"),
    [
        (RateLimited("slow down"), {"retry-after": "7"}),
        (InsufficientBalance("no money"), {"x-should-retry": "false"}),
        (PermissionDenied("no"), {"x-should-retry": "false"}),
    ],
)
def test_headers_tell_clients_whether_to_retry(error: Any, headers: dict[str, str]) -> None:
    response = error_response(error, 7)
    assert response.status_code == error.status
    assert headers.items() <= dict(response.headers).items()


def test_a_message_that_quotes_is_cut(server: LiveServer) -> None:
    error = check_error(server.complete(model="m" * 100_000), 404)
    assert len(error["message"]) < 1100


def test_a_fault_of_ours_is_500_in_the_same_form(tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(FakeEngine):
        def submit(self, request: Any) -> Any:
            raise ZeroDivisionError("secret")

    app = create_app(Broken(tokenizer), tokenizer)
    with TestClient(app, base_url="http://localhost") as client:
        for stream in (False, True):
            response = client.post("/v1/completions", json={"prompt": "x", "stream": stream})
            assert response.status_code == 500
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
            assert "secret" not in response.text
            assert response.headers["x-request-id"]
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("path", ["//v1/models", "/v1//models", "/v1/models/", "/beta//models//", "//models"])
def test_a_slash_too_many_in_a_base_url_is_forgiven(server: LiveServer, path: str) -> None:
    assert httpx2.get(f"{server.url}{path}").json()["object"] == "list"
