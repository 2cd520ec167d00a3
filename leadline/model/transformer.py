"""The whole model (section 3.1.2): embedding, layers of attention and FFN, final norm, head.

Parameter names are the hub's; only the routed experts are stacked. Tokens are flat, (T,); see `leadline.model.batch`.

Shapes: T tokens, D hidden, V vocabulary, R rows whose logits are wanted.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from leadline.errors import CheckpointError
from leadline.model.attention import GroupedQueryAttention
from leadline.model.batch import ForwardBatch
from leadline.model.config import ModelConfig
from leadline.model.mla import MLA
from leadline.model.moe import MLP, MoE, Routing
from leadline.model.norm import RMSNorm
from leadline.model.rope import Rope, RotaryEmbedding
from leadline.ops.norm import residual_dtype


@dataclasses.dataclass(frozen=True)
class ModelOutput:
    """`logits` (R, V) in the model's dtype; one `Routing` a MoE layer, in order."""

    logits: Tensor
    routings: tuple[Routing, ...]


class DecoderLayer(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = MLA(config, layer) if config.is_mla else GroupedQueryAttention(config, layer)
        is_moe = config.is_moe_layer(layer)
        self.moe_place = sum(map(config.is_moe_layer, range(layer)))  # among the MoE layers, when it is one
        self.mlp = MoE(config) if is_moe else MLP(config.hidden_size, config.intermediate_size)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x_TD: Tensor, rope: Rope, batch: ForwardBatch) -> tuple[Tensor, Routing | None]:
        x_TD = x_TD + self.self_attn(self.input_layernorm(x_TD), rope, batch)
        normed_TD = self.post_attention_layernorm(x_TD)
        if isinstance(self.mlp, MoE):
            ffn_TD, routing = self.mlp(normed_TD, batch.dropping, batch.replayed(self.moe_place))
            return x_TD + ffn_TD, routing
        return x_TD + self.mlp(normed_TD), None


class Backbone(nn.Module):
    """Everything under the head: the hub's `model.` prefix."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # as nn.Embedding would fill it; but its own way of filling a table on the meta device imports torch._dynamo,
        # a second and a half of every start
        table = torch.randn(config.vocab_size, config.hidden_size)
        self.embed_tokens: nn.Embedding = nn.Embedding.from_pretrained(table, freeze=False)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = RotaryEmbedding(config)

    def forward(self, tokens_T: Tensor, batch: ForwardBatch) -> tuple[Tensor, tuple[Routing, ...]]:
        x_TD = self.embed_tokens(tokens_T)
        x_TD = x_TD.to(residual_dtype(x_TD))
        rope = self.rotary(batch.positions)
        routings = []
        for layer in self.layers:
            x_TD, routing = layer(x_TD, rope, batch)
            if routing is not None:
                routings.append(routing)
        return self.norm(x_TD), tuple(routings)


class DeepseekV2(nn.Module):
    """The language model. Build it under `torch.device("meta")` to load into, or call `initialise` to train."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.num_labels:
            raise CheckpointError("this is a reward model: it gives a score to a conversation and writes none")
        self.config = config
        self.model = Backbone(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, tokens_T: Tensor, batch: ForwardBatch) -> ModelOutput:
        hidden_TD, routings = self.hidden(tokens_T, batch)
        if batch.logit_rows is not None:
            hidden_TD = hidden_TD[batch.logit_rows]
        return ModelOutput(self.lm_head(hidden_TD), routings)

    def hidden(self, tokens_T: Tensor, batch: ForwardBatch) -> tuple[Tensor, tuple[Routing, ...]]:
        """The final normed states (T, D), for a caller that makes logits in chunks or reads another head."""
        output: tuple[Tensor, tuple[Routing, ...]] = self.model(tokens_T, batch)
        return output

    @property
    def dtype(self) -> torch.dtype:
        return self.model.embed_tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Normal(0, initializer_range) for every matrix, ones for norms, zeros for biases (section 3.1.2)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, self.config.initializer_range, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
