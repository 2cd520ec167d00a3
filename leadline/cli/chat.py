"""`leadline chat`: a conversation in the terminal, with a model in this process or any OpenAI-compatible server."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter

from leadline.cli.options import LARGER, MODEL, ModelOptions, default_params
from leadline.client.backends import ChatBackend, ChatOptions
from leadline.engine.types import SamplingParams
from leadline.errors import ConfigError


def chat(
    *,
    model: ModelOptions = MODEL,
    url: str | None = None,
    api_key: Annotated[str | None, Parameter(env_var="LEADLINE_API_KEY")] = None,
    system: str | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    max_tokens: int | None = None,
    seed: int | None = None,
) -> None:
    """Chat in the terminal; /help lists the commands. From a pipe, each line is a message.

    Args:
        url: A server to talk to instead of a model of one's own; --model is then the name of its model.
        api_key: The server's key or token.
        system: What the model is told before the conversation.
        temperature: 0 is the likeliest answer.
        top_p: Sample from the likeliest tokens that make up this share of the probability.
        max_tokens: Tokens of an answer, at most.
        seed: The same seed gives the same answers.
    """
    options = ChatOptions(temperature, top_p, max_tokens, seed)
    SamplingParams(**options.given())  # a value out of range is said before anything is loaded
    embedded = url is None and model.model is None
    backend = _server(url, api_key, model) if url else _engine(model)
    try:
        _converse(backend, system, options, f"It is very small: for a large one {LARGER}" if embedded else "")
    finally:
        backend.close()


def _server(url: str, api_key: str | None, model: ModelOptions) -> ChatBackend:
    from leadline.client.backends import HttpBackend
    from leadline.client.http import Client

    if model != ModelOptions(model.model):
        raise ConfigError("with --url the server runs the model: of the model's options only --model may be given")
    return HttpBackend(Client(url, api_key=api_key), model.model)


def _engine(model: ModelOptions) -> ChatBackend:
    loaded = model.load(single_owner=True)
    from leadline.client.backends import EngineBackend
    from leadline.engine.aio import AsyncEngine

    return EngineBackend(AsyncEngine(loaded.engine), loaded.tokenizer, default_params(loaded))


def _converse(backend: ChatBackend, system: str | None, options: ChatOptions, remark: str) -> None:
    from leadline.client.terminal import (
        MarkdownScreen,
        PipeReader,
        PlainScreen,
        PromptReader,
        Reader,
        Screen,
        TerminalChat,
        history_file,
    )

    typed = sys.stdin.isatty()
    screen: Screen = MarkdownScreen() if sys.stdout.isatty() else PlainScreen()
    reader: Reader = PromptReader(history_file()) if typed and sys.stdout.isatty() else PipeReader(sys.stdin.buffer)
    if typed:
        screen.note(f"{backend.name}. /help lists the commands. Not affiliated with DeepSeek.")
        if remark:
            screen.note(remark)
    TerminalChat(backend, reader, screen, system=system, options=options, strict=not typed).run()
