"""Offline use from a folder on disk, as a user writes it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leadline import LLM, SamplingParams
from leadline.errors import CheckpointError, Conflict, ContextLengthExceeded, InvalidRequest

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tiny_lite_folder: Path) -> LLM:
    return LLM(tiny_lite_folder, dtype="float32", device="cpu", max_model_len=256, max_num_seqs=4)


def test_text_ids_and_batches_agree(llm: LLM) -> None:
    texts = ["The lead", "the depth of the water", "", "def depth"]
    outputs = llm.generate(texts, GREEDY)
    assert [len(output.token_ids) for output in outputs] == [6] * 4
    assert {output.finish_reason for output in outputs} == {"length"}
    for text, output in zip(texts, outputs, strict=True):
        assert output.prompt_ids[0] == llm.tokenizer.bos_id
        assert [each.token_ids for each in llm.generate(text, GREEDY)] == [output.token_ids]
        assert llm.generate([list(output.prompt_ids)], GREEDY)[0].text == output.text
        assert llm.generate(output.prompt_ids, GREEDY)[0].text == output.text
        assert output.text == llm.tokenizer.decode(output.token_ids)


def test_more_prompts_than_places_come_back_in_order(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = [f"line {number}" for number in range(40)]
    params = [SamplingParams(temperature=0.0, max_tokens=1 + number % 5, ignore_eos=True) for number in range(40)]
    outputs = llm.generate(prompts, params, progress=True)
    assert [len(output.token_ids) for output in outputs] == [1 + number % 5 for number in range(40)]
    assert [output.prompt_ids for output in outputs] == [llm.tokenizer.encode_prompt(text).ids for text in prompts]
    captured = capsys.readouterr()
    assert "40/40" in captured.err
    assert captured.out == ""


def test_chat_renders_the_template_and_drops_one_space(llm: LLM) -> None:
    conversation = [{"role": "user", "content": "How deep?"}]
    space = llm.tokenizer.encode(" ")[0]
    params = SamplingParams(temperature=0.0, max_tokens=3, logit_bias=((space, 100.0),))
    (output,) = llm.chat(conversation, params)
    assert output.prompt_ids == llm.tokenizer.render(conversation)
    assert output.token_ids == (space,) * 3
    assert output.text == "  "
    assert len(llm.chat([conversation, conversation], params)) == 2
    opened = [*conversation, {"role": "assistant", "content": "It is"}]
    (continued,) = llm.chat(opened, params, continue_final=True)
    assert continued.text == "   "


@pytest.mark.parametrize("prompt", ["The lead", [{"role": "user", "content": "How deep?"}], (0, 5, 6)])
def test_a_stream_is_the_whole_answer_in_pieces(llm: LLM, prompt: Any) -> None:
    whole = llm.chat(prompt, GREEDY) if isinstance(prompt, list) else llm.generate(prompt, GREEDY)
    pieces = list(llm.stream(prompt, GREEDY))
    assert "".join(pieces) == whole[0].text
    assert len(pieces) > 1


def test_a_streamed_answer_drops_one_space(llm: LLM) -> None:
    space = llm.tokenizer.encode(" ")[0]
    params = SamplingParams(temperature=0.0, max_tokens=3, logit_bias=((space, 100.0),))
    assert "".join(llm.stream([{"role": "user", "content": "How deep?"}], params)) == "  "


def test_a_stream_that_is_read_no_further_stops_the_engine(llm: LLM) -> None:
    stream = llm.stream("The lead", SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True))
    next(stream)
    with pytest.raises(Conflict, match="in the middle of a stream"):
        llm.generate("another", GREEDY)
    next(stream)  # it was not disturbed
    stream.close()  # type: ignore[attr-defined]
    assert not llm.engine.has_work
    assert len(llm.generate("another", GREEDY)[0].token_ids) == 6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda llm: llm.generate(None), "prompts must be a text, ids, or a list of them, not None"),
        (lambda llm: llm.generate("a", {"max_tokens": 3}), "params must be SamplingParams"),
        (lambda llm: llm.generate("a", ["x"]), "params must be SamplingParams"),
        (lambda llm: llm.chat("hello"), "messages must be a list"),
        (lambda llm: llm.chat({"role": "user", "content": "hello"}), "messages must be a list"),
        (lambda llm: llm.stream("a", SamplingParams(n=2)), "n must be 1"),
        (lambda _: SamplingParams(temperature="hot"), "temperature must be a number, got 'hot'"),  # type: ignore[arg-type]
        (lambda _: SamplingParams(max_tokens=1.5), "max_tokens must be a whole number, got 1.5"),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments_are_named(llm: LLM, call: Callable[[Any], object], message: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(message)):
        call(llm)
    assert not llm.engine.has_work


def test_one_stop_string_is_one() -> None:
    assert SamplingParams(stop="END").stop == ("END",)  # type: ignore[arg-type]
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]


def test_n_logprobs_and_usage(llm: LLM) -> None:
    (output,) = llm.generate("The lead", SamplingParams(n=3, seed=1, max_tokens=4, ignore_eos=True, logprobs=1))
    assert len(output.outputs) == 3
    assert output.usage.completion_tokens == 12
    assert all(len(each.logprobs) == 4 for each in output.outputs)
    assert output.logprobs == output.outputs[0].logprobs


def test_mistakes_are_said_before_any_work(llm: LLM, tmp_path: Path) -> None:
    steps = llm.engine.stats().steps
    with pytest.raises(ContextLengthExceeded, match="256"):
        llm.generate(["fine", "too long " * 300])
    with pytest.raises(InvalidRequest, match="2 prompts, but 1"):
        llm.generate(["a", "b"], [GREEDY])
    with pytest.raises(InvalidRequest):
        llm.generate([[1, 9999]])
    assert llm.engine.stats().steps == steps
    assert not llm.engine.has_work
    with pytest.raises(CheckpointError):
        LLM(tmp_path)


def test_an_interrupted_call_leaves_nothing_behind(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    real = llm.engine.step
    calls = iter(range(3))

    def interrupted() -> object:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return real()

    monkeypatch.setattr(llm.engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a", "b"], SamplingParams(max_tokens=50, ignore_eos=True))
    monkeypatch.undo()
    assert not llm.engine.has_work
    assert llm.engine.blocks.free == llm.engine.blocks.pages
    assert llm.generate("a", GREEDY)[0].finish_reason == "length"


def test_control_strings_in_a_prompt_are_text_and_warned_about(llm: LLM) -> None:
    with pytest.warns(UserWarning, match="plain text"):
        llm.generate("a" + llm.tokenizer.eos_token, GREEDY)


def test_defaults_are_the_folders(llm: LLM) -> None:
    assert LLM.of(llm.engine, llm.tokenizer, {"temperature": 0.3, "top_p": 0.95}).default_params.temperature == 0.3
