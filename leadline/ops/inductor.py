"""The memory-bound ops, compiled: the references themselves through torch.compile, one pass over memory each.

For training on a CPU, where eager PyTorch spends most of a small model's step moving activations. Opt-in, because the
first step then pays for a C++ compiler run; without a compiler the references go on working.
"""

from __future__ import annotations

import shutil
from typing import Any

import torch

from leadline.ops.attention import causal_softmax, causal_softmax_backward
from leadline.ops.dispatch import OPS, Op
from leadline.ops.experts import gated_sum, gated_sum_backward, sum_slots, swiglu, swiglu_backward
from leadline.ops.norm import rms_norm
from leadline.ops.rotary import rotate_interleaved

MIN_ELEMENTS = 1 << 12
FIXED = (rms_norm, rotate_interleaved, swiglu, swiglu_backward, gated_sum, gated_sum_backward, sum_slots)
OF_THE_TRAINER = ("softmax_nll",)  # registered by the package above, when it is there
RAGGED = (causal_softmax, causal_softmax_backward)


def enable() -> bool:
    """Register the compiled kernels, once; False where there is no compiler that works."""
    if not _compiles():
        return False
    if not any(kernel.name == "inductor" for kernel in rms_norm.kernels):
        fixed: tuple[Op[..., Any], ...] = (*FIXED, *(OPS[name] for name in OF_THE_TRAINER if name in OPS))
        for op in fixed:
            _register(op, dynamic=None)
        for op in RAGGED:
            _register(op, dynamic=True)
    return True


def _compiles() -> bool:
    """By trial: a compiler without its headers, or one that cannot link, fails only when it is used."""
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        return False
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2))
    except Exception:  # whatever the tool chain raises: the references are as right
        return False
    return True


def _register(op: Op[..., Any], *, dynamic: bool | None) -> None:
    compiled = torch.compile(op.reference, dynamic=dynamic)
    op.kernel("inductor", when=lambda x, *_: not x.is_cuda and x.numel() >= MIN_ELEMENTS)(compiled)
