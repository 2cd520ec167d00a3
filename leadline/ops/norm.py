"""RMSNorm (section 3.1.2: also after the compressed latents)."""

from __future__ import annotations

import torch
from torch import Tensor

from leadline.ops.dispatch import op


def accumulate_dtype(x: Tensor) -> torch.dtype:
    """Statistics are float32, or float64 where the caller works in float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def residual_dtype(x: Tensor) -> torch.dtype:
    """What the residual stream and the sum over experts are held in: the model's own type, but never float16, whose
    numbers end at 65,504, sooner than the residuals of trained models do."""
    return torch.float32 if x.dtype == torch.float16 else x.dtype


@op
def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / rms(x) in float32, cast back, then times the weight: in this order, as the published weights expect."""
    wide_TD = x_TD.to(accumulate_dtype(x_TD))
    normed_TD = wide_TD * torch.rsqrt(wide_TD.square().mean(-1, keepdim=True) + eps)
    return weight_D * normed_TD.to(x_TD.dtype)


@rms_norm.kernel("fused", when=lambda x, weight, eps: x.is_cuda and x.dtype == weight.dtype)
def _rms_norm_fused(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """PyTorch's own in one launch; it multiplies by the weight before it rounds, which is the closer of the two."""
    return torch.nn.functional.rms_norm(x_TD, weight_D.shape, weight_D, eps)
