"""Cross-entropy in chunks: the logits of a whole batch are never held.

Shapes: T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from leadline.ops.loss import softmax_nll
from leadline.ops.norm import accumulate_dtype

CHUNK = 1024
"""Tokens a chunk: its float32 logits should fit in the last-level cache at a small vocabulary."""

GPU_CHUNK_ELEMENTS = 1 << 28
"""Logits a chunk on a GPU, where a launch must be worth its while: 1 GiB in float32."""


def chunk_rows(hidden_TD: Tensor, vocabulary: int) -> int:
    return max(CHUNK, GPU_CHUNK_ELEMENTS // vocabulary) if hidden_TD.is_cuda else CHUNK


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradients are made while each chunk's logits exist, so that backward only scales them."""

    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, weights_T: Tensor) -> Tensor:
        wide = accumulate_dtype(hidden_TD)
        scale_T = weights_T.to(wide) / weights_T.sum().clamp(min=1e-9)
        hidden_grad_TD = torch.empty_like(hidden_TD)
        weight_grad_VD = torch.zeros(weight_VD.shape, dtype=wide, device=weight_VD.device)
        loss = torch.zeros((), dtype=wide, device=hidden_TD.device)
        chunk = chunk_rows(hidden_TD, weight_VD.shape[0])
        for start in range(0, len(targets_T), chunk):
            rows = slice(start, start + chunk)
            part, grad_cV = softmax_nll(hidden_TD[rows] @ weight_VD.T, targets_T[rows], scale_T[rows])
            loss += part
            torch.mm(grad_cV, weight_VD, out=hidden_grad_TD[rows])
            weight_grad_VD += grad_cV.T @ hidden_TD[rows]
        ctx.save_for_backward(hidden_grad_TD, weight_grad_VD.to(weight_VD.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_grad_TD, weight_grad_VD = ctx.saved_tensors
        return (
            hidden_grad_TD * grads[0].to(hidden_grad_TD.dtype),
            weight_grad_VD * grads[0].to(weight_grad_VD.dtype),
            None,
            None,
        )


def cross_entropy(hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, weights_T: Tensor) -> Tensor:
    """Mean of -log p(target) weighted by `weights_T` (0 hides a token; all 0: no loss), in float32 or wider."""
    loss: Tensor = _ChunkedCrossEntropy.apply(hidden_TD, weight_VD, targets_T, weights_T)  # type: ignore[no-untyped-call]
    return loss
