"""Group Relative Policy Optimization's objective (eq. 32-34).

Eq. 32 is written for whole outputs. Read literally (`level` "sequence") an output's ratio and its distance to the
reference are those of the product of its tokens' probabilities. With `level` "token", as in the work the paper takes
GRPO from (Shao et al., 2024), each token has a ratio and a distance of its own, and an output counts by their mean.

Shapes: R tokens of answers end to end, O outputs, Q questions, G outputs a question.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor

Level = Literal["token", "sequence"]


@dataclasses.dataclass(frozen=True)
class Terms:
    """Of every output, and of every unit of it: a token, or the output itself. `clipped` marks units at which the clip
    cuts the gradient."""

    objective_O: Tensor
    ratios: Tensor
    kl: Tensor
    clipped: Tensor


def advantages(rewards_QG: Tensor) -> Tensor:
    """(Q, G), eq. 34: (r - mean) / std within a question. A group without spread tells nothing: zeros."""
    wide_QG = rewards_QG.double()
    centred_QG = wide_QG - wide_QG.mean(-1, keepdim=True)
    std_Q1 = wide_QG.std(-1, correction=0, keepdim=True)
    return torch.where(std_Q1 > 1e-6, centred_QG / std_Q1.clamp(min=1e-6), 0.0).to(rewards_QG.dtype)


def terms(
    logp_R: Tensor,
    old_R: Tensor,
    reference_R: Tensor | None,
    outputs_R: Tensor,
    advantages_O: Tensor,
    *,
    clip: float,
    kl: float,
    level: Level,
) -> Terms:
    """`outputs_R` says which output each token belongs to; without `reference_R` there is no distance to it."""
    count = len(advantages_O)
    reference_R = logp_R.detach() if reference_R is None else reference_R
    if level == "sequence":
        logp_R, old_R, reference_R = (sums(x_R, outputs_R, count) for x_R in (logp_R, old_R, reference_R))
        outputs_R = torch.arange(count, device=logp_R.device)
    advantages_R = advantages_O[outputs_R]
    ratios_R = (logp_R - old_R).exp()
    plain_R, cut_R = ratios_R * advantages_R, ratios_R.clamp(1 - clip, 1 + clip) * advantages_R
    kl_R = kl_estimate(logp_R, reference_R)
    lengths_O = torch.bincount(outputs_R, minlength=count).clamp(min=1)
    objective_O = sums(torch.minimum(plain_R, cut_R) - kl * kl_R, outputs_R, count) / lengths_O
    return Terms(objective_O, ratios_R.detach(), kl_R.detach(), (cut_R < plain_R).detach())


def kl_estimate(logp: Tensor, reference: Tensor) -> Tensor:
    """Eq. 33: p_ref / p - log(p_ref / p) - 1, never negative, zero where both agree."""
    log_ratio = reference - logp
    return log_ratio.exp() - log_ratio - 1


def sums(values_R: Tensor, outputs_R: Tensor, count: int) -> Tensor:
    """(O,): of each output's tokens."""
    return values_R.new_zeros(count).index_add(0, outputs_R, values_R)
