"""Request bodies of the OpenAI API. Types are strict, ranges are `SamplingParams`' to check, unknown fields accepted.

Contents and prompts stay `Any` here: they are checked where they are taken apart, with an error that names the part.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

INT64 = 1 << 63
MOST_MESSAGES = MOST_BIASES = 10_000  # more fit no context, and help no answer, but would take seconds to look at
MOST_STOP_IDS = 1000

Int = Annotated[int, Field(ge=-INT64, lt=INT64)]
Count = Annotated[int, Field(ge=0, lt=INT64)]
Number = Annotated[float, Field(allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]


class Schema(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, hide_input_in_errors=True)


def documented(schema: type[Schema]) -> dict[str, Any]:
    """The body for the OpenAPI document; the handlers read it themselves, to answer in OpenAI's words."""
    made = schema.model_json_schema()
    content = {"application/json": {"schema": _inlined(made, made.pop("$defs", {}))}}
    return {"requestBody": {"required": True, "content": content}}


def _inlined(value: Any, definitions: dict[str, Any]) -> Any:
    """Without references: within the OpenAPI document they would point elsewhere. No schema here holds itself."""
    if isinstance(value, list):
        return [_inlined(each, definitions) for each in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        return _inlined(definitions[value["$ref"].removeprefix("#/$defs/")], definitions)
    return {key: _inlined(each, definitions) for key, each in value.items()}


class StreamOptions(Schema):
    include_usage: bool | None = None


class ChatMessage(Schema):
    role: str
    content: Any = None
    prefix: bool | None = None
    tool_calls: list[Any] | None = None
    function_call: Any = None


class Sampling(Schema):
    """What both endpoints share. None is the model's default."""

    model: str | None = None
    max_tokens: Count | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: Int | None = None
    min_p: Number | None = None
    repetition_penalty: Number | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    logit_bias: Annotated[dict[str, Number], Field(max_length=MOST_BIASES)] | None = None
    seed: Int | None = None
    n: Count | None = None
    stop: str | list[str] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MOST_STOP_IDS)] | None = None
    min_tokens: Count | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user_id: str | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream and self.stream_options and self.stream_options.include_usage)


class ChatRequest(Sampling):
    messages: Annotated[list[ChatMessage], Field(max_length=MOST_MESSAGES)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Count | None = None
    response_format: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    functions: list[Any] | None = None
    function_call: Any = None


class CompletionRequest(Sampling):
    prompt: Any  # text, ids, or a list of either
    suffix: str | None = None
    echo: bool | None = None
    logprobs: Count | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    parse_special: bool | None = None
