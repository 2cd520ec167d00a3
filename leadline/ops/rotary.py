"""Rotary embedding applied to queries and keys (section 2.1.3).

Two layouts exist in published weights and they agree at position 0 only: DeepSeek-V2 rotates interleaved pairs (x0,
x1), (x2, x3), ...; the dense DeepSeek LLMs and MoE-16B rotate halves, (x0, x_P), (x1, x_P+1), ...
"""

from __future__ import annotations

import torch
from torch import Tensor

from leadline.ops.dispatch import op
from leadline.ops.norm import accumulate_dtype


@op
def rotate_interleaved(x_THR: Tensor, cos_TP: Tensor, sin_TP: Tensor) -> Tensor:
    """Rotate the pairs (x[2i], x[2i+1]) by angle i, in float32; the layout stays interleaved. R = 2P."""
    even_THP, odd_THP = x_THR.to(accumulate_dtype(x_THR)).unflatten(-1, (-1, 2)).unbind(-1)
    cos_T1P, sin_T1P = cos_TP.unsqueeze(1), sin_TP.unsqueeze(1)
    pairs = (even_THP * cos_T1P - odd_THP * sin_T1P, even_THP * sin_T1P + odd_THP * cos_T1P)
    return torch.stack(pairs, dim=-1).flatten(-2).to(x_THR.dtype)


@op
def rotate_halves(x_THR: Tensor, cos_TP: Tensor, sin_TP: Tensor) -> Tensor:
    """Rotate the pairs (x[i], x[P+i]) by angle i, in float32. R = 2P."""
    first_THP, second_THP = x_THR.to(accumulate_dtype(x_THR)).chunk(2, dim=-1)
    cos_T1P, sin_T1P = cos_TP.unsqueeze(1), sin_TP.unsqueeze(1)
    halves = (first_THP * cos_T1P - second_THP * sin_T1P, first_THP * sin_T1P + second_THP * cos_T1P)
    return torch.cat(halves, dim=-1).to(x_THR.dtype)
