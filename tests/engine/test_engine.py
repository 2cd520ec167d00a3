"""The engine on tiny random models: one answer whatever the company, exact accounting, faults that stay in place."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import pytest
import torch

from leadline.engine.engine import EngineConfig, make_cache
from leadline.engine.runner import RunnerOutput
from leadline.engine.scheduler import ScheduledBatch
from leadline.engine.types import EngineOutput, Grammar
from leadline.errors import ConfigError, ContextLengthExceeded, InvalidRequest
from leadline.model.cache import PagedCache
from leadline.model.config import V2, V2_LITE
from tests.engine.models import (
    TINY,
    answers,
    drain,
    generate,
    logprobs,
    make_engine,
    prompt,
    request,
    tiny_model,
    tokens,
)
from tests.engine.vocabulary import EOS

Answer = list[EngineOutput]


def assert_same(got: Answer, wanted: Answer) -> None:
    """Design rule 6: the same greedy ids, log-probabilities within 1e-4."""
    assert tokens(got) == tokens(wanted)
    assert logprobs(got) == pytest.approx(logprobs(wanted), abs=1e-4)


def alone(name: str, ids: tuple[int, ...], **params: Any) -> Answer:
    return generate(make_engine(name), request("r", ids, logprobs=0, **params))["r", 0]


# ---- a token's result does not depend on its company -------------------------------------------------------------


@pytest.mark.parametrize("name", TINY)
def test_alone_equals_the_model_run_by_hand(name: str) -> None:
    from leadline.model.batch import ForwardBatch

    model, ids = tiny_model(name), prompt(70)
    got = alone(name, ids, max_tokens=5)
    known = list(ids)
    with torch.inference_mode():
        for token, logprob in zip(tokens(got), logprobs(got), strict=True):
            logits = model(torch.tensor(known), ForwardBatch.packed([len(known)])).logits[-1]
            assert token == int(logits[:258].argmax())
            assert logprob == pytest.approx(logits.log_softmax(-1)[token].item(), abs=1e-4)
            known.append(token)


@pytest.mark.parametrize("name", TINY)
def test_batched_equals_alone(name: str) -> None:
    prompts = {f"r{i}": prompt(length, i) for i, length in enumerate((1, 3, 63, 64, 65, 100))}
    together = generate(make_engine(name), *(request(r, ids, logprobs=0) for r, ids in prompts.items()))
    for r, ids in prompts.items():
        assert_same(together[r, 0], alone(name, ids))


@pytest.mark.parametrize("name", TINY)
def test_chunked_at_every_split_equals_alone(name: str) -> None:
    ids = prompt(70)
    wanted = alone(name, ids, max_tokens=3)
    for budget in range(1, 70):
        engine = make_engine(name, max_num_seqs=1, max_num_batched_tokens=budget)
        assert_same(generate(engine, request("r", ids, logprobs=0, max_tokens=3))["r", 0], wanted)


@pytest.mark.parametrize("name", TINY)
def test_preempted_equals_alone(name: str) -> None:
    prompts = {f"r{i}": prompt(40 + 20 * i, i) for i in range(4)}
    engine = make_engine(name, cache_tokens=64 * 5, prefix_cache=False)
    together = generate(engine, *(request(r, ids, logprobs=0, max_tokens=60) for r, ids in prompts.items()))
    assert engine.scheduler.preemptions > 0
    for r, ids in prompts.items():
        assert_same(together[r, 0], alone(name, ids, max_tokens=60))


@pytest.mark.parametrize("name", TINY)
def test_a_warm_prefix_cache_changes_nothing(name: str) -> None:
    engine, ids = make_engine(name), prompt(200)
    cold = generate(engine, request("cold", ids, logprobs=0))["cold", 0]
    assert_same(cold, alone(name, ids))
    for length in (64, 65, 128, 129, 200):
        warm = generate(engine, request("warm", ids[:length], logprobs=0))["warm", 0]
        assert warm[-1].usage.cached_tokens == (length - 1) // 64 * 64
        assert_same(warm, alone(name, ids[:length]))


def test_the_next_turn_finds_the_answer_of_the_last_one() -> None:
    engine, ids = make_engine(), prompt(60)
    first = tokens(generate(engine, request("a", ids, max_tokens=70))["a", 0])
    longer = (*ids, *first, 5, 6, 7)
    second = generate(engine, request("b", longer, logprobs=0))["b", 0]
    assert second[-1].usage.cached_tokens == 128
    assert_same(second, alone("lite", longer))


def test_sampling_with_a_seed_does_not_depend_on_company() -> None:
    params: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "seed": 11, "max_tokens": 20}
    wanted = tokens(alone("lite", prompt(30), **params))
    others = [request(f"o{i}", prompt(50, i), temperature=1.0, max_tokens=15) for i in range(1, 5)]
    crowded = make_engine(max_num_batched_tokens=16, max_num_seqs=8)
    crowd = generate(crowded, *others, request("r", prompt(30), **params))
    assert tokens(crowd["r", 0]) == wanted


# ---- n, stops, lengths -------------------------------------------------------------------------------------------


def test_n_answers_share_the_prompts_pages() -> None:
    engine, ids = make_engine(), prompt(200)
    got = generate(engine, request("r", ids, n=3, temperature=1.0, seed=5, max_tokens=6))
    assert len({tuple(tokens(got["r", index])) for index in range(3)}) == 3
    assert [got["r", index][-1].usage.cached_tokens for index in range(3)] == [0, 192, 192]
    assert engine.stats().requests_finished == 1
    again = generate(make_engine(), request("r", ids, n=3, temperature=1.0, seed=5, max_tokens=6))
    assert {key: tokens(value) for key, value in again.items()} == {key: tokens(value) for key, value in got.items()}


def test_eos_stop_tokens_and_ignore_eos() -> None:
    ids = prompt(20)
    plain = tokens(alone("lite", ids, max_tokens=6))
    stopped = alone("lite", ids, max_tokens=6, stop_token_ids=(plain[2],))
    assert tokens(stopped) == plain[: plain.index(plain[2]) + 1]
    assert (stopped[-1].finish_reason, stopped[-1].stop_reason) == ("stop", plain[2])
    ended = alone("lite", ids, ignore_eos=False, logit_bias=((EOS, 100.0),))
    assert (tokens(ended), ended[-1].finish_reason, ended[-1].stop_reason) == ([EOS], "stop", None)
    later = alone("lite", ids, ignore_eos=False, logit_bias=((EOS, 100.0),), min_tokens=4)
    assert tokens(later).index(EOS) == 4
    forced = alone("lite", ids, ignore_eos=True, logit_bias=((EOS, 100.0),), max_tokens=3)
    assert tokens(forced) == [EOS] * 3


def test_stop_strings_never_show_and_text_is_whole() -> None:
    bias = ((97, 100.0),)
    got = alone("lite", prompt(5), logit_bias=bias, stop=("aaa",), max_tokens=9)
    assert "".join(output.text for output in got) == ""
    assert got[-1].stop_reason == "aaa"
    held = alone("lite", prompt(5), logit_bias=bias, stop=("aaab",), max_tokens=9)
    assert "".join(output.text for output in held) == "a" * 9
    assert held[-1].finish_reason == "length"


def test_a_full_context_ends_with_length_and_a_longer_prompt_is_refused() -> None:
    engine = make_engine(max_model_len=100)
    for length in range(95, 100):
        got = generate(engine, request("r", prompt(length), max_tokens=None))["r", 0]
        assert got[-1].finish_reason == "length"
        assert got[-1].usage.prompt_tokens + got[-1].usage.completion_tokens == 100
    for length in (100, 101, 5000):
        with pytest.raises(ContextLengthExceeded, match=rf"{length} tokens.*100"):
            engine.add(request("r", prompt(length)))
    assert engine.stats().steps > 0
    assert not engine.has_work


def test_a_prompt_past_the_cache_is_refused_with_the_numbers() -> None:
    engine = make_engine(cache_tokens=128)
    with pytest.raises(ContextLengthExceeded, match="128 tokens, but the cache holds 128"):
        engine.add(request("r", prompt(128)))
    got = generate(engine, request("r", prompt(120), max_tokens=None))["r", 0]
    assert got[-1].usage.completion_tokens == 8


def test_bad_requests_change_nothing() -> None:
    engine = make_engine()
    for bad in (
        request("r", ()),
        request("r", (258,)),
        request("r", (-1,)),
        request("r", (1,), logit_bias=((300, 1.0),)),
        request("r", (1,), stop_token_ids=(999,)),
        request("r", (1,), adapter="poet"),
        request("r", (1,), grammar=Grammar("json_object"), ignore_eos=False),
    ):
        with pytest.raises(InvalidRequest):
            engine.add(bad)
    engine.add(request("r", (1,)))
    with pytest.raises(InvalidRequest, match="in use"):
        engine.add(request("r", (1,)))
    drain(engine)


# ---- places of their own: adapter, routed experts, salt, prompt log-probabilities ---------------------------------


def test_unlike_salts_never_share_pages() -> None:
    engine, ids = make_engine(), prompt(200)
    cached = [
        generate(engine, request("r", ids, salt=salt))["r", 0][-1].usage.cached_tokens
        for salt in (b"alice", b"bob", b"alice", b"")
    ]
    assert cached == [0, 0, 192, 0]


def test_an_adapter_is_known_and_keys_the_prefix_cache() -> None:
    engine, ids = make_engine(adapters=frozenset({"poet"})), prompt(100)
    cached = [
        generate(engine, request("r", ids, adapter=adapter))["r", 0][-1].usage.cached_tokens
        for adapter in (None, "poet", "poet")
    ]
    assert cached == [0, 0, 64]


@pytest.mark.parametrize("name", TINY)
def test_routed_experts_of_every_token_that_was_run(name: str) -> None:
    engine, ids, config = make_engine(name, max_num_seqs=4, max_num_batched_tokens=32), prompt(100), TINY[name]
    generate(engine, request("warm", ids))
    got = generate(engine, request("r", ids, return_routed_experts=True))["r", 0]
    assert all(output.routed_experts == () for output in got[:-1])
    experts = got[-1].routed_experts
    assert len(experts) == 100 + 8 - 1
    assert {len(token) for token in experts} == {config.num_hidden_layers - 1}
    assert {len(set(chosen)) for token in experts for chosen in token} == {config.num_experts_per_tok}
    from leadline.model.batch import ForwardBatch

    with torch.inference_mode():
        whole = torch.tensor((*ids, *tokens(got)[:-1]))
        routings = tiny_model(name)(whole, ForwardBatch.packed([len(whole)])).routings
    for layer, routing in enumerate(routings):
        wanted = [set(row) for row in routing.expert_ids_TK.tolist()]
        assert [set(token[layer]) for token in experts] == wanted


def test_prompt_logprobs_come_with_the_first_output_only() -> None:
    ids = prompt(150)
    engine = make_engine(max_num_seqs=2, max_num_batched_tokens=40)
    generate(engine, request("warm", ids))
    got = generate(engine, request("r", ids, prompt_logprobs=2))["r", 0]
    assert [len(output.prompt_logprobs) for output in got] == [150] + [0] * 7
    assert got[0].prompt_logprobs[0] is None
    from leadline.model.batch import ForwardBatch

    with torch.inference_mode():
        logits = tiny_model("lite")(torch.tensor(ids), ForwardBatch.packed([150])).logits.log_softmax(-1)
    for place in range(1, 150):
        entry = got[0].prompt_logprobs[place]
        assert entry is not None
        assert entry.token_id == ids[place]
        assert entry.logprob == pytest.approx(logits[place - 1, ids[place]].item(), abs=1e-4)
        assert len(entry.top) == 2


@pytest.mark.parametrize("start", [1, 64, 65, 100, 130, 149, 150, 999])
def test_a_shared_beginning_is_not_computed_again_for_the_logprobs_of_the_rest(start: int) -> None:
    ids = prompt(150)
    engine = make_engine(max_num_seqs=2, max_num_batched_tokens=40)
    whole = generate(engine, request("whole", ids, prompt_logprobs=0))["whole", 0][0]
    part = generate(engine, request("part", ids, prompt_logprobs=0, prompt_logprobs_from=start))["part", 0][0]
    assert part.usage.cached_tokens == min(start - 1, 149) // 64 * 64
    assert len(part.prompt_logprobs) == 150
    for place, (expected, entry) in enumerate(zip(whole.prompt_logprobs, part.prompt_logprobs, strict=True)):
        if place < start:
            assert entry is None
        else:
            assert expected is not None
            assert entry is not None
            assert (entry.token_id, entry.rank) == (expected.token_id, expected.rank)
            assert entry.logprob == pytest.approx(expected.logprob, abs=1e-4)


class Letters:
    """A toy grammar that allows a and b in turn."""

    def __init__(self) -> None:
        self.next = 97

    def allowed(self) -> bytes:
        return (1 << self.next).to_bytes(13, "little")  # fewer bits than tokens: the rest may not come

    def accept(self, token_id: int) -> None:
        assert token_id == self.next
        self.next = 195 - self.next


class Provider:
    def prepare(self, grammar: Grammar) -> None:
        self.start(grammar)

    def start(self, grammar: Grammar) -> Letters:
        if grammar.text != "ab":
            raise InvalidRequest("the grammar cannot be read", param="grammar")
        return Letters()


def test_a_grammar_leads_the_answer() -> None:
    engine = make_engine(constraints=Provider())
    got = generate(engine, request("r", prompt(9), grammar=Grammar("regex", "ab"), max_tokens=5, n=2, ignore_eos=False))
    assert {"".join(output.text for output in answer) for answer in got.values()} == {"ababa"}
    with pytest.raises(InvalidRequest, match="cannot be read"):
        engine.add(request("r", prompt(9), grammar=Grammar("regex", "?"), ignore_eos=False))
    assert not engine.has_work


# ---- cancel, deadline, faults ------------------------------------------------------------------------------------


def test_cancel_frees_at_once_in_any_state() -> None:
    engine = make_engine(max_num_seqs=2, max_num_batched_tokens=8)
    for name in ("a", "b", "c"):
        engine.add(request(name, prompt(30), max_tokens=None, n=2))
    engine.step()
    for name in ("a", "c", "b", "b", "unknown"):
        engine.cancel(name)
    engine.scheduler.check_integrity()
    assert engine.blocks.free == engine.blocks.pages
    ends = answers(engine.step())
    assert len(ends) == 6
    assert {answer[-1].finish_reason for answer in ends.values()} == {"cancelled"}
    assert engine.stats().requests_cancelled == 3
    assert not engine.has_work


def test_a_deadline_ends_with_length() -> None:
    engine = make_engine()
    engine.add(dataclasses.replace(request("r", prompt(9), max_tokens=None), deadline=time.monotonic()))
    engine.add(request("s", prompt(9)))
    got = answers(drain(engine))
    assert (got["r", 0][-1].finish_reason, tokens(got["r", 0])) == ("length", [])
    assert len(tokens(got["s", 0])) == 8


class FaultyRunner:
    """Spoils the rows of one request, or raises when it is in the batch."""

    def __init__(self, inner: Any, victim: str, *, crash: bool) -> None:
        self.inner, self.victim, self.crash = inner, victim, crash

    def run(self, batch: ScheduledBatch) -> RunnerOutput:
        if self.crash and any(chunk.sequence.request_id == self.victim for chunk in batch.chunks):
            raise RuntimeError("a kernel failed")
        result: RunnerOutput = self.inner.run(batch)
        rows = [row for row, sequence in enumerate(result.sequences) if sequence.request_id == self.victim]
        logits = result.logits.clone()
        logits[rows] = float("nan")
        return RunnerOutput(logits, result.sequences)


@pytest.mark.parametrize("crash", [False, True])
def test_a_fault_ends_one_request_and_no_other(crash: bool) -> None:
    engine = make_engine()
    engine.runner = FaultyRunner(engine.runner, "bad", crash=crash)
    wanted = {name: alone("lite", prompt(100, seed)) for seed, name in enumerate(("x", "y"))}
    requests = [request(name, prompt(100, seed), logprobs=0) for seed, name in enumerate(("x", "y"))]
    got = generate(engine, requests[0], request("bad", prompt(100, 9)), requests[1])
    (error,) = got["bad", 0]
    assert error.finish_reason == "error"
    assert "request bad: " in str(error.error)
    for name in ("x", "y"):
        assert_same(got[name, 0], wanted[name])
    engine.runner = engine.runner.inner
    again = generate(engine, request("bad", prompt(100, 9)))["bad", 0]
    assert again[-1].usage.cached_tokens == 0, "what a failed request computed is not met again"


# ---- the cache's bytes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "wanted"), [(V2_LITE, 31_104), (V2, 69_120)])
def test_cache_bytes_a_token_are_the_papers(config: Any, wanted: int) -> None:
    cache = PagedCache(config, 2)
    assert cache.bytes_per_token == wanted
    assert cache.bytes == wanted * 2 * 64


def test_the_engine_says_what_it_has() -> None:
    engine = make_engine(cache_tokens=100, max_model_len=90)
    assert engine.info.cache_tokens == 128
    assert engine.info.context_length == 90
    assert engine.info.vocab_size == 258
    assert engine.info.cache_bytes_per_token == engine.cache.bytes_per_token == 24 * 3 * 4
    with pytest.raises(ConfigError, match="kv_cache_dtype"):
        make_cache(tiny_model("lite"), EngineConfig(cache_dtype="int3"))


def test_warm_up_leaves_no_trace() -> None:
    engine = make_engine()
    engine.warm_up()
    assert not engine.cache.storage.any()
    assert_same(generate(engine, request("r", prompt(9), logprobs=0))["r", 0], alone("lite", prompt(9)))
