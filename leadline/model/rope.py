"""Rotary position embedding on the decoupled key (section 2.1.3) and YaRN (section 3.1.4).

Invariant: angles, cosines and sines are float32 whatever the model's dtype; bf16 angles lose long positions. YaRN
changes the frequencies at every position, there is no switch at the original length.

Shapes: T tokens, P = rotary width / 2 frequencies.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from leadline.model.config import ModelConfig, YarnConfig, yarn_mscale


@dataclasses.dataclass(frozen=True)
class Rope:
    """cos_TP and sin_TP of one pass, float32, computed once and read by every layer."""

    cos_TP: Tensor
    sin_TP: Tensor


def correction_range(config: YarnConfig, dim: int, theta: float) -> tuple[int, int]:
    """The frequencies between which YaRN's ramp runs: those that turn `beta_fast` and `beta_slow` times within the
    original length. 10 and 23 for V2."""

    def index_of(turns: float) -> float:
        length = config.original_max_position_embeddings
        return dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = math.floor(index_of(config.beta_fast)), math.ceil(index_of(config.beta_slow))
    return max(low, 0), min(high, dim - 1)


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """(P,) float32. Below the correction range as trained, above it divided by s, a linear ramp between."""
    dim = config.rotary_dim
    base_P = 1.0 / config.rope_theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if config.yarn is None:
        return base_P
    low, high = correction_range(config.yarn, dim, config.rope_theta)
    span = max(high - low, 0.001)
    kept_P = 1 - ((torch.arange(dim // 2, dtype=torch.float32) - low) / span).clamp(0, 1)
    stretched_P = 1.0 / (config.yarn.factor * config.rope_theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    return stretched_P * (1 - kept_P) + base_P * kept_P  # 1 - kept, not the ramp: the published code's very bits


def magnitude(config: ModelConfig) -> float:
    """What cos and sin are multiplied by: m(mscale) / m(mscale_all_dim), exactly 1 for V2. The softmax scale carries
    the rest (`ModelConfig.softmax_scale`)."""
    if config.yarn is None:
        return 1.0
    yarn = config.yarn
    return yarn_mscale(yarn.factor, yarn.mscale) / yarn_mscale(yarn.factor, yarn.mscale_all_dim)


class RotaryEmbedding(torch.nn.Module):
    """Positions to `Rope`. The frequencies are derived from the config and are not part of a checkpoint."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self._frequencies: dict[torch.device, Tensor] = {}

    def forward(self, positions_T: Tensor) -> Rope:
        inv_freq_P = self._inverse_frequencies(positions_T.device)
        angles_TP = positions_T.to(torch.float32)[:, None] * inv_freq_P
        scale = magnitude(self.config)
        cos_TP, sin_TP = angles_TP.cos(), angles_TP.sin()
        return Rope(cos_TP, sin_TP) if scale == 1.0 else Rope(cos_TP * scale, sin_TP * scale)

    def _inverse_frequencies(self, device: torch.device) -> Tensor:
        """Kept beside the module, not as a buffer: `model.to(bfloat16)` and meta initialisation must not touch it."""
        if device not in self._frequencies:
            with torch.device("cpu"):
                self._frequencies[device] = inverse_frequencies(self.config).to(device)
        return self._frequencies[device]
