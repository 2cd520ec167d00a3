"""Auxiliary losses for load balance (section 2.2.3).

Each is computed per sequence and averaged over the sequences of the pass, added to the loss explicitly, and
differentiable through the affinities only. Pads do not exist here: tokens are flat.

Shapes: T tokens, S sequences, E routed experts, G device groups, K experts a token.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from leadline.model.config import ModelConfig
from leadline.model.moe import Routing
from leadline.ops.experts import occurrences
from leadline.ops.transfer import to_device


@dataclasses.dataclass(frozen=True)
class BalanceConfig:
    """The factors a1, a2, a3 of eq. 23, 26, 29. V2: 0.003, 0.05, 0.02. V2-Lite: 0.001 and no others."""

    expert: float = 0.001
    device: float = 0.0
    communication: float = 0.0


def sequence_ids(starts: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """(T,): which sequence each token belongs to."""
    lengths = torch.tensor(starts).diff()
    return to_device(torch.arange(len(starts) - 1).repeat_interleave(lengths), device)


def mean_affinity(scores_TE: Tensor, ids_T: Tensor, sequences: int) -> Tensor:
    """P of eq. 25, (S, E)."""
    sums_SE = scores_TE.new_zeros(sequences, scores_TE.shape[1]).index_add(0, ids_T, scores_TE)
    return sums_SE / occurrences(ids_T, sequences).clamp(min=1)[:, None]


def expert_load(expert_ids_TK: Tensor, ids_T: Tensor, sequences: int, experts: int) -> Tensor:
    """f of eq. 24, (S, E): 1 everywhere when the load is even. Choices count before any drop."""
    top_k = expert_ids_TK.shape[1]
    flat = (ids_T[:, None] * experts + expert_ids_TK).flatten()
    counts_SE = occurrences(flat, sequences * experts).view(sequences, experts)
    lengths_S = occurrences(ids_T, sequences).clamp(min=1)
    return counts_SE * (experts / top_k) / lengths_S[:, None]


def devices_reached(expert_ids_TK: Tensor, ids_T: Tensor, sequences: int, experts: int, groups: int) -> Tensor:
    """Share of each sequence's tokens that are sent to each device, (S, G): the inner sum of eq. 30 over T."""
    group_TK = expert_ids_TK // (experts // groups)
    sent_TG = torch.zeros(len(ids_T), groups, device=ids_T.device).scatter_(1, group_TK, 1.0)
    return mean_affinity(sent_TG, ids_T, sequences)


def balance_losses(
    routing: Routing, ids_T: Tensor, sequences: int, config: ModelConfig, balance: BalanceConfig
) -> Tensor:
    """(3,): one layer's a1 L_ExpBal, a2 L_DevBal and a3 L_CommBal (eq. 23, 26, 29). A loss whose factor is 0 is not
    computed."""
    experts, groups = routing.scores_TE.shape[1], config.n_group
    p_SE = mean_affinity(routing.scores_TE, ids_T, sequences)
    f_SE = expert_load(routing.expert_ids_TK, ids_T, sequences, experts)
    expert = balance.expert * (f_SE * p_SE).sum(-1).mean()
    if not (balance.device or balance.communication):
        return torch.stack((expert, torch.zeros_like(expert), torch.zeros_like(expert)))
    p_SG = p_SE.unflatten(-1, (groups, -1)).sum(-1)  # eq. 28, 31
    f_SG = f_SE.unflatten(-1, (groups, -1)).mean(-1)  # eq. 27
    reached_SG = devices_reached(routing.expert_ids_TK, ids_T, sequences, experts, groups)
    f_comm_SG = reached_SG * (groups / config.topk_group)  # eq. 30
    device = balance.device * (f_SG * p_SG).sum(-1).mean()
    return torch.stack((expert, device, balance.communication * (f_comm_SG * p_SG).sum(-1).mean()))
