"""From the host to a device without waiting for what the device is doing."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(host: Tensor, device: torch.device | str) -> Tensor:
    """`host` on `device`. To a GPU through pinned memory: a copy from pageable memory would make the host wait for
    everything queued before it, and a training step then runs at the pace of its launches."""
    if torch.device(device).type != "cuda" or host.is_cuda:
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)
