"""Multi-head latent attention (section 2.1, appendix C).

Hidden states are compressed to a latent c_KV of width C, from which keys and values of every head are linear; one roped
key k_R is shared by all heads. Both forms below use the same weights and the same scale, (d_h + d_h^R)^-0.5 times
YaRN's mscale squared:

* expanded: keys and values of each head are made. For passes without a cache: training, scoring.
* absorbed: queries are moved into the latent's space instead. With a cache, for every token, prompt or generated.

Shapes: T tokens, D hidden, H heads, N nope width, R rope width, K = N + R, V value width, C latent width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from leadline.model.batch import ForwardBatch
from leadline.model.config import ModelConfig
from leadline.model.norm import RMSNorm
from leadline.model.rope import Rope
from leadline.ops.attention import expanded_attention
from leadline.ops.mla import absorbed_mla
from leadline.ops.rotary import rotate_interleaved


class MLA(nn.Module):
    """One layer's attention. V2 also compresses its queries (`q_lora_rank`); V2-Lite does not."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        assert config.kv_lora_rank is not None
        self.layer = layer
        self.heads = config.num_attention_heads
        self.latent = config.kv_lora_rank
        self.nope, self.rope = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.scale = config.softmax_scale
        width, bias = config.hidden_size, config.attention_bias
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(width, self.heads * config.qk_head_dim, bias=False)
        else:
            self.q_a_proj = nn.Linear(width, config.q_lora_rank, bias=bias)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, config.rms_norm_eps)
            self.q_b_proj = nn.Linear(config.q_lora_rank, self.heads * config.qk_head_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(width, self.latent + self.rope, bias=bias)
        self.kv_a_layernorm = RMSNorm(self.latent, config.rms_norm_eps)
        self.kv_b_proj = nn.Linear(self.latent, self.heads * (self.nope + config.v_head_dim), bias=False)
        self.o_proj = nn.Linear(self.heads * config.v_head_dim, width, bias=bias)
        self.compresses_queries = config.q_lora_rank is not None

    def forward(self, x_TD: Tensor, rope: Rope, batch: ForwardBatch) -> Tensor:
        q_nope_THN, q_pe_THR = self.query(x_TD, rope)  # eq. 37-40
        c_TC, k_pe_TR = self.compress(x_TD, rope)  # eq. 41, 43: all that is cached
        if batch.cache is not None:
            o_THV = self.absorbed(q_nope_THN, q_pe_THR, c_TC, k_pe_TR, batch)
        else:
            o_THV = self.expanded(q_nope_THN, q_pe_THR, c_TC, k_pe_TR, batch)
        output_TD: Tensor = self.o_proj(o_THV.flatten(1))  # eq. 47
        return output_TD

    def query(self, x_TD: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        """Each head's query: its plain part and its roped part."""
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_TD))) if self.compresses_queries else self.q_proj(x_TD)
        q_nope_THN, q_pe_THR = q.unflatten(-1, (self.heads, -1)).split((self.nope, self.rope), dim=-1)
        return q_nope_THN, rotate_interleaved(q_pe_THR, rope.cos_TP, rope.sin_TP)

    def compress(self, x_TD: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        """The normed latent and the roped shared key. The norm is the latent's alone; the key bypasses it."""
        c_TC, k_pe_TR = self.kv_a_proj_with_mqa(x_TD).split((self.latent, self.rope), dim=-1)
        k_pe_TR = rotate_interleaved(k_pe_TR.unsqueeze(1), rope.cos_TP, rope.sin_TP).squeeze(1)
        return self.kv_a_layernorm(c_TC), k_pe_TR

    def expanded(
        self, q_nope_THN: Tensor, q_pe_THR: Tensor, c_TC: Tensor, k_pe_TR: Tensor, batch: ForwardBatch
    ) -> Tensor:
        """Keys and values per head from the latent (eq. 42, 44-46)."""
        kv_THX = self.kv_b_proj(c_TC).unflatten(-1, (self.heads, -1))
        k_nope_THN, v_THV = kv_THX.split((self.nope, kv_THX.shape[-1] - self.nope), dim=-1)
        k_pe_THR = k_pe_TR.unsqueeze(1).expand(-1, self.heads, -1)
        q_THK = torch.cat((q_nope_THN, q_pe_THR), dim=-1)
        k_THK = torch.cat((k_nope_THN, k_pe_THR), dim=-1)
        return expanded_attention(q_THK, k_THK, v_THV, batch.starts, self.scale)

    def absorbed(
        self, q_nope_THN: Tensor, q_pe_THR: Tensor, c_TC: Tensor, k_pe_TR: Tensor, batch: ForwardBatch
    ) -> Tensor:
        """Write this pass's latents, then attend to all of them as the cache stores them."""
        assert batch.cache is not None and batch.slots is not None and batch.page_tables is not None
        batch.cache.write(self.layer, batch.slots, c_TC, k_pe_TR)
        return absorbed_mla(
            q_nope_THN,
            q_pe_THR,
            self.kv_b_proj.weight.unflatten(0, (self.heads, -1)),
            batch.cache.layer(self.layer),
            batch.page_tables,
            batch.context_lens,
            batch.starts,
            self.scale,
        )
