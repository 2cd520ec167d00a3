"""`leadline serve`: a model behind the OpenAI API, for this machine."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from cyclopts import Parameter

from leadline.cli.options import MODEL, ModelOptions, default_params
from leadline.engine.types import EngineInfo

if TYPE_CHECKING:
    from fastapi import FastAPI

    from leadline.engine.load import LoadedEngine


def serve(
    *,
    model: ModelOptions = MODEL,
    max_num_seqs: int = 32,
    host: str = "127.0.0.1",
    port: int = 8000,
    served_model_name: str | None = None,
    grace: int = 30,
    open_access: Annotated[bool, Parameter(name="--open", negative="")] = True,
) -> None:
    """Serve a model over the OpenAI API, to this machine's own programs.

    Args:
        max_num_seqs: Answers that are worked on at the same time; more wait.
        host: A loopback address: 127.0.0.1, ::1 or localhost.
        port: 0 takes any that is free.
        served_model_name: What the API calls the model; its own name by default.
        grace: Seconds that running answers get to finish when the server is stopped.
        open_access: No accounts and no keys: loopback only, the Host checked, no page of another origin. So far the
            only way, and so the default.
    """
    from leadline.server.hosts import check_bind_host
    from leadline.server.run import bind, serve_app, url

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(name)s: %(message)s")
    with bind(check_bind_host(host), port) as sock:
        loaded = model.load(max_num_seqs=max_num_seqs, name=served_model_name)
        info, address = loaded.engine.info, url(sock)
        serve_app(_app(loaded, address), sock, ready=lambda: print(_greeting(info, address), flush=True), grace=grace)


def _app(loaded: LoadedEngine, address: str) -> FastAPI:
    from leadline.engine.aio import AsyncEngine
    from leadline.server.app import create_app
    from leadline.server.hosts import host_name
    from leadline.server.settings import LOOPBACK_HOSTS, ServerSettings

    hosts = {*LOOPBACK_HOSTS, host_name(urlsplit(address).netloc)}
    settings = ServerSettings(defaults=default_params(loaded), allowed_hosts=tuple(sorted(hosts)))
    return create_app(AsyncEngine(loaded.engine), loaded.tokenizer, settings)


def _greeting(info: EngineInfo, url: str) -> str:
    body = json.dumps({"model": info.model, "messages": [{"role": "user", "content": "Hello, who are you?"}]})
    return (
        f"{info.model} is served at {url} ({info.dtype} on {info.device}, context {info.context_length})\n"
        f"  curl {url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'\n"
        "Ctrl-C stops it. Not affiliated with DeepSeek."
    )
