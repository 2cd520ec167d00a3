"""Log-likelihoods against the model itself, in this process and over HTTP, and what is reused of a shared beginning."""

from __future__ import annotations

import threading
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leadline import LLM
from leadline.client.http import Client
from leadline.engine.aio import AsyncEngine
from leadline.errors import ContextLengthExceeded, EngineError, InvalidRequest, ModelNotFound, UserError
from leadline.eval.lm import LM, Ask, EngineLM, HttpLM, Score, Span, echoed_tokens
from leadline.model.batch import ForwardBatch
from leadline.model.transformer import DeepseekV2
from leadline.server.app import create_app
from leadline.server.run import Server, bind, url
from tests.fixtures_server import live_server, small_tokenizer

CONTEXT = "User: Hello, how deep is the water here? Tell me of the lead line, of sand and of mud. " * 3
SPANS = [
    Span(CONTEXT, "Assistant: seven fathoms"),
    Span(CONTEXT, "水有多深"),
    Span("", "The lead line"),
    Span(CONTEXT, " A"),
    Span("A le", "ad line"),  # tokens may reach over the seam
    Span(CONTEXT, " B"),
]


@pytest.fixture(scope="module")
def llm(tiny_lite_folder: Path) -> LLM:
    return LLM(tiny_lite_folder, dtype="float32", device="cpu", isa="none", max_model_len=400, max_num_seqs=4)


@pytest.fixture(scope="module")
def server(tiny_lite_folder: Path) -> Generator[str, None, None]:
    """leadline's own server over a real engine of its own."""
    llm = LLM(tiny_lite_folder, dtype="float32", device="cpu", isa="none", max_model_len=400, max_num_seqs=4)
    sock = bind("127.0.0.1", 0)
    ready = threading.Event()
    app = create_app(AsyncEngine(llm.engine), llm.tokenizer)
    running = Server(app, ready=ready.set, grace=1)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    assert ready.wait(20)
    yield url(sock)
    running.should_exit = True
    thread.join(20)
    sock.close()


@pytest.fixture
def http(server: str) -> Generator[HttpLM, None, None]:
    with Client(server) as client:
        yield HttpLM(client)


def direct(llm: LLM, ids: tuple[int, ...], start: int) -> Score:
    """Of the tokens from `start` on, by one pass of the model."""
    model = llm.engine.model_runner.model
    assert isinstance(model, DeepseekV2)
    with torch.inference_mode():
        logits_TV = model(torch.tensor(ids), ForwardBatch.packed([len(ids)])).logits.float()
    logprobs_TV = logits_TV.log_softmax(-1)
    places = range(start, len(ids))
    greedy = all(int(logits_TV[place - 1, : llm.tokenizer.vocab_size].argmax()) == ids[place] for place in places)
    return Score(sum(float(logprobs_TV[place - 1, ids[place]]) for place in places), len(places), greedy)


def seam(llm: LLM, span: Span) -> tuple[tuple[int, ...], int]:
    whole = llm.tokenizer.encode_prompt(span.context + span.text).ids
    alone = llm.tokenizer.encode_prompt(span.context).ids
    start = 0
    while start < min(len(whole), len(alone)) and whole[start] == alone[start]:
        start += 1
    return whole, max(start, 1)


def assert_same(found: Score, expected: Score) -> None:
    assert found.logprob == pytest.approx(expected.logprob, abs=1e-3)
    assert (found.tokens, found.greedy) == (expected.tokens, expected.greedy)


def test_the_engines_scores_are_the_models(llm: LLM) -> None:
    lm = EngineLM(llm)
    for span, score in zip(SPANS, lm.loglikelihood(SPANS), strict=True):
        assert_same(score, direct(llm, *seam(llm, span)))
    assert lm.loglikelihood([]) == []


def test_a_shared_beginning_is_computed_once(llm: LLM) -> None:
    llm.engine.reset_prefix_cache()
    before = llm.engine.stats()
    spans = [Span(CONTEXT, f" {letter}") for letter in "ABCDEFGH"]
    EngineLM(llm).loglikelihood(spans)
    after = llm.engine.stats()
    shared = (len(llm.tokenizer.encode_prompt(CONTEXT).ids) - 1) // 64 * 64
    assert shared > 0
    assert after.cached_tokens - before.cached_tokens == 7 * shared


