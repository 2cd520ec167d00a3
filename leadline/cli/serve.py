"""`leadline serve`: a model with the website, the platform and the OpenAI API; with --open the API alone.

Every option can stand in a TOML file (`--config`) and in the environment: --max-num-seqs is `max-num-seqs` there and
LEADLINE_SERVE_MAX_NUM_SEQS here. A flag wins over the environment, that over the file, that over the default.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cyclopts import App, ArgumentCollection
from cyclopts.config import Dict, Env

from leadline.cli.options import (
    ACCOUNTS,
    LARGER,
    MODEL,
    REMOTE,
    STORE,
    WATCH,
    AccountOptions,
    ModelOptions,
    RemoteOptions,
    StoreOptions,
    WatchOptions,
    default_params,
)
from leadline.config import did_you_mean, read_toml
from leadline.engine.types import EngineInfo, EngineProtocol, SamplingParams
from leadline.errors import ConfigError, ModelNotFound

if TYPE_CHECKING:
    from leadline.server.owner import FirstSteps
    from leadline.server.platform import Platform
    from leadline.tokenizer import Tokenizer

ENVIRONMENT = "LEADLINE_SERVE_"


def _from_environment(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    known = {each.name.lstrip("-").upper().replace("-", "_") for each in arguments}
    for name in sorted(os.environ):
        word = name.removeprefix(ENVIRONMENT)
        if name.startswith(ENVIRONMENT) and word not in known:
            raise ConfigError(f"environment: {name} is no option of leadline serve{did_you_mean(word, known)}")
    Env(ENVIRONMENT, command=False)(app, commands, arguments)


def _from_file(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """The file that --config names, if it does."""
    named = [token.value for each in arguments if each.name == "--config" for token in each.tokens]
    if not named:
        return
    path = Path(named[-1]).expanduser()
    table = read_toml(path)
    if isinstance(table.get("open"), bool):  # the flag's other half
        table["accounts"] = not table.pop("open")
    Dict(table, source=str(path), use_commands_as_keys=False)(app, commands, arguments)


app = App(name="serve", config=(_from_environment, _from_file))


@app.default
def serve(
    *,
    model: ModelOptions = MODEL,
    max_num_seqs: int = 32,
    host: str = "127.0.0.1",
    port: int = 8000,
    served_model_name: str | None = None,
    owned_by: str = "leadline",
    grace: int = 30,
    accounts: AccountOptions = ACCOUNTS,
    store: StoreOptions = STORE,
    watch: WatchOptions = WATCH,
    remote: RemoteOptions = REMOTE,
    config: Path | None = None,
) -> None:
    """Serve a model: the website, the platform and the OpenAI API.

    Args:
        max_num_seqs: Answers that are worked on at the same time; more wait.
        host: The address to listen on; one that others reach needs TLS, or a proxy that does it. With --open a
            loopback address: 127.0.0.1, ::1 or localhost.
        port: 0 takes any that is free.
        served_model_name: What the API calls the model; its own name by default.
        owned_by: Whom /models names as the model's owner: who runs this server.
        grace: Seconds that running answers get to finish when the server is stopped.
        config: A TOML file with any of these options under their names.
    """
    from leadline.server.app import create_app
    from leadline.server.hosts import check_bind_host, check_public_host, is_loopback
    from leadline.server.logs import set_up
    from leadline.server.metrics import split_address
    from leadline.server.run import bind, check_tls, serve_app, url
    from leadline.server.settings import ServerSettings

    set_up(watch.log_format, watch.log_level)
    if watch.metrics_address is not None:
        split_address(watch.metrics_address)
    tls = check_tls(accounts.tls_cert, accounts.tls_key)
    private = bool(tls or accounts.trusted_proxy or accounts.insecure)
    bound = check_public_host(host, private=private) if accounts.accounts else check_bind_host(host)
    with bind(bound, port) as sock:
        address = url(sock, "https" if tls else "http")
        embedded = model.model is None and remote.engine_url is None
        platform = _platform(accounts, store, embedded=embedded) if accounts.accounts else None
        if remote.engine_url is not None:
            works = _remote(model, remote, served_model_name)
        else:
            works = _local(model, max_num_seqs, served_model_name, single_owner=not accounts.accounts)
        settings = ServerSettings(
            defaults=works.defaults,
            owned_by=owned_by,
            embedded=embedded,
            allowed_hosts=_hosts(address, accounts, local=is_loopback(host)),
            metrics_address=watch.metrics_address,
        )
        served = create_app(works.engine, works.tokenizer, settings, platform)
        alone = is_loopback(host) and not accounts.trusted_proxy  # nobody else reads what is printed or comes in
        steps = _first_steps(platform) if platform and alone else None
        link = f"{address}/signin#{steps.link}" if steps else None
        greeting = _greeting(works.engine.info, address, steps.key if steps else None, link, embedded=embedded)
        open_link = link if accounts.browser else None
        serve_app(served, sock, ready=lambda: _greet(greeting, open_link), grace=grace, tls=tls)


@dataclasses.dataclass(frozen=True)
class Works:
    """What makes the answers."""

    engine: EngineProtocol
    tokenizer: Tokenizer
    defaults: SamplingParams


def _local(model: ModelOptions, max_num_seqs: int, name: str | None, *, single_owner: bool) -> Works:
    from leadline.engine.aio import AsyncEngine

    loaded = model.load(max_num_seqs=max_num_seqs, name=name, single_owner=single_owner)
    return Works(AsyncEngine(loaded.engine), loaded.tokenizer, default_params(loaded))


def _remote(model: ModelOptions, remote: RemoteOptions, name: str | None) -> Works:
    """Only the tokenizer and the sampling defaults are read here; torch is not needed."""
    from leadline.checkpoint.generation import read_generation_config
    from leadline.checkpoint.source import Folder, find_source
    from leadline.client.remote import connect
    from leadline.tokenizer import Tokenizer

    source = find_source(model.model)
    if not isinstance(source, Folder):
        raise ModelNotFound(
            f"{model.model}: no such folder; with --engine-url, --model is a folder with a tokenizer.json"
        )
    tokenizer = Tokenizer.from_folder(source.path)
    engine = asyncio.run(
        connect(
            remote.engine_url or "",
            key=remote.engine_key,
            model=remote.engine_model,
            name=name,
            context_length=model.max_model_len,
            vocab_size=tokenizer.vocab_size,
        )
    )
    defaults: dict[str, Any] = read_generation_config(source.path).sampling_defaults()
    return Works(engine, tokenizer, SamplingParams(**defaults))


def _hosts(address: str, options: AccountOptions, *, local: bool) -> tuple[str, ...]:
    """The names that requests may be sent to."""
    from leadline.server.hosts import host_name
    from leadline.server.settings import ANY_HOST, LOOPBACK_HOSTS

    if not local:
        return options.allowed_host or (ANY_HOST,)
    return tuple(sorted({*LOOPBACK_HOSTS, host_name(urlsplit(address).netloc), *options.allowed_host}))


def _platform(options: AccountOptions, store: StoreOptions, *, embedded: bool) -> Platform:
    """What is wrong with the books is told now, before a model is loaded."""
    from leadline.server.platform import Platform, PlatformSettings
    from leadline.server.store import open_store

    settings = PlatformSettings(
        folder=store.folder,
        database=store.database,
        currency=options.currency,
        signup=options.signup,
        trusted_proxies=options.trusted_proxy,
        requests_per_minute=options.requests_per_minute,
        concurrency=options.concurrency,
        retention_days=options.retention_days,
        titles=options.titles or ("words" if embedded else "model"),
    )

    async def check() -> None:
        async with open_store(settings.folder, settings.database) as opened:
            await opened.set_currency(settings.currency)

    asyncio.run(check())
    return Platform(settings)


def _first_steps(platform: Platform) -> FirstSteps:
    """Who starts a server on their own machine gets a way in and a key."""
    from leadline.server.owner import first_steps
    from leadline.server.store import open_store

    async def work() -> FirstSteps:
        async with open_store(platform.settings.folder, platform.settings.database) as opened:
            return await first_steps(opened)

    return asyncio.run(work())


def _greeting(info: EngineInfo, url: str, key: str | None, link: str | None, *, embedded: bool) -> str:
    from leadline.server.legal import known_licence

    body = json.dumps({"model": info.model, "messages": [{"role": "user", "content": "Hello, who are you?"}]})
    proof = f" -H 'authorization: Bearer {key}'" if key else ""
    licence = known_licence(info.model)
    lines = [
        f"{info.model} is served at {url} ({info.dtype} on {info.device}, context {info.context_length})",
        f"  curl {url}/v1/chat/completions{proof} -H 'content-type: application/json' -d '{body}'",
        f"  Sign in, once and within the hour: {link}" if link else "",
        f"  The model's licence: {licence['name']}, {licence['url']}" if licence else "",
        f"  It is very small: for a large one {LARGER}" if embedded else "",
        "Ctrl-C stops it. Not affiliated with DeepSeek.",
    ]
    return "\n".join(line for line in lines if line)


def _greet(greeting: str, link: str | None) -> None:
    print(greeting, flush=True)
    if link is not None and sys.stdout.isatty() and _has_display():
        webbrowser.open(link)


def _has_display() -> bool:
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
