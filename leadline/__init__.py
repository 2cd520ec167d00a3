"""leadline: an independent implementation of the DeepSeek-V2 system. Not affiliated with DeepSeek.

`from leadline import LLM, SamplingParams` is the whole offline API; `Client` and `AsyncClient` ask a server. Names load
on first use, so that `import leadline` stays light and the client, the server and the command line never see torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leadline.client.http import AsyncClient as AsyncClient
    from leadline.client.http import Client as Client
    from leadline.engine.llm import LLM as LLM
    from leadline.engine.types import CompletionOutput as CompletionOutput
    from leadline.engine.types import RequestOutput as RequestOutput
    from leadline.engine.types import SamplingParams as SamplingParams
    from leadline.errors import LeadlineError as LeadlineError

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "AsyncClient",
    "Client",
    "CompletionOutput",
    "LeadlineError",
    "RequestOutput",
    "SamplingParams",
    "__version__",
]

_HOMES = {
    "AsyncClient": "leadline.client.http",
    "Client": "leadline.client.http",
    "LLM": "leadline.engine.llm",
    "CompletionOutput": "leadline.engine.types",
    "RequestOutput": "leadline.engine.types",
    "SamplingParams": "leadline.engine.types",
    "LeadlineError": "leadline.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'leadline' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
