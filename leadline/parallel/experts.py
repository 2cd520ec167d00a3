"""Expert parallelism (sections 2.2.2, 3.1.3): each process holds some of the routed experts, and tokens travel.

    sort pairs by expert -> all-to-all to the experts' processes -> their SwiGLU -> all-to-all back -> gated sum

The second `Dispatcher`. A process whose experts got no token, from itself or anyone, takes part all the same, forward
and backward, with nothing in its hands.

Shapes: T tokens, E routed experts of which L are here, K experts a token, D hidden, P processes, N pairs of this
process's tokens in expert order, M pairs that all processes sent to the experts here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from leadline.model.moe import Experts, MoE, Routing
from leadline.ops.experts import combine, grouped_ffn, permute, sort_by_expert


class _AllToAll(torch.autograd.Function):
    """Rows to their processes; their gradients go the way back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _exchange(rows, sent, received, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchange(grads[0], ctx.received, ctx.sent, ctx.group), None, None, None


def _exchange(rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    out = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(out, rows.contiguous(), received, sent, group=group)
    return out


class AllToAllDispatcher:
    """Experts lie in order over the processes of `group`: process p has the p-th L of them."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.processes = dist.get_world_size(group)

    def __call__(self, x_TD: Tensor, routing: Routing, experts: Experts) -> Tensor:
        here = experts.gate_up_proj.shape[0]
        order = sort_by_expert(routing.kept_ids_TK, here * self.processes)
        counts_PL = order.counts_E.view(self.processes, here)
        arriving_PL = _exchange(counts_PL, [1] * self.processes, [1] * self.processes, self.group)
        sent, received = counts_PL.sum(1).tolist(), arriving_PL.sum(1).tolist()
        rows_ND = permute(x_TD, order)
        kept = sum(sent)  # dropped pairs are the last: they stay at home
        rows_MD: Tensor = _AllToAll.apply(rows_ND[:kept], sent, received, self.group)  # type: ignore[no-untyped-call]
        y_MD = self._experts(rows_MD, arriving_PL, experts)
        y_ND: Tensor = _AllToAll.apply(y_MD, received, sent, self.group)  # type: ignore[no-untyped-call]
        dropped_ND = y_ND.new_zeros(rows_ND.shape[0] - kept, y_ND.shape[1])
        return combine(torch.cat((y_ND, dropped_ND)), routing.weights_TK, order)

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
