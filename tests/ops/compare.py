"""Two tensors compared so that a difference says where it is."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest difference over the largest finite expected value, or over `FLOOR` where all of them are nearly zero."""

FLOOR = 0.1


def difference(actual: Tensor, expected: Tensor, tolerance: float) -> str | None:
    """None where they agree; else where they do not and by how much. NaN and infinities must be in the same places."""
    if actual.shape != expected.shape:
        return f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    if not expected.is_floating_point():
        return _places("values", actual != expected, actual, expected)
    actual, expected = actual.double(), expected.double()
    special = actual.isnan() != expected.isnan()
    special |= (actual.isinf() | expected.isinf()) & (actual != expected)
    if special.any():
        return _places("NaN or infinity", special, actual, expected)
    scale = max([FLOOR, *expected[expected.isfinite()].abs().flatten().tolist()])
    error = (actual - expected).abs().nan_to_num(0.0)
    return _places(f"values ({tolerance:g} of {scale:g} allowed)", error > tolerance * scale, actual, expected)


def _places(what: str, wrong: Tensor, actual: Tensor, expected: Tensor) -> str | None:
    if not wrong.any():
        return None
    worst = (actual.double() - expected.double()).abs().nan_to_num(float("inf")).masked_fill(~wrong, -1.0)
    index = tuple(int(i) for i in torch.unravel_index(worst.argmax(), worst.shape))
    count = f"{int(wrong.sum())} of {wrong.numel()}"
    return (
        f"{what} differ at {count} places, most at {index}: {actual[index].item()} instead of {expected[index].item()}"
    )
