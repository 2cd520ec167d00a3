"""`leadline serve`: a model behind the OpenAI API, for this machine or, with accounts, for others too."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from cyclopts import Parameter

from leadline.cli.options import (
    ACCOUNTS,
    MODEL,
    STORE,
    AccountOptions,
    ModelOptions,
    StoreOptions,
    default_params,
)
from leadline.engine.types import EngineInfo

if TYPE_CHECKING:
    from fastapi import FastAPI

    from leadline.engine.load import LoadedEngine
    from leadline.server.platform import Platform, PlatformSettings


def serve(
    *,
    model: ModelOptions = MODEL,
    max_num_seqs: int = 32,
    host: str = "127.0.0.1",
    port: int = 8000,
    served_model_name: str | None = None,
    grace: int = 30,
    open_access: Annotated[bool, Parameter(name="--open", negative="")] = True,
    accounts: AccountOptions = ACCOUNTS,
    store: StoreOptions = STORE,
) -> None:
    """Serve a model over the OpenAI API: to this machine's own programs, or with accounts.

    Args:
        max_num_seqs: Answers that are worked on at the same time; more wait.
        host: Without accounts a loopback address: 127.0.0.1, ::1 or localhost. With accounts any, with TLS.
        port: 0 takes any that is free.
        served_model_name: What the API calls the model; its own name by default.
        grace: Seconds that running answers get to finish when the server is stopped.
        open_access: No accounts and no keys: loopback only, the Host checked, no page of another origin. The default,
            which --accounts turns off.
    """
    from leadline.server.hosts import check_bind_host, check_public_host, is_loopback
    from leadline.server.run import bind, check_tls, serve_app, url

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(name)s: %(message)s")
    tls = check_tls(accounts.tls_cert, accounts.tls_key)
    private = bool(tls or accounts.trusted_proxy or accounts.insecure)
    bound = check_public_host(host, private=private) if accounts.accounts else check_bind_host(host)
    with bind(bound, port) as sock:
        address = url(sock, "https" if tls else "http")
        platform = _platform(accounts, store) if accounts.accounts else None
        key = _prepare(platform.settings, local=is_loopback(host)) if platform else None
        loaded = model.load(max_num_seqs=max_num_seqs, name=served_model_name, single_owner=not accounts.accounts)
        app = _app(loaded, _hosts(address, accounts, local=is_loopback(host)), platform)
        greeting = _greeting(loaded.engine.info, address, key)
        serve_app(app, sock, ready=lambda: print(greeting, flush=True), grace=grace, tls=tls)


def _app(loaded: LoadedEngine, hosts: tuple[str, ...], platform: Platform | None) -> FastAPI:
    from leadline.engine.aio import AsyncEngine
    from leadline.server.app import create_app
    from leadline.server.settings import ServerSettings

    settings = ServerSettings(defaults=default_params(loaded), allowed_hosts=hosts)
    return create_app(AsyncEngine(loaded.engine), loaded.tokenizer, settings, platform)


def _hosts(address: str, options: AccountOptions, *, local: bool) -> tuple[str, ...]:
    """The names that requests may be sent to."""
    from leadline.server.hosts import host_name
    from leadline.server.settings import ANY_HOST, LOOPBACK_HOSTS

    if not local:
        return options.allowed_host or (ANY_HOST,)
    return tuple(sorted({*LOOPBACK_HOSTS, host_name(urlsplit(address).netloc), *options.allowed_host}))


def _platform(options: AccountOptions, store: StoreOptions) -> Platform:
    from leadline.server.platform import Platform, PlatformSettings

    settings = PlatformSettings(
        folder=store.folder,
        database=store.database,
        currency=options.currency,
        signup=options.signup,
        trusted_proxies=options.trusted_proxy,
        requests_per_minute=options.requests_per_minute,
        concurrency=options.concurrency,
    )
    return Platform(settings)


def _prepare(settings: PlatformSettings, *, local: bool) -> str | None:
    """What is wrong with the books is told now; who starts a server on their own machine gets a key."""
    from leadline.server.owner import first_steps
    from leadline.server.store import open_store

    async def work() -> str | None:
        async with open_store(settings.folder, settings.database) as store:
            await store.set_currency(settings.currency)
            return (await first_steps(store)).key if local else None

    return asyncio.run(work())


def _greeting(info: EngineInfo, url: str, key: str | None) -> str:
    body = json.dumps({"model": info.model, "messages": [{"role": "user", "content": "Hello, who are you?"}]})
    proof = f" -H 'authorization: Bearer {key}'" if key else ""
    return (
        f"{info.model} is served at {url} ({info.dtype} on {info.device}, context {info.context_length})\n"
        f"  curl {url}/v1/chat/completions{proof} -H 'content-type: application/json' -d '{body}'\n"
        "Ctrl-C stops it. Not affiliated with DeepSeek."
    )
