"""Sampling: from one row of logits to one token.

The order is penalties and bias, temperature, top-k, top-p, min-p. What is cut is cut by value, so equal logits stay or
go together and the choice never depends on how a sort breaks ties. The draw is the inverse of the cumulative
distribution in the order of the vocabulary, at one uniform number: nothing else is random, and a small error in the
logits moves the boundaries by as little.

Shapes: V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leadline.ops.dispatch import op

NUCLEUS = (256, 4096, 1 << 62)  # the few likeliest nearly always hold top_p of the mass: sort all only if not


@op
def penalise(
    logits_V: Tensor, known: Tensor, generated: Tensor, repetition: float, presence: float, frequency: float
) -> Tensor:
    """Logits after the repetition penalty over every `known` id and the other two over the `generated` ones."""
    logits_V = logits_V.clone()
    if repetition != 1.0:
        seen = logits_V[known]
        logits_V[known] = torch.where(seen > 0, seen / repetition, seen * repetition)
    if presence or frequency:
        counts_V = torch.bincount(generated, minlength=len(logits_V))
        logits_V -= frequency * counts_V + presence * (counts_V > 0)
    return logits_V


@op
def distribution(logits_V: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """The probabilities tokens are drawn with; float32. Tokens that were cut have 0, the others sum to at most 1."""
    scaled_V = (logits_V.float() - logits_V.max()) / temperature  # the greatest is 0: no temperature overflows
    if 0 < top_k < len(scaled_V):
        scaled_V = scaled_V.masked_fill(scaled_V < scaled_V.topk(top_k).values[-1], float("-inf"))
    probs_V = scaled_V.softmax(-1)
    if top_p < 1.0:
        probs_V = probs_V.masked_fill(probs_V < _nucleus_edge(probs_V, top_p), 0.0)
    if min_p > 0.0:
        probs_V = probs_V.masked_fill(probs_V < min_p * probs_V.max(), 0.0)
    return probs_V


def _nucleus_edge(probs_V: Tensor, top_p: float) -> Tensor:
    """The least probability in the smallest set of likeliest tokens whose mass reaches `top_p`."""
    for count in NUCLEUS:
        values = probs_V.topk(count).values if count < len(probs_V) else probs_V.sort(descending=True).values
        mass = values.cumsum(0, dtype=torch.float64)
        if mass[-1] >= top_p or len(values) == len(probs_V):
            break
    return values[(mass < top_p).sum().clamp(max=len(values) - 1)]


@op
def draw(probs_V: Tensor, uniform: float) -> Tensor:
    """The token at `uniform` in [0, 1) of the cumulative distribution; () int64. A token of probability 0 never comes
    out."""
    mass_V = probs_V.cumsum(0, dtype=torch.float64)
    return torch.searchsorted(mass_V, uniform * mass_V[-1], right=True)
