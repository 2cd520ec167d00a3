"""How much of the machine a step uses: the model's operations against the peak of its matrix products.

Only what the mathematics asks for counts: recomputation and padding are work, not use. Shapes: T tokens, P pairs of
query and key within documents.
"""

from __future__ import annotations

import time

import torch

from leadline.model.config import ModelConfig

SIZE = {"cpu": 1024, "cuda": 8192}
"""Of the square product whose pace is taken for the peak."""


def step_flops(model: ModelConfig, tokens: int, pairs: int) -> float:
    """Forward and backward: 6 a token and active parameter, and for attention 6 a pair, head and width of key and
    value. At 4,096 tokens 155 GFLOP a token for V2 and 419 for the dense 67B (3.2.3)."""
    weights = model.parameters(active=True)
    widths = model.num_attention_heads * (model.qk_head_dim + model.value_head_dim)
    return 6.0 * tokens * weights + 6.0 * pairs * widths * model.num_hidden_layers


def measured_peak(device: str, dtype: str, seconds: float = 0.2) -> float:
    """FLOP a second of a large square product on this device: the best of as many as fit into `seconds`."""
    kind = torch.device(device).type
    size = SIZE.get(kind, 1024)
    left = torch.ones(size, size, dtype=getattr(torch, dtype), device=device)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        left @ left
        if kind == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best
