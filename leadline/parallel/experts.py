"""Expert parallelism (sections 2.2.2, 3.1.3): each process holds some of the routed experts, and tokens travel.

    sort pairs by expert -> all-to-all to the experts' processes -> their SwiGLU -> all-to-all back -> gated sum

While tokens travel to the experts, and while their gradients travel back, the shared experts compute (3.1.3). This is
the second `Dispatcher`. A process whose experts got no token, from itself or anyone, takes part all the same, forward
and backward, with nothing in its hands.

Shapes: T tokens, E routed experts of which L are here, K experts a token, D hidden, P processes, N pairs of this
process's tokens in expert order, M pairs that all processes sent to the experts here.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from leadline.model.moe import MLP, Experts, MoE, Routing
from leadline.ops.experts import combine, grouped_ffn, permute, sort_by_expert


@dataclasses.dataclass
class _Trip:
    """One exchange of rows and the way back of their gradients, perhaps under way."""

    sent: list[int]
    received: list[int]
    group: dist.ProcessGroup
    way: tuple[dist.Work, Tensor, Tensor] | None = None

    def start(self, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """What will have arrived, not to be looked at before `end`."""
        rows = rows.contiguous()
        out = rows.new_empty(sum(received), *rows.shape[1:])
        work = dist.all_to_all_single(out, rows, received, sent, group=self.group, async_op=True)
        assert work is not None
        self.way = work, rows, out  # the rows stay until they have left
        return out

    def end(self) -> Tensor:
        assert self.way is not None
        work, _, out = self.way
        work.wait()
        self.way = None
        return out


class _Leave(torch.autograd.Function):
    """Rows set out; in backward their gradients, which set out in `_Arrive`, are waited for."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, trip: _Trip) -> Tensor:
        ctx.trip = trip
        return trip.start(rows, trip.sent, trip.received)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.trip.end(), None


class _Arrive(torch.autograd.Function):
    """Rows are waited for; in backward their gradients set out. What is computed between the two runs meanwhile, in
    either direction: autograd goes through nodes in the reverse of their order."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, trip: _Trip) -> Tensor:
        ctx.trip = trip
        return trip.end().view_as(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.trip.start(grads[0], ctx.trip.received, ctx.trip.sent)
        return grads[0], None


def _exchange(rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    """At once, without gradients."""
    trip = _Trip(sent, received, group)
    trip.start(rows, sent, received)
    return trip.end()


class AllToAllDispatcher:
    """Experts lie in order over the processes of `group`: process p has the p-th L of them."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.processes = dist.get_world_size(group)

    def __call__(self, x_TD: Tensor, routing: Routing, experts: Experts, shared: MLP | None) -> Tensor:
        here = experts.gate_up_proj.shape[0]
        order = sort_by_expert(routing.kept_ids_TK, here * self.processes)
        counts_PL = order.counts_E.view(self.processes, here)
        arriving_PL = _exchange(counts_PL, [1] * self.processes, [1] * self.processes, self.group)
        sent, received = counts_PL.sum(1).tolist(), arriving_PL.sum(1).tolist()
        rows_ND = permute(x_TD, order)
        kept = sum(sent)  # dropped pairs are the last: they stay at home
        there = _Trip(sent, received, self.group)
        rows_MD: Tensor = _Leave.apply(rows_ND[:kept], there)  # type: ignore[no-untyped-call]
        shared_TD = None if shared is None else shared(x_TD)
        rows_MD = _Arrive.apply(rows_MD, there)  # type: ignore[no-untyped-call]
        y_MD = self._experts(rows_MD, arriving_PL, experts)
        back = _Trip(received, sent, self.group)
        y_ND: Tensor = _Arrive.apply(_Leave.apply(y_MD, back), back)  # type: ignore[no-untyped-call]
        dropped_ND = y_ND.new_zeros(rows_ND.shape[0] - kept, y_ND.shape[1])
        routed_TD = combine(torch.cat((y_ND, dropped_ND)), routing.weights_TK, order)
        return routed_TD if shared_TD is None else routed_TD + shared_TD

    def _experts(self, rows_MD: Tensor, arriving_PL: Tensor, experts: Experts) -> Tensor:
        """Rows arrive by sender and, of each sender, by expert: by expert alone, through the experts, and back."""
        expert_PL = torch.arange(arriving_PL.shape[1], device=rows_MD.device).expand(self.processes, -1)
        expert_M = expert_PL.flatten().repeat_interleave(arriving_PL.flatten())
        order = sort_by_expert(expert_M[:, None], arriving_PL.shape[1])
        y_MD = grouped_ffn(permute(rows_MD, order), order.counts_E, experts.gate_up_proj, experts.down_proj)
        return y_MD[order.place_TK[:, 0]]


def spread_experts(model: nn.Module, group: dist.ProcessGroup) -> set[str]:
    """Keep this process's experts of every MoE layer and send the tokens of the others; the names of what was cut."""
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    cut = set()
    for name, module in model.named_modules():
        if isinstance(module, MoE):
            module.dispatcher = AllToAllDispatcher(group)
            for leaf, parameter in list(module.experts.named_parameters()):
                part = parameter.detach().chunk(size)[rank].clone()
                setattr(module.experts, leaf, nn.Parameter(part))
                cut.add(f"{name}.experts.{leaf}")
    return cut