def test_a_document_longer_than_the_context_is_scored_once_in_windows(llm: LLM) -> None:
    lm = EngineLM(llm)
    text = " ".join(f"mark {number} of the line" for number in range(150))
    ids = llm.tokenizer.encode_prompt(text).ids
    limit = llm.engine.limit - 1
    assert len(ids) > 2 * limit
    expected, start = Score(0.0, 0, True), 1
    while start < len(ids):
        begin = 0 if start == 1 else min(start - limit // 2, len(ids) - limit)
        window = ids[:1] + ids[begin + 1 : begin + limit]
        expected += direct(llm, window, start - begin)
        start = begin + limit
    (score,) = lm.loglikelihood([Span("", text)])
    assert score.tokens == len(ids) - 1
    assert_same(score, expected)


@given(st.integers(2, 60), st.integers(2, 12), st.data())
def test_windows_score_every_token_once(length: int, limit: int, data: st.DataObject) -> None:
    lm = EngineLM(SimpleNamespace(engine=SimpleNamespace(limit=limit + 1)))  # type: ignore[arg-type]
    start = data.draw(st.integers(1, length))
    ids = tuple(range(length))
    windows = list(lm._windows(ids, start))
    assert all(window[0] == 0 and len(window) <= limit and 1 <= first < len(window) for window, first in windows)
    assert [token for window, first in windows for token in window[first:]] == list(ids[start:])


def test_answers_come_in_order_chats_among_them(llm: LLM) -> None:
    asks = [
        Ask("The lead", max_tokens=4),
        Ask("How deep?", max_tokens=4, chat=True),
        Ask("The depth", ("e",), 8),
        Ask("And now?", max_tokens=4, chat=True, turns=("How deep?", "Seven.")),
    ]
    answers = EngineLM(llm).generate(asks)
    assert answers == [EngineLM(llm).generate([ask])[0] for ask in asks]
    assert "e" not in answers[2]
    assert asks[3].messages == [
        {"role": "user", "content": "How deep?"},
        {"role": "assistant", "content": "Seven."},
        {"role": "user", "content": "And now?"},
    ]


def test_http_is_the_engine(llm: LLM, http: HttpLM) -> None:
    lms: list[LM] = [EngineLM(llm), http]
    assert http.name == "tiny-v2-lite"
    for near, far in zip(*(lm.loglikelihood(SPANS) for lm in lms), strict=True):
        assert_same(far, near)
    asks = [Ask("The lead", max_tokens=5), Ask("How deep?", max_tokens=5, chat=True)]
    assert lms[0].generate(asks) == lms[1].generate(asks)
    assert (lms[0].context_length, lms[1].context_length) == (400, None)
    assert lms[0].count("The lead line") == len(llm.tokenizer.encode("The lead line"))
    assert lms[1].count("The lead line") == 4


def test_two_models_of_one_name_are_told_apart(llm: LLM, tiny_v2_folder: Path) -> None:
    again = EngineLM(llm).weights
    assert len(again) == 16
    assert EngineLM(llm).weights == again
    model = llm.engine.model_runner.model
    assert isinstance(model, DeepseekV2)
    parameter = model.lm_head.weight
    with torch.no_grad():
        parameter += 1
        changed = EngineLM(llm).weights
        parameter -= 1
    assert changed != again


def test_over_http_a_long_document_is_scored_in_halves(http: HttpLM, llm: LLM) -> None:
    text = " ".join(f"mark {number}" for number in range(150))
    assert len(llm.tokenizer.encode(text)) > 400
    (score,) = http.loglikelihood([Span("", text)])
    assert score.tokens > 400
    with pytest.raises(ContextLengthExceeded):
        http.loglikelihood([Span(text, " end")])


def test_a_server_without_logprobs_of_prompts_is_said(tmp_path: Path) -> None:
    tokenizer = small_tokenizer(tmp_path)
    with live_server(tokenizer) as live, Client(live.url) as client:
        lm = HttpLM(client)
        assert lm.generate([Ask("Hello", max_tokens=3)])
        with pytest.raises(UserError, match=r"gives no log-probabilities of a prompt .*tasks that generate"):
            lm.loglikelihood([Span("Hello", " there")])


def test_a_server_without_completions_is_told_from_one_with() -> None:
    client: Any = Stubborn()
    client.complete = lambda *args, **fields: (_ for _ in ()).throw(
        ModelNotFound("the server answered with status 404")
    )
    with pytest.raises(ModelNotFound, match=r"status 404; a server without /completions can be asked with --chat"):
        HttpLM(client, "m").generate([Ask("a")])


class Stubborn:
    """A server that has to generate a token, or that knows no echo."""

    base_url = "http://stub/v1"

    def __init__(self, *, echo: bool = True) -> None:
        self.echo = echo
        self.asked: list[int] = []

    def complete(self, prompt: str, **fields: Any) -> Any:
        from leadline.client.http import completion_reply

        self.asked.append(fields["max_tokens"])
        if not self.echo or fields["max_tokens"] == 0:
            raise InvalidRequest("no")
        tokens = [*prompt.split(" "), "!"]
        values = [None, *[-1.0] * (len(tokens) - 1)]
        tops = [None, *({token: -1.0, "x": -0.5 if token == "c" else -2.0} for token in tokens[1:])]
        logprobs = {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": [0] * len(tokens)}
        return completion_reply({"choices": [{"text": prompt, "logprobs": logprobs}]})

    def models(self) -> list[str]:
        return []


def test_a_server_that_insists_on_a_token_gets_one() -> None:
    client: Any = Stubborn()
    lm = HttpLM(client, "m", concurrency=1)
    assert lm.loglikelihood([Span("a b", " c d"), Span("a b", " d")]) == [Score(-2.0, 2, False), Score(-1.0, 1, True)]
    assert client.asked == [0, 1, 1, 1]
    with pytest.raises(UserError, match="names no model"):
        HttpLM(client)


def test_a_server_that_refuses_echo_is_said_once() -> None:
    client: Any = Stubborn(echo=False)
    with pytest.raises(UserError, match=r"\(no\), which tasks of choice"):
        HttpLM(client, "m").loglikelihood([Span("a b", " c")] * 3)


def test_echoed_tokens_of_other_servers() -> None:
    assert echoed_tokens({}) == []
    body = {"tokens": ["a", "b"], "token_logprobs": [None, -1.0], "top_logprobs": None}
    assert [token.greedy for token in echoed_tokens(body)] == [False, True]


def test_an_answer_that_fails_is_an_error(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(batch: object) -> object:
        raise RuntimeError("the machine is on fire")

    monkeypatch.setattr(llm.engine, "runner", type("Broken", (), {"run": staticmethod(broken)}))
    with pytest.raises(EngineError, match="on fire"):
        EngineLM(llm).generate([Ask("The lead")])
    with pytest.raises(EngineError, match="on fire"):
        EngineLM(llm).loglikelihood([Span("The", " lead")])
