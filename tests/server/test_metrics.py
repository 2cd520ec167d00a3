"""/metrics: Prometheus text, a registry an app, the engine's own numbers."""

from __future__ import annotations

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from leadline import __version__
from leadline.engine.fake import FakeEngine
from leadline.errors import ConfigError
from leadline.server.app import create_app
from leadline.server.metrics import split_address
from leadline.server.run import bind, url
from leadline.server.settings import ServerSettings
from leadline.tokenizer import Tokenizer
from tests.fixtures_server import live_server


def test_what_it_shows(tokenizer: Tokenizer) -> None:
    with live_server(tokenizer) as server:
        server.chat(max_tokens=5)
        server.http.get("/nope")
        server.http.request("BREW", "/v1/models")
        response = server.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    families = list(text_string_to_metric_families(response.text))
    samples = {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}
    assert samples["leadline_cache_bytes_per_token"] == 31104
    assert samples["leadline_generation_tokens_total"] == 5
    assert samples["leadline_time_to_first_token_seconds_count"] == 1
    assert samples["leadline_inter_token_latency_seconds_count"] == 4
    assert samples["leadline_requests_running"] == 0
    assert samples["process_open_fds"] > 0
    assert f'leadline_build_info{{version="{__version__}"}} 1.0' in response.text
    assert 'leadline_http_responses_total{method="other"' in response.text
    assert 'path="other",status="404"' in response.text


def test_a_client_that_stays_has_not_left(tokenizer: Tokenizer) -> None:
    with live_server(tokenizer) as server:
        for path in ("/v1/chat/completions", "/v1/completions"):
            asked = {"messages": [{"role": "user", "content": "Hi"}]} if "chat" in path else {"prompt": "Hi"}
            for stream in (True, False):
                assert server.post(path, {**asked, "max_tokens": 3, "stream": stream}).status_code == 200
        assert "leadline_disconnects_total 0.0" in server.http.get("/metrics").text


def test_they_can_have_an_address_of_their_own(tokenizer: Tokenizer) -> None:
    with bind("127.0.0.1", 0) as sock:
        address = url(sock).removeprefix("http://")
    with live_server(tokenizer, ServerSettings(metrics_address=address)) as server:
        server.chat(max_tokens=5)
        text = httpx2.get(f"http://{address}/metrics").text
        assert "leadline_generation_tokens_total 5.0" in text
        assert "leadline_cache_hit_rate 0.0" in text
        assert server.http.get("/ready").json() == {"status": "ready"}
        server.engine.kill()
        assert server.http.get("/ready").status_code == 503
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"http://{address}/metrics")


@pytest.mark.parametrize("address", ["9100", "localhost", "localhost:", ":9", "a:99999", "a:-1"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        split_address(address)


def test_apps_do_not_share_a_registry(tokenizer: Tokenizer) -> None:
    for _ in range(2):
        create_app(FakeEngine(tokenizer), tokenizer)


def test_a_route_is_named_as_it_was_asked_for_but_never_in_a_clients_words(tokenizer: Tokenizer) -> None:
    with live_server(tokenizer) as server:
        for path in ("/models", "/v1/models", "/beta/models", "/beta/v1/models", "/v1/models/secret", "/models/v1/x"):
            server.http.get(path)
        text = server.http.get("/metrics").text
    paths = {
        line.split('path="')[1].split('"')[0] for line in text.splitlines() if 'responses_total{method="GET"' in line
    }
    assert paths == {
        "/models",
        "/v1/models",
        "/beta/models",
        "/beta/v1/models",
        "/v1/models/{model:path}",
        "/models/{model:path}",
    }
