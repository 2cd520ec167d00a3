"""The compiled kernels of a training pass in bf16: attention within documents, experts, RMSNorm, cross-entropy.

Opt-in, by the trainer: on a machine with AVX-512-BF16, where the extension was built, they register on their ops;
elsewhere PyTorch goes on doing the same, more slowly. Sums are float32, what lies in memory is bf16. The threads are
PyTorch's (`csrc/team.h`).

Shapes: T tokens, H heads, K query and key width, V value width or vocabulary, D hidden, E experts, S slots a token, F
expert width, N = T S pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leadline.ops import loss
from leadline.ops.attention import expanded_attention
from leadline.ops.cpu import native
from leadline.ops.experts import routed_experts
from leadline.ops.norm import rms_norm

NAME = "avx512_bf16"
ISAS = ("amx", "avx512")
LANES = 16


def available() -> bool:
    """Whether this machine and this build have the kernels, and `LEADLINE_ISA` allows them."""
    here = getattr(native.extension(), "training_kernels", None)  # missing in an extension from before
    return here is not None and native.choose() in ISAS and bool(here())


def enable() -> bool:
    """Register the kernels, once; False where there are none."""
    if not available():
        return False
    if all(kernel.name != NAME for kernel in routed_experts.kernels):
        expanded_attention.kernel(NAME, when=_fits_attention)(attention)
        routed_experts.kernel(NAME, when=_fits_experts)(experts)
        rms_norm.kernel(NAME, when=_fits_norm)(norm)
        loss.softmax_nll.kernel(NAME, when=_fits_nll)(softmax_nll)
    return True


def _in_lanes(*tensors: Tensor) -> bool:
    """bf16 on a CPU, with rows of whole vectors one element after the other."""
    return all(
        x.dtype == torch.bfloat16 and not x.is_cuda and x.stride(-1) == 1 and x.shape[-1] % LANES == 0 for x in tensors
    )


def _kernels() -> Any:
    return native.extension()


# ---- attention ---------------------------------------------------------------------------------------------------


def _fits_attention(q: Tensor, k: Tensor, v: Tensor, starts: Sequence[int], scale: float) -> bool:
    return torch.is_grad_enabled() and starts[-1] > 0 and q.shape[1] == k.shape[1] and _in_lanes(q, k, v)


def _view(x_THX: Tensor) -> tuple[int, int, int]:
    """Its address, and the elements from a token and from a head to the next."""
    return x_THX.data_ptr(), x_THX.stride(0), x_THX.stride(1)


class _Attention(torch.autograd.Function):
    """Keeps each query's logarithm of its sum of weights (H, T), and no weights."""

    @staticmethod
    def forward(ctx: Any, q_THK: Tensor, k_THK: Tensor, v_THV: Tensor, starts: list[int], scale: float) -> Tensor:
        out_THV = q_THK.new_empty(v_THV.shape)
        sums_HT = q_THK.new_empty(q_THK.shape[1], q_THK.shape[0], dtype=torch.float32)
        ctx.sizes = (starts, q_THK.shape[1], q_THK.shape[2], v_THV.shape[2], scale)
        views = [_view(x) for x in (q_THK, k_THK, v_THV, out_THV)]
        _kernels().training_attention(*ctx.sizes, views, sums_HT.data_ptr(), torch.get_num_threads())
        ctx.save_for_backward(q_THK, k_THK, v_THV, out_THV, sums_HT)
        return out_THV

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_THK, k_THK, v_THV, out_THV, sums_HT = ctx.saved_tensors
        results = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q_THK, k_THK, v_THV)]
        grad_THV = grads[0] if grads[0].stride(-1) == 1 else grads[0].contiguous()
        views = [_view(x) for x in (q_THK, k_THK, v_THV, out_THV, grad_THV, *results)]
        _kernels().training_attention(*ctx.sizes, views, sums_HT.data_ptr(), torch.get_num_threads())
        return *results, None, None


def attention(q_THK: Tensor, k_THK: Tensor, v_THV: Tensor, starts: Sequence[int], scale: float) -> Tensor:
    """Causal attention within each document, (T, H, V), differentiable."""
    out_THV: Tensor = _Attention.apply(q_THK, k_THK, v_THV, list(starts), scale)  # type: ignore[no-untyped-call]
    return out_THV


# ---- experts -----------------------------------------------------------------------------------------------------


def _fits_experts(x: Tensor, ids: Tensor, gates: Tensor, gate_up: Tensor, down: Tensor) -> bool:
    plain = gates.dtype == torch.float32 and ids.dtype == torch.int64 and len(x) > 1
    return torch.is_grad_enabled() and plain and _in_lanes(x, gate_up, down)


