"""DeepSeekMoE (section 2.2): shared experts, and the top-k of many routed ones.

    h = x + sum_shared FFN(x) + sum_k g_k FFN_k(x)                                             eq. 20

Routing is returned, never stored: the balance losses, the metrics and a replayed rollout read what `forward` gave back.

Shapes: T tokens, D hidden, E routed experts, K experts a token, F expert width.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from leadline.model.config import ModelConfig
from leadline.model.dropping import Dropping, dropped_pairs
from leadline.ops.experts import gates, route, routed_experts, swiglu
from leadline.ops.norm import accumulate_dtype


@dataclasses.dataclass(frozen=True)
class Routing:
    """One layer's choice for one pass.

    expert_ids_TK   int64, the choices
    weights_TK      float32, the gates g of eq. 20
    scores_TE       float32, the affinities s of eq. 22 over all experts
    dropped_TK      bool, the choices that the trainer dropped (2.2.4); None: none
    """

    expert_ids_TK: Tensor
    weights_TK: Tensor
    scores_TE: Tensor
    dropped_TK: Tensor | None = None

    @property
    def kept_ids_TK(self) -> Tensor:
        """What is computed: the choices, with E, which is no expert, in place of dropped ones."""
        if self.dropped_TK is None:
            return self.expert_ids_TK
        return self.expert_ids_TK.masked_fill(self.dropped_TK, self.scores_TE.shape[1])


class Gate(nn.Module):
    """Affinities and choice (eq. 21-22, device-limited routing of 2.2.2), in float32 whatever the model's dtype."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.n_routed_experts is not None
        self.top_k = config.num_experts_per_tok
        limited = config.topk_method == "group_limited_greedy"
        self.groups = config.n_group if limited else 1
        self.keep_groups = config.topk_group if limited else 1
        self.normalise, self.factor = config.norm_topk_prob, config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))

    def forward(self, x_TD: Tensor) -> Routing:
        logits_TE = self.logits(x_TD)
        return Routing(*route(logits_TE, self.top_k, self.groups, self.keep_groups, self.normalise, self.factor))

    def replay(self, x_TD: Tensor, expert_ids_TK: Tensor) -> Routing:
        """The gates of choices made elsewhere: a trainer takes a rollout's experts, with its own affinities."""
        scores_TE = self.logits(x_TD).softmax(-1)
        return Routing(expert_ids_TK, gates(scores_TE, expert_ids_TK, self.normalise, self.factor), scores_TE)

    def logits(self, x_TD: Tensor) -> Tensor:
        """(T, E), at least float32."""
        wide = accumulate_dtype(x_TD)
        return linear(x_TD.to(wide), self.weight.to(wide))


class Experts(nn.Module):
    """The routed experts' weights, stacked: gate_up_proj (E, 2F, D) and down_proj (E, D, F)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.n_routed_experts is not None
        count, inner, width = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(count, 2 * inner, width))
        self.down_proj = nn.Parameter(torch.empty(count, width, inner))


class MLP(nn.Module):
    """SwiGLU: the dense layers, and all shared experts as one."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        hidden_TF2 = torch.cat((self.gate_proj(x_TD), self.up_proj(x_TD)), dim=-1)
        output_TD: Tensor = self.down_proj(swiglu(hidden_TF2))
        return output_TD


class Dispatcher(Protocol):
    """Takes tokens to their experts and the answers back: (T, D), with what the shared experts add, which may be
    computed while tokens travel."""

    def __call__(self, x_TD: Tensor, routing: Routing, experts: Experts, shared: MLP | None) -> Tensor: ...


class LocalDispatcher:
    """Every expert is on this device."""

    def __call__(self, x_TD: Tensor, routing: Routing, experts: Experts, shared: MLP | None) -> Tensor:
        ids_TK, weights = routing.kept_ids_TK, (experts.gate_up_proj, experts.down_proj)
        routed_TD = routed_experts(x_TD, ids_TK, routing.weights_TK, *weights)
        return routed_TD if shared is None else routed_TD + shared(x_TD)


class MoE(nn.Module):
    """One layer's FFN. `dispatcher` is replaced from outside for expert parallelism."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Gate(config)
        self.experts = Experts(config)
        shared = config.n_shared_experts * config.moe_intermediate_size
        self.shared_experts = MLP(config.hidden_size, shared) if shared else None
        self.dispatcher: Dispatcher = LocalDispatcher()
        self.groups = config.n_group

    def forward(
        self, x_TD: Tensor, dropping: Dropping | None = None, expert_ids_TK: Tensor | None = None
    ) -> tuple[Tensor, Routing]:
        """With `expert_ids_TK` the choices are a rollout's, not the gate's."""
        routing = self.gate(x_TD) if expert_ids_TK is None else self.gate.replay(x_TD, expert_ids_TK)
        if dropping is not None:
            dropped_TK = dropped_pairs(routing.expert_ids_TK, routing.scores_TE, self.groups, dropping)
            routing = dataclasses.replace(routing, dropped_TK=dropped_TK)
        return self.dispatcher(x_TD, routing, self.experts, self.shared_experts), routing
