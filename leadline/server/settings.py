"""What the server is told at its start. Frozen: a running server never changes its mind."""

from __future__ import annotations

import dataclasses

from leadline.engine.types import SamplingParams

MIB = 1 << 20

# The only names a browser on this machine can have meant; any other Host is another site's name rebound to loopback.
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")

DISCLAIMER = "An independent implementation of DeepSeek-V2. Not affiliated with DeepSeek."

ANY_HOST = "*"  # among the allowed hosts of a server with accounts


@dataclasses.dataclass(frozen=True, slots=True)
class ServerSettings:
    """`defaults` holds the model's own sampling defaults (generation_config.json); OpenAI's where it has none."""

    defaults: SamplingParams = SamplingParams()
    aliases: tuple[str, ...] = ("deepseek-chat", "deepseek-coder")  # accepted in requests; answers carry the real name
    owned_by: str = "leadline"
    embedded: bool = False  # the model is the small one that ships with leadline: the site says what it is good for
    allowed_hosts: tuple[str, ...] = LOOPBACK_HOSTS
    max_body_bytes: int = 32 * MIB
    max_choices: int = 128  # prompts times n of one request
    keep_alive_seconds: float = 15.0  # silence after which a waiting client hears that it is still being served
    retry_after_seconds: int = 1
    metrics_address: str | None = None  # HOST:PORT where /metrics is served to whoever reaches it