class _Experts(torch.autograd.Function):
    """Keeps the gates' and up projections' results (N, 2F), in the experts' order; the order itself is made again."""

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, ids_TS: Tensor, gates_TS: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor
    ) -> Tensor:
        x_TD, ids_TS, gates_TS = x_TD.contiguous(), ids_TS.contiguous(), gates_TS.contiguous()
        gate_up_EFD, down_EDF = gate_up_EFD.contiguous(), down_EDF.contiguous()
        hidden_NF, rows_ND = (x_TD.new_empty(ids_TS.numel(), w) for w in (gate_up_EFD.shape[1], x_TD.shape[1]))
        out_TD = torch.empty_like(x_TD)
        ctx.sizes = [*ids_TS.shape, gate_up_EFD.shape[0], x_TD.shape[1], down_EDF.shape[2]]
        tensors = (x_TD, gate_up_EFD, down_EDF, hidden_NF, rows_ND, out_TD)
        _run_experts(ctx.sizes, ids_TS, gates_TS, None, tensors)
        ctx.save_for_backward(x_TD, ids_TS, gates_TS, gate_up_EFD, down_EDF, hidden_NF)
        return out_TD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, ids_TS, gates_TS, gate_up_EFD, down_EDF, hidden_NF = ctx.saved_tensors
        x_grad, gates_grad, gate_up_grad, down_grad = map(torch.empty_like, (x_TD, gates_TS, gate_up_EFD, down_EDF))
        rows_ND = x_TD.new_empty(ids_TS.numel(), x_TD.shape[1])
        tensors = (x_TD, gate_up_EFD, down_EDF, hidden_NF, rows_ND)
        outputs = (grads[0].contiguous(), x_grad, gate_up_grad, down_grad)
        _run_experts(ctx.sizes, ids_TS, gates_TS, gates_grad, (*tensors, *outputs))
        return x_grad, None, gates_grad, gate_up_grad, down_grad


def _run_experts(
    sizes: list[int], ids_TS: Tensor, gates_TS: Tensor, gates_grad_TS: Tensor | None, tensors: tuple[Tensor, ...]
) -> None:
    """Forward, or with `gates_grad_TS` backward."""
    grad = 0 if gates_grad_TS is None else gates_grad_TS.data_ptr()
    addresses = [x.data_ptr() for x in tensors]
    _kernels().training_experts(sizes, ids_TS.data_ptr(), gates_TS.data_ptr(), grad, addresses, torch.get_num_threads())


def experts(x_TD: Tensor, ids_TS: Tensor, gates_TS: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor) -> Tensor:
    """The routed experts' part of eq. 20, (T, D), differentiable."""
    out_TD: Tensor = _Experts.apply(x_TD, ids_TS, gates_TS, gate_up_EFD, down_EDF)  # type: ignore[no-untyped-call]
    return out_TD


# ---- norm --------------------------------------------------------------------------------------------------------


def _fits_norm(x: Tensor, weight: Tensor, eps: float) -> bool:
    return torch.is_grad_enabled() and x.dim() == 2 and len(x) > 1 and _in_lanes(x, weight)


class _Norm(torch.autograd.Function):
    """Keeps 1 / rms of each row."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        out_TD, scales_T = x_TD.new_empty(x_TD.shape), x_TD.new_empty(len(x_TD), dtype=torch.float32)
        ctx.sizes = (*x_TD.shape, x_TD.stride(0), eps)
        _run_norm(ctx.sizes, x_TD, weight_D, scales_T, out_TD)
        ctx.save_for_backward(x_TD, weight_D, scales_T)
        return out_TD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, weight_D, scales_T = ctx.saved_tensors
        x_grad_TD, stretches = x_TD.new_empty(x_TD.shape), -(-len(x_TD) // _kernels().NORM_ROWS)
        weight_grads_SD = scales_T.new_empty(stretches, len(weight_D))
        _run_norm(ctx.sizes, x_TD, weight_D, scales_T, grads[0].contiguous(), x_grad_TD, weight_grads_SD)
        return x_grad_TD, weight_grads_SD.sum(0).to(weight_D.dtype), None


def _run_norm(sizes: tuple[Any, ...], *tensors: Tensor) -> None:
    """Forward, or with gradients backward."""
    _kernels().training_norm(*sizes, [x.data_ptr() for x in tensors], torch.get_num_threads())


def norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """RMSNorm, rounded where the reference rounds, differentiable."""
    out_TD: Tensor = _Norm.apply(x_TD, weight_D, eps)  # type: ignore[no-untyped-call]
    return out_TD


# ---- cross-entropy -----------------------------------------------------------------------------------------------


def _fits_nll(logits: Tensor, targets: Tensor, scales: Tensor) -> bool:
    return _in_lanes(logits) and logits.is_contiguous() and scales.dtype == torch.float32 and len(targets) > 0


def softmax_nll(logits_TV: Tensor, targets_T: Tensor, scale_T: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted loss, summed, and its gradient (T, V)."""
    targets_T, scale_T = targets_T.contiguous(), scale_T.contiguous()
    losses_T, grad_TV = torch.empty_like(scale_T), torch.empty_like(logits_TV)
    addresses = (x.data_ptr() for x in (logits_TV, targets_T, scale_T))
    results = (x.data_ptr() for x in (losses_T, grad_TV))
    _kernels().training_softmax_nll(*addresses, *logits_TV.shape, *results, torch.get_num_threads())
    return losses_T.sum(), grad_TV
