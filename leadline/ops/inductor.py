"""The memory-bound ops, compiled: the references themselves through torch.compile, one pass over memory each.

For training, where eager PyTorch spends most of a small model's step moving activations. Opt-in, because the first step
then pays for a compiler run; without a compiler the references go on working.
"""

from __future__ import annotations

import shutil
from typing import Any

import torch

from leadline.ops.dispatch import Op
from leadline.ops.experts import gated_sum, gated_sum_backward, sum_slots, swiglu, swiglu_backward
from leadline.ops.loss import softmax_nll
from leadline.ops.norm import rms_norm
from leadline.ops.rotary import rotate_interleaved

MIN_ELEMENTS = 1 << 12
COMPILED = (
    rms_norm,
    rotate_interleaved,
    swiglu,
    swiglu_backward,
    gated_sum,
    gated_sum_backward,
    sum_slots,
    softmax_nll,
)


def enable(device: str = "cpu") -> bool:
    """Register the compiled kernels of a CPU or of a GPU, once; False where there is no compiler that works."""
    on_gpu = torch.device(device).type == "cuda"
    if not _compiles(device):
        return False
    name = "inductor on a gpu" if on_gpu else "inductor"
    if any(kernel.name == name for kernel in swiglu.kernels):
        return True
    for op in COMPILED:
        _register(op, name, on_gpu=on_gpu)
    return True


def _compiles(device: str) -> bool:
    """By trial: a compiler without its headers, or one that cannot link, fails only when it is used."""
    if not any(map(shutil.which, ("g++", "gcc", "clang++", "clang", "c++", "cc"))):
        return False
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception:  # whatever the tool chain raises: the references are as right
        return False
    return True


def _register(op: Op[..., Any], name: str, *, on_gpu: bool) -> None:
    compiled = torch.compile(op.reference)
    op.kernel(name, when=lambda x, *_: x.is_cuda == on_gpu and x.numel() >= MIN_ELEMENTS)(compiled)
