"""How the two endpoints show answers: what each step added, as chunks of a stream; and whole choices.

A format makes choices; what stands around them is the same for every chunk of a request and is written once.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from leadline.engine.types import TokenLogprob, Usage
from leadline.server.calls import CallReader, Piece
from leadline.server.completion import CompletionService, Delta, Job
from leadline.server.logprobs import Aligner, ShownToken, chat_logprobs, completion_logprobs

_ascii = json.JSONEncoder(separators=(",", ":")).encode


class Format(Protocol):
    """How one endpoint shows choices."""

    kind: str  # of a whole answer
    chunk_kind: str

    def chunks(self, delta: Delta) -> list[dict[str, Any]]:
        """The choices that one delta becomes, each for a chunk of its own."""
        ...

    def choice(self, index: int, deltas: Sequence[Delta]) -> dict[str, Any]:
        """One choice of a whole answer, from all of its deltas."""
        ...


class ChatFormat:
    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def __init__(self, job: Job) -> None:
        self.job = job
        self._answers: dict[int, _Answer] = {}  # by choice

    def chunks(self, delta: Delta) -> list[dict[str, Any]]:
        """The role first, then text or calls, the reason to end alone and last."""
        choices = []
        if delta.choice not in self._answers:
            self._answers[delta.choice] = _Answer(self.job)
            choices.append(self._chunk(delta, {"role": "assistant", "content": ""}))
        answer = self._answers[delta.choice]
        for content, logprobs in answer.parts(delta):
            choices.append(self._chunk(delta, content, logprobs))
        if delta.finish_reason is not None:
            last = self._chunk(delta, {"content": ""}, finish_reason=answer.reason(delta))
            choices.append(last | _why(delta))
        return choices

    def choice(self, index: int, deltas: Sequence[Delta]) -> dict[str, Any]:
        answer = _Answer(self.job)
        parts = [part for delta in deltas for part in answer.parts(delta)]
        message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
        for content, _ in parts:
            _add(message, content)
        if answer.calls == 0:
            message["content"] = message["content"] or ""
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs([entry for _, entries in parts for entry in entries]),
            "finish_reason": answer.reason(deltas[-1]),
            **_why(deltas[-1]),
        }

    def _chunk(
        self,
        delta: Delta,
        content: dict[str, Any],
        logprobs: Sequence[TokenLogprob] = (),
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        shown = self._logprobs(logprobs) if logprobs else None
        return {"index": delta.choice, "delta": content, "logprobs": shown, "finish_reason": finish_reason}

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        return None if self.job.params.logprobs is None else chat_logprobs(entries)


class _Answer:
    """One choice of a chat on its way: text as it is, or text and calls. Calls have no log-probabilities."""

    def __init__(self, job: Job) -> None:
        self.tools = job.tools
        self._reader = CallReader()
        self._aligner = Aligner(frozenset(), strip_space=False)

    @property
    def calls(self) -> int:
        return self._reader.calls

    def parts(self, delta: Delta) -> Iterator[tuple[dict[str, Any], Sequence[TokenLogprob]]]:
        """What a delta adds to the message, with the log-probabilities of its text."""
        if self.tools is None:
            if delta.text or delta.logprobs:
                yield {"content": delta.text}, delta.logprobs
            return
        pieces = self._reader.push(delta.text)
        pieces += self._reader.finish() if delta.finish_reason is not None else []
        text = "".join(piece.text for piece in pieces if piece.call is None)
        _, logprobs = self._aligner.push(text, delta.logprobs, None)
        if text or logprobs:
            yield {"content": text}, logprobs
        yield from ((self._call(piece), ()) for piece in pieces if piece.call is not None)

    def reason(self, delta: Delta) -> str | None:
        if self.tools is None or delta.finish_reason != "stop" or not self._reader.complete:
            return delta.finish_reason
        return "function_call" if self.tools.legacy else "tool_calls"

    def _call(self, piece: Piece) -> dict[str, Any]:
        opened = {} if piece.name is None else {"name": piece.name}
        function = {**opened, "arguments": piece.text}
        assert self.tools is not None
        if self.tools.legacy:
            return {"function_call": function}
        named = {} if piece.name is None else {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function"}
        return {"tool_calls": [{"index": piece.call, **named, "function": function}]}


class TextFormat:
    kind = chunk_kind = "text_completion"

    def __init__(self, service: CompletionService, job: Job) -> None:
        self.service = service
        self.job = job
        self.offsets: dict[int, int] = {}  # by choice: how much of the text has been given out

    def chunks(self, delta: Delta) -> list[dict[str, Any]]:
        choices = []
        opens = delta.choice not in self.offsets
        if delta.text or delta.logprobs or (opens and self.job.echoes):
            choices.append(self._choice(delta.choice, [delta], opens=opens, finish_reason=None))
        if delta.finish_reason is not None:
            choices.append(_text_choice(delta.choice, "", None, delta.finish_reason) | _why(delta))
        return choices

    def choice(self, index: int, deltas: Sequence[Delta]) -> dict[str, Any]:
        return self._choice(index, deltas, opens=True, finish_reason=deltas[-1].finish_reason) | _why(deltas[-1])

    def _choice(self, index: int, deltas: Sequence[Delta], *, opens: bool, finish_reason: str | None) -> dict[str, Any]:
        offset = self.offsets.get(index, 0)
        echo = self.job.echoes[index // self.job.params.n] if opens and self.job.echoes else ""
        text = echo + "".join(delta.text for delta in deltas)
        self.offsets[index] = offset + len(text)
        logprobs = None
        if self.job.params.logprobs is not None:
            tokens = self._prompt_tokens(index, deltas[0]) if opens and self.job.echoes else []
            tokens += [self._shown(entry.token_id, entry) for delta in deltas for entry in delta.logprobs]
            logprobs = completion_logprobs(tokens, offset)
        return _text_choice(index, text, logprobs, finish_reason)

    def _prompt_tokens(self, index: int, delta: Delta) -> list[ShownToken]:
        ids = self.job.requests[index // self.job.params.n].prompt_ids
        entries = delta.prompt_logprobs or (None,) * len(ids)
        return [self._shown(token_id, entry) for token_id, entry in zip(ids, entries, strict=True)]

    def _shown(self, token_id: int, entry: TokenLogprob | None) -> ShownToken:
        """Control tokens have a name, but take up no text."""
        text = self.service.tokenizer.token_text(token_id)
        return ShownToken(text, 0 if token_id in self.service.tokenizer.special_ids else len(text), entry)


class Envelope:
    """What stands around choices. A stream is ASCII: clients that split text at U+2028 exist."""

    def __init__(self, service: CompletionService, job: Job, kind: str) -> None:
        fields = {
            "id": job.id,
            "object": kind,
            "created": job.created,
            "model": service.model,
            "system_fingerprint": service.fingerprint,
        }
        self._opening = _ascii(fields)[:-1] + ',"choices":['
        self._fields = fields
        self._end = ',"usage":null}' if job.include_usage else "}"

    def chunk(self, choice: dict[str, Any]) -> bytes:
        """An event with one choice."""
        return f"data: {self._opening}{_ascii(choice)}]{self._end}\n\n".encode("ascii")

    def usage_chunk(self, usage: Usage) -> bytes:
        return f'data: {self._opening}],"usage":{_ascii(usage_body(usage))}}}\n\n'.encode("ascii")

    def whole(self, choices: Sequence[dict[str, Any]], usage: Usage) -> bytes:
        body = {**self._fields, "choices": choices, "usage": usage_body(usage)}
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def usage_body(usage: Usage) -> dict[str, Any]:
    """Hits and misses add up to the prompt; OpenAI's clients read the same hits as cached_tokens."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": 0},
        "prompt_cache_hit_tokens": usage.cached_tokens,
        "prompt_cache_miss_tokens": usage.prompt_tokens - usage.cached_tokens,
    }


def _why(delta: Delta) -> dict[str, str]:
    """vLLM's stop_reason, where an answer was ended for another reason than its own."""
    return {} if delta.stop_reason is None else {"stop_reason": delta.stop_reason}


def _add(message: dict[str, Any], content: dict[str, Any]) -> None:
    """One part of a message, as a stream would send it, added to the whole."""
    if "content" in content:
        message["content"] = (message["content"] or "") + content["content"]
    if "function_call" in content:
        call = message.setdefault("function_call", {"name": "", "arguments": ""})
        call["name"] += content["function_call"].get("name", "")
        call["arguments"] += content["function_call"]["arguments"]
    for part in content.get("tool_calls", ()):
        calls = message.setdefault("tool_calls", [])
        if "id" in part:
            calls.append({"id": part["id"], "type": "function", "function": {**part["function"]}})
        else:
            calls[-1]["function"]["arguments"] += part["function"]["arguments"]


def _text_choice(index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
