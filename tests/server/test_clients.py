"""The official openai client, sync and async, and curl against a live server."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Generator

import openai
import pytest

from leadline.engine.fake import ANSWER
from leadline.server.settings import ServerSettings
from leadline.tokenizer import Tokenizer
from tests.fixtures_server import LiveServer, live_server

TEXT = ANSWER.removeprefix(" ")
MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "How deep is it?"}]


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Generator[openai.OpenAI, None, None]:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="unused", max_retries=0, _strict_response_validation=True
    ) as made:
        yield made


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["fake"]
    assert client.models.retrieve("deepseek-chat").id == "fake"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=MESSAGES, logprobs=True, top_logprobs=2, seed=1)
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].logprobs is not None
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None


def test_chat_stream(client: openai.OpenAI) -> None:
    options: openai.types.chat.ChatCompletionStreamOptionsParam = {"include_usage": True}
    with client.chat.completions.create(model="fake", messages=MESSAGES, stream=True, stream_options=options) as stream:
        chunks = list(stream)
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == TEXT
    assert chunks[-1].usage is not None
    assert not chunks[-1].choices


def test_completions(client: openai.OpenAI, server: LiveServer) -> None:
    whole = client.completions.create(model="fake", prompt=["a", "b"], max_tokens=100, logprobs=1)
    assert [choice.text for choice in whole.choices] == [ANSWER, ANSWER]
    # Its type knows no chunk without a finish_reason, although OpenAI sends them: no strict validation here.
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused") as lenient,
        lenient.completions.create(model="fake", prompt="a", max_tokens=100, stream=True) as stream,
    ):
        assert "".join(chunk.choices[0].text for chunk in stream) == ANSWER


def test_errors_become_its_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="fake", messages=MESSAGES, temperature=3)
    assert caught.value.param == "temperature"
    assert caught.value.request_id is not None
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)


def test_an_error_in_a_stream_is_raised(tokenizer: Tokenizer) -> None:
    with (
        live_server(tokenizer, error_after=2) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client,
        client.chat.completions.create(model="fake", messages=MESSAGES, stream=True) as stream,
        pytest.raises(openai.APIError),
    ):
        list(stream)


def test_it_retries_an_overloaded_server(tokenizer: Tokenizer) -> None:
    settings = ServerSettings(retry_after_seconds=0)
    with live_server(tokenizer, settings, max_requests=0) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=1)
        with client, pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model="fake", messages=MESSAGES)
        assert 'status="503"} 2.0' in server.http.get("/metrics").text


def test_async_client(server: LiveServer) -> None:
    async def talk() -> tuple[str | None, str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/beta", api_key="unused", max_retries=0) as client:
            whole = await client.chat.completions.create(model="fake", messages=MESSAGES)
            text = ""
            for _ in range(2):  # the second stream takes the connection that the first gave back
                async with await client.chat.completions.create(model="fake", messages=MESSAGES, stream=True) as stream:
                    text += "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            return whole.choices[0].message.content, text

    assert asyncio.run(talk()) == (TEXT, TEXT * 2)


def curl(*arguments: str) -> str:
    return subprocess.run(["curl", "-sS", "-N", *arguments], capture_output=True, text=True, check=True).stdout


def test_curl(server: LiveServer) -> None:
    body = json.dumps({"model": "deepseek-chat", "messages": MESSAGES})
    as_json = ("-H", "content-type: application/json")
    answer = curl(f"{server.url}/v1/chat/completions", *as_json, "-d", body)
    assert answer.endswith("}\n")
    assert json.loads(answer)["choices"][0]["message"]["content"] == TEXT
    stream = curl(f"{server.url}/chat/completions", *as_json, "-d", body[:-1] + ', "stream": true}')
    assert stream.endswith("data: [DONE]\n\n")
    assert "content-type" in curl(f"{server.url}/v1/chat/completions", "-d", body)
