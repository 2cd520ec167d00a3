"""Log-probabilities of given tokens, in chunks: the logits of a whole batch are never held, forward or backward.

Shapes: R rows, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from leadline.ops.norm import accumulate_dtype
from leadline.train.loss import CHUNK


class _TokenLogprobs(torch.autograd.Function):
    """Backward makes each chunk's logits again: what comes back is known only when the objective is."""

    @staticmethod
    def forward(ctx: Any, hidden_RD: Tensor, weight_VD: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor]:
        logprobs, entropies = [], []
        for start in range(0, len(targets_R), CHUNK):
            rows = slice(start, start + CHUNK)
            log_p_cV = log_softmax(hidden_RD[rows], weight_VD)
            logprobs.append(log_p_cV.gather(1, targets_R[rows, None])[:, 0])
            entropies.append(-(log_p_cV.exp() * log_p_cV).sum(-1))
        ctx.save_for_backward(hidden_RD, weight_VD, targets_R)
        entropy_R = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy_R)
        return torch.cat(logprobs), entropy_R

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """d log p(target) / d logits = one hot - softmax."""
        hidden_RD, weight_VD, targets_R = ctx.saved_tensors
        hidden_grad_RD = torch.empty_like(hidden_RD)
        weight_grad_VD = torch.zeros(weight_VD.shape, dtype=accumulate_dtype(hidden_RD), device=weight_VD.device)
        for start in range(0, len(targets_R), CHUNK):
            rows = slice(start, start + CHUNK)
            scale_c1 = grads[0][rows, None]
            grad_cV = log_softmax(hidden_RD[rows], weight_VD).exp().mul_(-scale_c1)
            grad_cV.scatter_add_(1, targets_R[rows, None], scale_c1)
            grad_cV = grad_cV.to(hidden_RD.dtype)
            torch.mm(grad_cV, weight_VD, out=hidden_grad_RD[rows])
            weight_grad_VD += grad_cV.T @ hidden_RD[rows]
        return hidden_grad_RD, weight_grad_VD.to(weight_VD.dtype), None


def log_softmax(hidden_RD: Tensor, weight_VD: Tensor) -> Tensor:
    """(R, V) in float32 or wider, over all rows of the head, as the sampler records it."""
    logits_RV = hidden_RD @ weight_VD.T
    return logits_RV.to(accumulate_dtype(logits_RV)).log_softmax(-1)


def token_logprobs(hidden_RD: Tensor, weight_VD: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor]:
    """(R,) log p(target), with a gradient, and (R,) the entropy of each distribution in nats, without."""
    pair: tuple[Tensor, Tensor] = _TokenLogprobs.apply(hidden_RD, weight_VD, targets_R)  # type: ignore[no-untyped-call]
    return pair
