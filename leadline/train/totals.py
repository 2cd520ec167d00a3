"""What one step came to, summed on the device over passes and, once, over processes."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from leadline.model.moe import Routing
from leadline.ops.experts import occurrences
from leadline.parallel.world import World
from leadline.train.data import Batch


@dataclasses.dataclass(frozen=True)
class StepTotals:
    """`loss` and `balances` (a1, a2 and a3 terms) as they were added; `loads` each MoE layer's experts' shares of the
    choices, 1 when even; `dropped` the share of token-expert pairs that was dropped; `tokens` seen, and `pairs` of
    query and key that attention met."""

    loss: float
    balances: tuple[float, float, float]
    loads: list[list[float]]
    dropped: float
    tokens: int
    pairs: int


class Totals:
    """Adds up passes without waiting for the device."""

    def __init__(self, device: str) -> None:
        self.losses = torch.zeros(4, dtype=torch.float64, device=device)
        self.sizes = torch.zeros(2, dtype=torch.float64)
        self.dropped = torch.zeros((), dtype=torch.float64, device=device)
        self.counts: list[Tensor] = []  # a (E,) a layer

    def add(self, batch: Batch, loss: Tensor, balances: Tensor, routings: tuple[Routing, ...]) -> None:
        self.losses += torch.cat((loss.detach()[None], balances.detach()))
        if not batch.counts:
            routings = tuple(
                dataclasses.replace(r, expert_ids_TK=r.expert_ids_TK[:0], dropped_TK=None) for r in routings
            )
        else:
            lengths = torch.tensor(batch.documents, dtype=torch.float64).diff()
            self.sizes += torch.stack((lengths.sum(), (lengths * (lengths + 1) / 2).sum()))
        counts = [choices(routing) for routing in routings]
        self.counts = [a + b for a, b in zip(self.counts, counts, strict=True)] if self.counts else counts
        for routing in routings:
            if routing.dropped_TK is not None:
                self.dropped += routing.dropped_TK.sum()

    def over(self, world: World) -> StepTotals:
        """The whole step's: one exchange, and the first time that the host waits for the device."""
        here = torch.cat((self.losses, self.dropped[None], *(count.double() for count in self.counts))).cpu()
        values = world.total(torch.cat((self.sizes, here))).tolist()
        tokens, pairs, loss, expert, device, communication, dropped = values[:7]
        loads, start = [], 7
        for count in self.counts:
            layer = values[start : start + len(count)]
            loads.append([value * len(layer) / max(1.0, sum(layer)) for value in layer])
            start += len(count)
        share = dropped / max(1.0, sum(values[7:]))
        return StepTotals(loss, (expert, device, communication), loads, share, int(tokens), int(pairs))


def choices(routing: Routing) -> Tensor:
    """(E,) int64: how many tokens chose each expert, before any were dropped."""
    return occurrences(routing.expert_ids_TK.flatten(), routing.scores_TE.shape[1])
