"""The golden checks that need no weights, against any OpenAI-compatible server.

They see what a client sees: texts and counts of tokens. A control string that a user typed must cost several tokens,
for as one token it would be the control token itself; a BOS of one's own must not make two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from leadline.checkpoint.verify.report import Check, NotApplicable, expect, run_check
from leadline.checkpoint.verify.text import CONVERSATION
from leadline.client.http import Client, Prompt, Reply
from leadline.errors import LeadlineError, ModelNotFound
from leadline.tokenizer import Tokenizer

CONTROL_STRINGS = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
MIN_TEXT_TOKENS = 4  # a control string in pieces; as the token itself it costs one
QUESTION = ({"role": "user", "content": "How do sailors find the depth of the water?"},)
MAX_TOKENS = 24


class Server:
    """One model of a server, asked without chance."""

    def __init__(self, client: Client, model: str | None) -> None:
        self.client = client
        self.model = model or self._first_model()

    def _first_model(self) -> str:
        models = self.client.models()
        if not models:
            raise ModelNotFound("the server lists no model")
        return models[0]

    def chat(self, messages: Sequence[dict[str, str]], max_tokens: int = MAX_TOKENS) -> Reply:
        return self.client.chat(messages, model=self.model, temperature=0, max_tokens=max_tokens)

    def stream(self, messages: Sequence[dict[str, str]]) -> str:
        options = {"model": self.model, "temperature": 0, "max_tokens": MAX_TOKENS}
        return "".join(chunk.text for chunk in self.client.chat_stream(messages, **options))

    def complete(self, prompt: Prompt) -> Reply:
        try:
            return self.client.complete(prompt, model=self.model, temperature=0, max_tokens=1)
        except LeadlineError as error:
            if error.status in (404, 405):
                raise NotApplicable("the server has no /completions") from None
            raise


def verify_server(client: Client, model: str | None = None, tokenizer: Tokenizer | None = None) -> Iterator[Check]:
    """The checks as they end. Raises when the server cannot be asked at all."""
    server = Server(client, model)
    for name, function in server_checks(server, tokenizer):
        yield run_check(name, function)


def server_checks(server: Server, tokenizer: Tokenizer | None) -> Iterator[tuple[str, Callable[[], str]]]:
    yield "temperature 0 repeats", partial(repeats, server)
    yield "stream = whole answer", partial(streams, server)
    yield "usage and finish reason", partial(usage, server)
    yield "control strings stay text", partial(control_strings, server)
    yield "one BOS", partial(one_bos, server)
    yield "token counts", partial(token_counts, server, tokenizer)


def repeats(server: Server) -> str:
    answers = {server.chat(QUESTION).text for _ in range(3)}
    expect(len(answers) == 1, f"three requests gave {len(answers)} answers: {sorted(answers)!r}")
    return f"three times {_short(answers.pop())}"


def streams(server: Server) -> str:
    whole, streamed = server.chat(QUESTION).text, server.stream(QUESTION)
    expect(whole == streamed, f"whole {_short(whole)}, streamed {_short(streamed)}")
    return f"{len(whole)} characters either way"


def usage(server: Server) -> str:
    reply = server.chat(QUESTION, max_tokens=2)
    found = reply.usage
    expect(found.prompt_tokens > 0, "no prompt_tokens in usage")
    expect(0 < found.completion_tokens <= 2, f"2 tokens at most were asked for, {found.completion_tokens} were counted")
    expect(reply.finish_reason in ("stop", "length"), f"finish_reason is {reply.finish_reason!r}")
    return f"{found.prompt_tokens} + {found.completion_tokens} tokens, {reply.finish_reason}"


def control_strings(server: Server) -> str:
    plain = _prompt_tokens(server, "ab")
    for name in CONTROL_STRINGS:
        cost = _prompt_tokens(server, f"a{name}b") - plain
        expect(cost >= MIN_TEXT_TOKENS, f"{name!r} in a message costs {cost} tokens: it is taken for the control token")
    return f"{len(CONTROL_STRINGS)} control strings in messages are plain text"


def _prompt_tokens(server: Server, content: str) -> int:
    return server.chat([{"role": "user", "content": content}], max_tokens=1).usage.prompt_tokens


def one_bos(server: Server) -> str:
    without = server.complete("Hello").usage.prompt_tokens
    with_bos = server.complete(f"{CONTROL_STRINGS[0]}Hello").usage.prompt_tokens
    cost = with_bos - without
    expect(cost <= 0 or cost >= MIN_TEXT_TOKENS, f"a prompt with a BOS of its own costs {cost} more: it has two")
    return "a prompt that brings its own BOS has no second one"


def token_counts(server: Server, tokenizer: Tokenizer | None) -> str:
    if tokenizer is None:
        raise NotApplicable("name the model's folder with --tokenizer to compare")
    found = server.complete("Hello world").usage.prompt_tokens
    expected = len(tokenizer.encode_prompt("Hello world").ids)
    expect(found == expected, f"a prompt has {found} tokens for the server, {expected} for the folder")
    if tokenizer.has_chat_template:
        found, expected = server.chat(CONVERSATION, 1).usage.prompt_tokens, len(tokenizer.render(CONVERSATION))
        expect(found == expected, f"a conversation has {found} tokens for the server, {expected} for the folder")
    return "a prompt and a conversation have the folder's number of tokens"


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
