"""What a GRPO update learns from: sampled answers with their advantages, laid end to end into passes.

Shapes: T tokens of a pass, R tokens of answers in it, O answers, D hidden.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from leadline.model.batch import ForwardBatch
from leadline.model.transformer import DeepseekV2
from leadline.train.logprobs import token_logprobs
from leadline.train.rollout import Answer


@dataclasses.dataclass
class Sample:
    """An answer, its advantage, and what its tokens are worth to the reference once that was asked."""

    answer: Answer
    advantage: float
    reference_R: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Pack:
    """Answers laid end to end, each after its prompt.

    tokens_T     all but each one's last token
    rows_R       the tokens whose next one is part of an answer; targets_R those next ones
    outputs_R    which answer each belongs to
    old_R        log-probabilities as sampled
    """

    tokens_T: Tensor
    batch: ForwardBatch
    rows_R: Tensor
    targets_R: Tensor
    outputs_R: Tensor
    old_R: Tensor
    advantages_O: Tensor
    lengths: tuple[int, ...]  # tokens of each answer


def uneven(samples: Sequence[Sample], group: int) -> list[Sample]:
    """The groups in which some answers are worth more than others; all, where there is no such group."""
    groups = [samples[start : start + group] for start in range(0, len(samples), group)]
    kept = [each for each in groups if any(sample.advantage for sample in each)]
    return [sample for each in kept or groups for sample in each]


def packs(samples: Sequence[Sample], tokens: int) -> Iterator[list[Sample]]:
    """In order, each of at most `tokens` tokens unless one answer alone has more."""
    group: list[Sample] = []
    for sample in samples:
        if group and sum(each.answer.tokens for each in group) + sample.answer.tokens > tokens:
            yield group
            group = []
        group.append(sample)
    yield group


def make_pack(samples: Sequence[Sample], device: str) -> Pack:
    answers = [sample.answer for sample in samples]
    rows: list[int] = []
    start = 0
    for answer in answers:
        rows += range(start + len(answer.prompt_ids) - 1, start + answer.tokens)
        start += answer.tokens
    counts = [len(answer.ids) for answer in answers]

    def tensor(values: list[Any], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    known = [answer.experts for answer in answers if answer.experts is not None]
    experts = torch.cat(known).to(device) if known else None
    return Pack(
        tokens_T=tensor([token for a in answers for token in (*a.prompt_ids, *a.ids[:-1])], torch.int64),
        batch=ForwardBatch.packed([answer.tokens for answer in answers], device=device, experts=experts),
        rows_R=tensor(rows, torch.int64),
        targets_R=tensor([token for answer in answers for token in answer.ids], torch.int64),
        outputs_R=torch.arange(len(answers), device=device).repeat_interleave(tensor(counts, torch.int64)),
        old_R=tensor([value for answer in answers for value in answer.logprobs], torch.float64),
        advantages_O=tensor([sample.advantage for sample in samples], torch.float64),
        lengths=tuple(counts),
    )


def logprobs(model: DeepseekV2, pack: Pack) -> tuple[Tensor, Tensor]:
    """(R,) log-probability and entropy at each token of the answers."""
    hidden_TD, _ = model.hidden(pack.tokens_T, pack.batch)
    return token_logprobs(hidden_TD[pack.rows_R], model.lm_head.weight, pack.targets_R)
