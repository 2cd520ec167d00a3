"""Who answers in the terminal: an engine in this process, or a server over HTTP. `ChatBackend` is the one seam.

Both are asked from an ordinary thread. Closing the generator that `stream` returns, which Ctrl-C leads to, ends the
answer where it is made.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from leadline.client.http import Client
from leadline.engine.types import EngineOutput, EngineProtocol, EngineRequest, SamplingParams
from leadline.errors import EngineError, ModelNotFound

if TYPE_CHECKING:  # talking to a server needs no tokenizer
    from leadline.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, str]]


@dataclasses.dataclass(frozen=True, slots=True)
class ChatOptions:
    """None is the model's or the server's own default."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None

    def given(self) -> dict[str, Any]:
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


class ChatBackend(Protocol):
    """Answers conversations. `name` is what the greeting shows."""

    @property
    def name(self) -> str: ...

    def stream(self, messages: Messages, options: ChatOptions) -> Generator[str, None, None]: ...

    def models(self) -> list[str]:
        """What `choose` takes; the first is the one that answers now."""
        ...

    def choose(self, model: str) -> None: ...

    def forget(self) -> None:
        """The conversation is over: whoever keeps it beside the terminal lets go of it."""
        ...

    def close(self) -> None: ...


def check_choice(model: str, models: Sequence[str]) -> str:
    if model not in models:
        raise ModelNotFound(f"there is no model {model!r} here; there is {', '.join(models)}")
    return model


class HttpBackend:
    """A server. `model` None is the first that it lists."""

    def __init__(self, client: Client, model: str | None = None) -> None:
        self.client = client
        self.model = model or next(iter(client.models()), None)

    @property
    def name(self) -> str:
        return f"{self.model} at {self.client.base_url}"

    def stream(self, messages: Messages, options: ChatOptions) -> Generator[str, None, None]:
        for chunk in self.client.chat_stream(messages, model=self.model, **options.given()):
            if chunk.text:
                yield chunk.text

    def models(self) -> list[str]:
        return sorted(self.client.models(), key=lambda name: name != self.model)

    def choose(self, model: str) -> None:
        self.model = check_choice(model, self.models())

    def forget(self) -> None:
        pass

    def close(self) -> None:
        self.client.close()


class EngineBackend:
    """An engine in this process, asked through an event loop that runs while somebody waits for text."""

    def __init__(self, engine: EngineProtocol, tokenizer: Tokenizer, defaults: SamplingParams) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.defaults = defaults
        self._loop = asyncio.new_event_loop()
        self._numbers = itertools.count()

    @property
    def name(self) -> str:
        info = self.engine.info
        return f"{info.model}, {info.dtype} on {info.device}, context {info.context_length}"

    def stream(self, messages: Messages, options: ChatOptions) -> Generator[str, None, None]:
        ids = self.tokenizer.render(messages, limit=self.engine.info.context_length - 1)
        params = dataclasses.replace(self.defaults, **options.given())
        request = EngineRequest(f"chat-{next(self._numbers)}", ids, params)
        strip = self.tokenizer.answer_opens_with_space
        outputs = self.engine.submit(request)
        try:
            while (output := self._next(outputs)) is not None:
                text = output.text.removeprefix(" ") if strip else output.text
                strip = strip and not output.text
                if text:
                    yield text
        finally:
            self.engine.cancel(request.request_id)
            if isinstance(outputs, AsyncGenerator):
                self._loop.run_until_complete(outputs.aclose())

    def models(self) -> list[str]:
        return [self.engine.info.model]

    def choose(self, model: str) -> None:
        check_choice(model, self.models())

    def forget(self) -> None:
        pass

    def close(self) -> None:
        if not self._loop.is_closed():
            self._loop.run_until_complete(self.engine.close())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    def _next(self, outputs: AsyncIterator[EngineOutput]) -> EngineOutput | None:
        """The next output; None after the last. Ctrl-C leaves no task behind."""
        task = self._loop.create_task(_anext(outputs))
        try:
            output = self._loop.run_until_complete(task)
        except KeyboardInterrupt:
            task.cancel()
            self._loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
            raise
        if output is not None and output.finish_reason == "error":
            raise EngineError(output.error or "the engine failed")
        return output


async def _anext(outputs: AsyncIterator[EngineOutput]) -> EngineOutput | None:
    return await anext(outputs, None)
