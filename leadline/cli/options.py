"""Options that several verbs share, under the same words: which model and how to run it, and how to sample."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from leadline.engine.types import SamplingParams

if TYPE_CHECKING:
    from leadline.engine.load import LoadedEngine


LARGER = "--model deepseek-ai/DeepSeek-V2-Lite-Chat --quantize int4 (leadline plan v2-lite says what it takes)"


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """The words of `LLM`.

    Args:
        model: A folder or a hub id; the embedded model by default.
        dtype: The weights' type; auto is the model's own, float32 for a small model on a CPU.
        device: auto, cpu, cuda or cuda:N.
        max_model_len: Tokens of context; by default what fits, at most what the model was released with.
        max_memory: What weights, cache and activations may take together, as 8GiB or 500MB; what is free by default.
        quantize: Run a model that is not quantised in 8 or 4 bits; `leadline quantize` does it once and for all.
        placement: Whether a quantised folder's weights are mapped from the file or copied into memory of their own;
            auto copies large ones while the model already runs.
        kv_cache_dtype: How the cache stores a token's latents: auto is the weights' type; int8 takes half of bf16, 6bit
            two fifths.
        disk_cache: Keep computed pages of context on the disk, so that a context resent after a restart starts at once.
            auto is on where one person owns everything that is said: chat, generate, and serve without accounts.
        disk_cache_size: What these pages may take, as 8GiB or 500MB.
        disk_cache_days: Pages that were not used for so long are removed.
    """

    model: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    max_model_len: int | None = None
    max_memory: str | None = None
    quantize: Literal["int8", "int4", "mixed"] | None = None
    placement: Literal["auto", "map", "copy"] = "auto"
    kv_cache_dtype: Literal["auto", "bf16", "int8", "6bit", "float32", "float16"] = "auto"
    disk_cache: Literal["auto", "on", "off"] = "auto"
    disk_cache_size: str = "4GiB"
    disk_cache_days: float = 30.0

    def load(
        self, *, max_num_seqs: int = 1, name: str | None = None, single_owner: bool = False, **more: Any
    ) -> LoadedEngine:
        """Load the model and make its engine; imports torch. `name` is what the API calls it, and `single_owner` says
        that everything it is told is one person's. `more` goes to `load_engine` as it is."""
        from leadline.engine.load import load_engine

        options = dataclasses.asdict(self)
        options["disk_cache"] = single_owner if self.disk_cache == "auto" else self.disk_cache == "on"
        return load_engine(**{**options, **more}, max_num_seqs=max_num_seqs, name=name)


def default_params(loaded: LoadedEngine) -> SamplingParams:
    """How the model's authors sample; `SamplingParams`' own defaults where they do not say."""
    defaults: dict[str, Any] = loaded.generation.sampling_defaults()
    return SamplingParams(**defaults)


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """The words of `SamplingParams`; what is not given is the model's own default.

    Args:
        temperature: 0 is the likeliest token, always.
        top_p: Sample from the likeliest tokens that make up this share of the probability.
        top_k: Sample from this many of the likeliest tokens; 0 is all.
        min_p: Sample from tokens at least this likely, measured by the likeliest.
        repetition_penalty: Above 1: tokens that were there before become less likely.
        presence_penalty: From -2 to 2: subtracted once for a token that was generated before.
        frequency_penalty: From -2 to 2: subtracted for each time that a token was generated before.
        seed: The same seed gives the same answer.
        max_tokens: Tokens of an answer, at most; until the context is full by default.
        min_tokens: Tokens of an answer, at least.
        stop: End before this text; may be given up to 16 times.
        ignore_eos: Go on where the model would end.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def params(self, defaults: SamplingParams) -> SamplingParams:
        """The model's `defaults`, changed by what was given."""
        given = {name: value for name, value in vars(self).items() if value is not None and value != ()}
        return dataclasses.replace(defaults, **given)


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class StoreOptions:
    """Where an installation keeps its accounts.

    Args:
        data: The folder of the database and the secrets; leadline in $XDG_DATA_HOME or ~/.local/share by default.
        database: The database's URL, when it is not a file in that folder.
    """

    data: Path | None = None
    database: str | None = None

    @property
    def folder(self) -> Path:
        home = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
        return (self.data or Path(home, "leadline")).expanduser()


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class AccountOptions:
    """A server with accounts.

    Args:
        accounts: The website, accounts, keys and bills. With --open none of it: the API alone, for this machine's own
            programs, the Host checked, no page of another origin.
        signup: Who may make an account: anyone, who has an invitation, or nobody.
        currency: What the books are kept in; the first start decides.
        tls_cert: The certificate's file, to serve https.
        tls_key: Its key's file.
        trusted_proxy: An address whose X-Forwarded-For and X-Forwarded-Proto are believed; may be given several times.
        allowed_host: A name that requests may be sent to; may be given several times. This machine's own names on
            loopback and every name elsewhere by default.
        insecure: Serve other machines without TLS and without a proxy that does it.
        requests_per_minute: Of one account, whatever its keys allow beside.
        concurrency: Requests of one account at the same time.
        retention_days: Forget chats that nobody has touched for so long; pinned ones stay. Never by default.
        titles: What names the website's chats: the model, which is asked after the first answer for nothing, or the
            question's first words. The model by default, unless it is the embedded one.
        browser: Open the sign-in link in a browser, where the server was started on a terminal with a display.
    """

    accounts: Annotated[bool, Parameter(negative="--open")] = True
    signup: Literal["open", "invite", "closed"] = "invite"
    currency: Literal["USD", "CNY"] = "USD"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    trusted_proxy: tuple[str, ...] = ()
    allowed_host: tuple[str, ...] = ()
    insecure: bool = False
    requests_per_minute: int = 600
    concurrency: int = 32
    retention_days: Annotated[int | None, Parameter(validator=Number(gte=1))] = None
    titles: Literal["model", "words"] | None = None
    browser: bool = True


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class RemoteOptions:
    """An engine elsewhere, behind this platform.

    Args:
        engine_url: The URL of an OpenAI-compatible server (vLLM, SGLang, llama.cpp, leadline) that makes the answers;
            --model is then a folder with the model's tokenizer, and no weights are loaded.
        engine_key: The key that server wants; better in the environment than here.
        engine_model: What that server calls the model, when it has several.
    """

    engine_url: str | None = None
    engine_key: str | None = None
    engine_model: str | None = None


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class WatchOptions:
    """What the server tells of itself.

    Args:
        log_format: Lines for people, or one JSON object a line; never with prompts, answers or secrets.
        log_level: info has a line for every request.
        metrics_address: HOST:PORT of a listener of its own for /metrics, without a key; for a private network.
    """

    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    metrics_address: str | None = None


STORE = StoreOptions()
ACCOUNTS = AccountOptions()
WATCH = WatchOptions()
REMOTE = RemoteOptions()
MODEL = ModelOptions()
SAMPLING = SamplingOptions()
