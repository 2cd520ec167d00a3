"""What every engine refuses before any work: prompts that do not fit, tokens that do not exist, features it lacks.

No torch: the fake engine and the scheduler check with the same lines as the real one.
"""

from __future__ import annotations

from leadline.engine.types import EngineInfo, EngineRequest
from leadline.errors import ContextLengthExceeded, InvalidRequest


def check_request(request: EngineRequest, info: EngineInfo, *, grammars: bool = False, adapters: bool = False) -> None:
    """Raise `InvalidRequest`, or `ContextLengthExceeded` with the numbers."""
    ids, params = request.prompt_ids, request.params
    if not ids:
        raise InvalidRequest("the prompt is empty", param="prompt")
    check_length(len(ids), info)
    if min(ids) < 0 or max(ids) >= info.vocab_size:
        raise InvalidRequest(f"prompt token ids must lie in [0, {info.vocab_size})", param="prompt")
    if any(not 0 <= token < info.vocab_size for token, _ in params.logit_bias):
        raise InvalidRequest(f"logit_bias token ids must lie in [0, {info.vocab_size})", param="logit_bias")
    if any(not 0 <= token < info.vocab_size for token in params.stop_token_ids):
        raise InvalidRequest(f"stop_token_ids must lie in [0, {info.vocab_size})", param="stop_token_ids")
    if params.grammar is not None and not grammars:
        raise InvalidRequest("this engine has no grammars: structured output is not available", param="grammar")
    if params.adapter is not None and not adapters:
        raise InvalidRequest(f"this engine has no adapter {params.adapter!r}", param="adapter")


def check_length(tokens: int, info: EngineInfo) -> None:
    """One token at least must be left for the answer."""
    if tokens >= info.context_length:
        raise ContextLengthExceeded(
            f"the prompt has {tokens} tokens, but the context holds {info.context_length} "
            f"and at least one must be left for the answer",
            param="prompt",
        )
    if tokens >= info.cache_tokens:
        raise ContextLengthExceeded(
            f"the prompt has {tokens} tokens, but the cache holds {info.cache_tokens}; give the engine more memory",
            param="prompt",
        )
