"""The sampler against the definitions, and against company."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from leadline.engine.sampler import Sampler, uniform
from leadline.engine.sequence import Sequence, make_sequences
from leadline.engine.types import EngineRequest, SamplingParams
from leadline.ops.sampling import distribution, draw
from tests.engine.vocabulary import EOS, ByteTokenizer

V = 258
TOKENIZER = ByteTokenizer()
sampler = Sampler(V, TOKENIZER.token_bytes)


def sequence(prompt: tuple[int, ...] = (1, 2), generated: tuple[int, ...] = (), **params: Any) -> Sequence:
    request = EngineRequest("r", prompt, SamplingParams(**params))
    made = make_sequences(request, TOKENIZER, limit=4096, eos_ids=frozenset({EOS}))[0]
    made.ids.extend(generated)
    return made


def logits(seed: int = 0, rows: int = 1, width: int = V) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 3


def chosen(row: Tensor, wanted: Sequence) -> int:
    choice = sampler(row, [wanted])[0]
    assert choice.error is None
    return choice.token_id


def test_greedy_is_the_likeliest_and_padding_rows_never_come_out() -> None:
    rows = logits(rows=3, width=V + 20)
    rows[:, V + 5] = 100.0
    got = [choice.token_id for choice in sampler(rows, [sequence(temperature=0.0)] * 3)]
    assert got == rows[:, :V].argmax(-1).tolist()
    for seed in range(20):
        assert chosen(rows[:1], sequence(seed=seed, logprobs=5)) < V
    listed = sampler(rows[:1], [sequence(temperature=0.0, logprobs=20)])[0].logprob
    assert listed is not None
    assert all(entry.token_id < V for entry in listed.top)


def test_same_seed_same_token_whatever_the_company() -> None:
    rows = logits(rows=6)
    params: list[dict[str, Any]] = [
        {"seed": 1},
        {"seed": 2, "top_p": 0.5},
        {"temperature": 0.0},
        {"seed": 3, "top_k": 4, "temperature": 0.3},
        {"seed": 4, "min_p": 0.2, "logprobs": 3},
        {"temperature": 0.0, "repetition_penalty": 1.7},
    ]
    together = sampler(rows, [sequence(**each) for each in params])
    alone = [sampler(rows[i : i + 1], [sequence(**each)])[0] for i, each in enumerate(params)]
    assert together == alone


def test_uniform_depends_on_seed_answer_and_place_only() -> None:
    draws = {uniform(seed, index, place) for seed in (-1, 0, 2**40) for index in range(4) for place in range(50)}
    assert len(draws) == 600
    assert all(0.0 <= value < 1.0 for value in draws)
    assert abs(sum(draws) / len(draws) - 0.5) < 0.05


def test_frequencies_follow_the_softmax() -> None:
    row = torch.full((1, V), -50.0)
    row[0, :3] = torch.tensor([1.0, 2.0, 0.0])
    got = Counter(chosen(row, sequence(seed=seed)) for seed in range(2000))
    for token, probability in enumerate(row[0, :3].softmax(-1).tolist()):
        assert abs(got[token] / 2000 - probability) < 0.04


def nucleus(probs: list[float], top_p: float) -> set[int]:
    """The definition, by sorting."""
    order = sorted(range(len(probs)), key=lambda i: -probs[i])
    kept, mass = [], 0.0
    for token in order:
        kept.append(token)
        mass += probs[token]
        if mass >= top_p:
            break
    return set(kept)


ROUNDING = 1e-5
"""Of the mass: float32 probabilities made in two ways differ by this much, summed over thousands of tokens."""


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([10, 300, 9000]), st.floats(0.05, 0.999), st.floats(0.2, 1.9))
def test_top_p_keeps_the_nucleus(seed: int, width: int, top_p: float, temperature: float) -> None:
    row = logits(seed, width=width)[0]
    kept = set(distribution(row, temperature, 0, top_p, 0.0).nonzero().flatten().tolist())
    probs = (row / temperature).softmax(-1).double().tolist()
    assert nucleus(probs, top_p - ROUNDING) <= kept <= nucleus(probs, top_p + ROUNDING)


def test_top_k_and_min_p_keep_ties_together() -> None:
    row = torch.tensor([3.0, 2.0, 2.0, 1.0])
    assert distribution(row, 1.0, 2, 1.0, 0.0).nonzero().flatten().tolist() == [0, 1, 2]
    assert distribution(row, 1.0, 0, 1.0, math.exp(-1.01)).nonzero().flatten().tolist() == [0, 1, 2]
    assert distribution(row, 1e-40, 0, 1.0, 0.0).tolist() == [1.0, 0.0, 0.0, 0.0]


def test_draw_never_gives_an_impossible_token() -> None:
    probs = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0])
    assert {int(draw(probs, value)) for value in (0.0, 0.25, 0.5, 0.75, 1 - 2**-32)} == {1, 3}


def test_penalties_follow_their_definitions() -> None:
    row = logits()
    base = row[0].clone()
    wanted = sequence((1, 2), (3, 3, 4), repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25)
    expected = base.clone()
    for token in (1, 2, 3, 4):
        expected[token] = base[token] / 2 if base[token] > 0 else base[token] * 2
    expected[3] -= 0.5 + 2 * 0.25
    expected[4] -= 0.5 + 0.25
    torch.testing.assert_close(sampler._adjust(row[0], wanted), expected)
    torch.testing.assert_close(row[0], base)


def test_logit_bias_min_tokens_and_stop_ids() -> None:
    row = logits()
    assert chosen(row, sequence(temperature=0.0, logit_bias=((7, 100.0),))) == 7
    row[0, EOS], row[0, 9] = 90.0, 80.0
    assert chosen(row, sequence(temperature=0.0)) == EOS
    early = sequence(temperature=0.0, min_tokens=2, stop_token_ids=(9,))
    assert chosen(row, early) not in (EOS, 9)
    assert chosen(row, sequence(generated=(5, 5), temperature=0.0, min_tokens=2)) == EOS


def test_logprobs_are_the_models_own() -> None:
    row = logits()
    wanted = sequence(seed=3, temperature=0.2, presence_penalty=1.0, logprobs=4, logit_bias=((5, 40.0),))
    choice = sampler(row, [wanted])[0]
    assert choice.logprob is not None
    reference = row[0].log_softmax(-1)
    assert choice.token_id == 5
    assert choice.logprob.logprob == pytest.approx(reference[5].item(), abs=1e-6)
    assert choice.logprob.rank == int((reference > reference[5]).sum()) + 1
    assert [t.token_id for t in choice.logprob.top] == reference.topk(4).indices.tolist()
    assert choice.logprob.text_bytes == b"\x05"


def test_a_bad_row_spoils_only_itself() -> None:
    rows = logits(rows=4)
    rows[1, 3] = math.nan
    rows[2] = -math.inf
    choices = sampler(rows, [sequence(temperature=0.0), sequence(temperature=0.0), sequence(), sequence(seed=1)])
    assert [choice.error is None for choice in choices] == [True, False, False, True]
    assert "not finite" in str(choices[1].error)


class Digits:
    """A toy grammar: digits, then nothing but EOS."""

    def __init__(self, length: int) -> None:
        self.left = length

    def allowed(self) -> bytes:
        allowed = range(48, 58) if self.left else [EOS]
        return sum(1 << token for token in allowed).to_bytes(40, "little")

    def accept(self, token_id: int) -> None:
        self.left -= 1


def test_a_constraint_masks_the_row() -> None:
    wanted = sequence(seed=1)
    wanted.constraint = Digits(1)
    assert 48 <= chosen(logits(), wanted) < 58
    wanted.constraint.accept(48)
    assert chosen(logits(), wanted) == EOS
    impossible = sequence(seed=1, min_tokens=5)
    impossible.constraint = Digits(0)
    assert "no token is allowed" in str(sampler(logits(), [impossible])[0].error)
