"""The loss of one block of logits with its gradient: what a chunked cross-entropy is made of.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leadline.ops.dispatch import op
from leadline.ops.norm import accumulate_dtype


@op
def softmax_nll(logits_TV: Tensor, targets_T: Tensor, scale_T: Tensor) -> tuple[Tensor, Tensor]:
    """sum scale x -log softmax(logits)[target], and its gradient in the logits' dtype: (softmax - one hot) x scale."""
    wide_TV = logits_TV.to(accumulate_dtype(logits_TV))
    log_p_TV = wide_TV - wide_TV.logsumexp(-1, keepdim=True)
    loss = -(log_p_TV.gather(1, targets_T[:, None])[:, 0] * scale_T).sum()
    hot_TV = torch.arange(logits_TV.shape[1], device=logits_TV.device) == targets_T[:, None]
    grad_TV = (log_p_TV.exp() - hot_TV.to(log_p_TV.dtype)) * scale_T[:, None]
    return loss, grad_TV.to(logits_TV.dtype)
