"""RMSNorm as a module; the formula is the op's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from leadline.ops.norm import rms_norm


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x_TD: Tensor) -> Tensor:
        return rms_norm(x_TD, self.weight, self.eps).to(self.weight.dtype)
