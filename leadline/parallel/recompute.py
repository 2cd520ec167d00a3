"""Recomputation (section 3.1.3): parts of a layer keep only their input and are computed again in the backward pass.

    attention   the projections, the scores and their softmax: what grows with the sequence
    ffn         gates, the experts' inputs and hidden states: most of a layer's memory
    layer       both, and the norms: only the residual stream is kept

Applied to a finished model from outside. Numbers do not change by a bit: the same operations run on the same input.
"""

from __future__ import annotations

import functools
from typing import Literal

from torch import nn
from torch.utils.checkpoint import checkpoint

from leadline.model.transformer import DecoderLayer, DeepseekV2

Recompute = Literal["none", "attention", "ffn", "layer"]


def recompute(model: DeepseekV2, part: Recompute) -> None:
    """Have every layer compute `part` twice."""
    for layer in model.model.layers:
        assert isinstance(layer, DecoderLayer)
        chosen: dict[str, nn.Module] = {"attention": layer.self_attn, "ffn": layer.mlp, "layer": layer}
        if part != "none":
            module = chosen[part]
            again = functools.partial(checkpoint, module.forward, use_reentrant=False, preserve_rng_state=False)
            module.forward = again
