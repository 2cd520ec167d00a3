"""Token dropping (section 2.2.4): no device group computes more than its share of the experts' work.

Experts are partitioned into the config's D groups, one a device. A pass of T tokens makes T K token-expert pairs, so
with a capacity factor of 1.0 each group has room for T K / D of them. Where a group was sent more, the pairs of lowest
affinity are dropped; the tokens of exempt sequences keep theirs, so that the model also knows how nothing dropped
feels.

The invariant: what is dropped depends on the pass alone, not on how many processes there are or which of them holds an
expert. Nothing is dropped at evaluation.

Shapes: T tokens, E routed experts, K experts a token, N = T K pairs, D device groups.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from leadline.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class DroppingConfig:
    """`capacity_factor` 0 drops nothing; the paper's is 1.0. `exempt` is the share of sequences that keep every
    pair."""

    capacity_factor: float = 0.0
    exempt: float = 0.1

    def check(self) -> None:
        """Raise `ConfigError` for numbers that mean nothing."""
        if self.capacity_factor < 0:
            raise ConfigError("dropping.capacity_factor must not be negative")
        if not 0 <= self.exempt <= 1:
            raise ConfigError(f"dropping.exempt is a share of the sequences, from 0 to 1, not {self.exempt}")


@dataclasses.dataclass(frozen=True)
class Dropping:
    """How one pass drops. `exempt_T` (bool) marks the tokens of the sequences that keep every pair."""

    capacity_factor: float
    exempt_T: Tensor


EXEMPT = 2.0
"""Above every affinity, which is a probability."""


def dropped_pairs(ids_TK: Tensor, scores_TE: Tensor, groups: int, dropping: Dropping) -> Tensor:
    """(T, K) bool: the pairs that are over their group's budget. Of equal affinities the earlier token's stays."""
    tokens, top_k = ids_TK.shape
    budget = math.ceil(dropping.capacity_factor * tokens * top_k / groups)
    exempt_TK = dropping.exempt_T[:, None].expand(-1, top_k)
    affinity_N = scores_TE.detach().gather(1, ids_TK).masked_fill(exempt_TK, EXEMPT).flatten()
    group_N = (ids_TK // (scores_TE.shape[1] // groups)).flatten()
    best_N = affinity_N.argsort(descending=True, stable=True)
    order_N = best_N[group_N[best_N].argsort(stable=True)]  # by group, within it by affinity
    sizes_D = torch.zeros(groups, dtype=torch.int64, device=ids_TK.device).scatter_add_(
        0, group_N, torch.ones_like(group_N)
    )
    starts_D = sizes_D.cumsum(0) - sizes_D
    place_N = torch.empty_like(order_N)
    place_N[order_N] = torch.arange(len(order_N), device=order_N.device) - starts_D[group_N[order_N]]
    return (place_N.view_as(ids_TK) >= budget) & ~exempt_TK
