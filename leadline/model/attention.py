"""MHA, GQA and MQA: the paper's ablations (appendix D, table 1) and the dense baselines (DeepSeek 7B and 67B, MoE-16B).

One module: `num_key_value_heads` G equal to the heads is MHA, 1 is MQA, between them GQA. Keys and values are cached
whole, 2 G d_h elements a token and layer.

Shapes: T tokens, D hidden, H heads, G key heads, K head width.
"""

from __future__ import annotations

from torch import Tensor, nn

from leadline.model.batch import ForwardBatch
from leadline.model.config import ModelConfig
from leadline.model.rope import Rope
from leadline.ops.attention import expanded_attention, paged_attention
from leadline.ops.rotary import rotate_halves


class GroupedQueryAttention(nn.Module):
    """RoPE over the whole head, rotating halves, as the dense models' published weights expect."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.plain_head_dim
        self.scale = config.softmax_scale
        width, bias = config.hidden_size, config.attention_bias
        queries, keys = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(width, queries, bias=bias)
        self.k_proj = nn.Linear(width, keys, bias=bias)
        self.v_proj = nn.Linear(width, keys, bias=bias)
        self.o_proj = nn.Linear(queries, width, bias=bias)

    def forward(self, x_TD: Tensor, rope: Rope, batch: ForwardBatch) -> Tensor:
        q_THK, k_TGK, v_TGK = (
            proj(x_TD).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q_THK = rotate_halves(q_THK, rope.cos_TP, rope.sin_TP)
        k_TGK = rotate_halves(k_TGK, rope.cos_TP, rope.sin_TP)
        if batch.cache is None:
            o_THK = expanded_attention(q_THK, k_TGK, v_TGK, batch.starts, self.scale)
        else:
            o_THK = self.paged(q_THK, k_TGK, v_TGK, batch)
        output_TD: Tensor = self.o_proj(o_THK.flatten(1))
        return output_TD

    def paged(self, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, batch: ForwardBatch) -> Tensor:
        """Write this pass's keys and values, then attend to the pages."""
        assert batch.cache is not None and batch.slots is not None and batch.page_tables is not None
        batch.cache.write(self.layer, batch.slots, k_TGK.flatten(1), v_TGK.flatten(1))
        rows = batch.cache.rows(self.layer)
        return paged_attention(q_THK, rows, batch.page_tables, batch.context_lens, batch.starts, self.scale)
