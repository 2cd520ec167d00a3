"""Prometheus metrics: one registry an app, names after vLLM's. What the engine counts is read when it is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from leadline import __version__
from leadline.engine.types import EngineProtocol
from leadline.errors import ConfigError
from leadline.server.money import NANO

CONTENT_TYPE = CONTENT_TYPE_LATEST
MOST_PORT = 65_535

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5)

# name -> (help, field of EngineStats)
_GAUGES = {
    "leadline_requests_running": ("Requests that the engine works on.", "running"),
    "leadline_requests_waiting": ("Requests that wait for the engine.", "waiting"),
    "leadline_cache_pages": ("Pages of the cache.", "pages_total"),
    "leadline_cache_pages_free": ("Pages that no running request holds.", "pages_free"),
    "leadline_cache_pages_cached": ("Pages that the prefix cache remembers.", "pages_cached"),
    "leadline_engine_alive": ("1 while the engine runs.", "alive"),
}
_COUNTERS = {
    "leadline_requests_finished": ("Requests that came to their end.", "requests_finished"),
    "leadline_requests_cancelled": ("Requests that were given up.", "requests_cancelled"),
    "leadline_prompt_tokens": ("Prompt tokens taken in.", "prompt_tokens"),
    "leadline_cached_prompt_tokens": ("Prompt tokens that came from the prefix cache.", "cached_tokens"),
    "leadline_generation_tokens": ("Tokens generated.", "generated_tokens"),
    "leadline_preemptions": ("Requests put back to make room.", "preemptions"),
    "leadline_engine_steps": ("Passes of the model.", "steps"),
}


class Metrics:
    """What the server measures itself: answers over HTTP, and how long a client waits for tokens."""

    def __init__(self, engine: EngineProtocol) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(engine))
        ProcessCollector(registry=self.registry)  # memory, open files, seconds of processor; on Linux
        Info("leadline_build", "What runs here.", registry=self.registry).info({"version": __version__})
        self.responses = Counter(
            "leadline_http_responses", "Answers over HTTP.", ["method", "path", "status"], registry=self.registry
        )
        self.first_token = self._histogram("leadline_time_to_first_token_seconds", "Wait for the first token.")
        self.inter_token = self._histogram(
            "leadline_inter_token_latency_seconds", "Time from token to token.", _TOKEN_SECONDS
        )
        self.whole = self._histogram("leadline_request_seconds", "Time from a request to the end of its answer.")
        self.answers = Counter(
            "leadline_answers", "Answers that began, by how they ended.", ["outcome"], registry=self.registry
        )
        for outcome in ("finished", "balance", "aborted", "failed"):
            self.answers.labels(outcome)  # a rate needs its zero
        self.disconnects = Counter("leadline_disconnects", "Clients that left before the end.", registry=self.registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(name, help, buckets=buckets, registry=self.registry)

    @contextlib.contextmanager
    def listening(self, address: str | None) -> Generator[None, None, None]:
        """Serve /metrics at HOST:PORT too, meanwhile; from a thread, so that it answers when the loop is busy."""
        if address is None:
            yield
            return
        host, port = split_address(address)
        try:
            server, thread = start_http_server(port, host.strip("[]"), registry=self.registry)
        except OSError as error:
            raise ConfigError(f"cannot serve metrics on {address}: {error.strerror or error}") from None
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def watch_money(self, meters: Money) -> None:
        """Show what `meters` hold and have settled."""
        self.registry.register(MoneyCollector(meters))

    def render(self) -> bytes:
        return generate_latest(self.registry)


class Money(Protocol):
    """What this process holds and has settled, in nano-units, and how old the counts in the books are."""

    @property
    def held(self) -> int: ...

    @property
    def settled(self) -> int: ...

    @property
    def open_holds(self) -> int: ...

    @property
    def behind_seconds(self) -> float: ...


class MoneyCollector(Collector):
    def __init__(self, money: Money) -> None:
        self.money = money

    def collect(self) -> Iterator[Metric]:
        held, settled = self.money.held / NANO, self.money.settled / NANO
        yield GaugeMetricFamily(
            "leadline_money_held", "What running requests hold, in the books' currency.", value=held
        )
        yield GaugeMetricFamily("leadline_holds", "Requests that hold money.", value=float(self.money.open_holds))
        yield CounterMetricFamily("leadline_money_settled", "What was billed since the start.", value=settled)
        yield GaugeMetricFamily(
            "leadline_books_behind_seconds",
            "Since the running answers' counts were last written down; answers wait for it above 1.",
            value=self.money.behind_seconds,
        )


class EngineCollector(Collector):
    """The engine's facts and counts as metrics."""

    def __init__(self, engine: EngineProtocol) -> None:
        self.engine = engine

    def collect(self) -> Iterator[Metric]:
        info, stats = self.engine.info, self.engine.stats()
        facts = {"model": info.model, "dtype": info.dtype, "device": info.device}
        yield InfoMetricFamily("leadline_engine", "The model that is served.", value=facts)
        yield GaugeMetricFamily(
            "leadline_cache_bytes_per_token", "Bytes of cache that a token takes.", value=info.cache_bytes_per_token
        )
        yield GaugeMetricFamily("leadline_cache_tokens", "Tokens that the cache holds.", value=info.cache_tokens)
        yield GaugeMetricFamily("leadline_context_length", "Tokens of a request.", value=info.context_length)
        hits = stats.cached_tokens / stats.prompt_tokens if stats.prompt_tokens else 0.0
        yield GaugeMetricFamily("leadline_cache_hit_rate", "Share of prompt tokens found in the cache.", value=hits)
        for name, (help, field) in _GAUGES.items():
            yield GaugeMetricFamily(name, help, value=float(getattr(stats, field)))
        for name, (help, field) in _COUNTERS.items():
            yield CounterMetricFamily(name, help, value=float(getattr(stats, field)))


def split_address(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > MOST_PORT:
        raise ConfigError(f"{address!r} is no address: write HOST:PORT", param="metrics_address")
    return host, int(port)


class Timing:
    """One request's clock. `now` is `time.monotonic()`."""

    def __init__(self, metrics: Metrics, now: float) -> None:
        self.metrics = metrics
        self.start = self.last = now
        self.started = False

    def token(self, now: float) -> None:
        if self.started:
            self.metrics.inter_token.observe(now - self.last)
        else:
            self.metrics.first_token.observe(now - self.start)
        self.started, self.last = True, now

    def end(self, now: float) -> None:
        self.metrics.whole.observe(now - self.start)
