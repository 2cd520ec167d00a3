"""The coarse op of multi-head latent attention with a cache (section 2.1, appendix C).

W^UK is absorbed into the query and W^UV into the output, so that attention runs against the cached latent itself and no
key or value of any head is ever made.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from leadline.ops.attention import Rows, absorbed_attention
from leadline.ops.dispatch import op


@op
def absorbed_mla(
    q_nope_THN: Tensor,
    q_pe_THR: Tensor,
    kv_b_HXC: Tensor,
    rows: Rows,
    page_tables_SP: Tensor,
    context_lens: Sequence[int],
    starts: Sequence[int],
    scale: float,
) -> Tensor:
    """(T, H, V). `kv_b_HXC` is W^UKV seen per head: the first N of its X = N + V rows are W^UK, the others W^UV."""
    nope, latent = q_nope_THN.shape[2], kv_b_HXC.shape[2]
    w_uk_HNC, w_uv_HVC = kv_b_HXC[:, :nope], kv_b_HXC[:, nope:]
    q_THC = torch.bmm(q_nope_THN.transpose(0, 1), w_uk_HNC).transpose(0, 1)
    q_THX = torch.cat((q_THC, q_pe_THR), dim=-1)
    o_THC = absorbed_attention(q_THX, rows, page_tables_SP, context_lens, starts, latent, scale)
    return expand_values(o_THC, w_uv_HVC)


@op
def expand_values(o_THC: Tensor, w_uv_HVC: Tensor) -> Tensor:
    """Each head's output in the latent's space to its value, (T, H, V)."""
    return torch.bmm(o_THC.transpose(0, 1), w_uv_HVC.transpose(1, 2)).transpose(0, 1)


FEW = 8
"""Tokens up to which a product is bound by reading the weights. The reference's bmm first copies them to transpose
them: on a CPU in bf16 five times the work at one token, twice at 64."""


@expand_values.kernel("few", when=lambda o, w_uv: not o.is_cuda and o.shape[0] <= FEW)
def _expand_values_few(o_THC: Tensor, w_uv_HVC: Tensor) -> Tensor:
    return torch.bmm(w_uv_HVC, o_THC.permute(1, 2, 0)).permute(2, 0, 1)


@expand_values.kernel("heads", when=lambda o, w_uv: not o.is_cuda and o.shape[0] > FEW and o.element_size() == 2)
def _expand_values_heads(o_THC: Tensor, w_uv_HVC: Tensor) -> Tensor:
    heads = zip(o_THC.unbind(1), w_uv_HVC.unbind(0), strict=True)
    return torch.stack([linear(o_TC, w_uv_VC) for o_TC, w_uv_VC in heads], dim=1)
