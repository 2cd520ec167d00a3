"""Random weights made directly in kernel layout: what a model of some shape costs, without a checkpoint of it.

V2-Lite in bf16 is 31 GB, and no machine that wants its int4 form for a measurement needs to hold it. Codes are uniform,
under one scale for all, so that every matrix has the standard deviation asked for; norms are one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leadline.checkpoint.recipes import Recipe
from leadline.checkpoint.regions import Region, Weights, regions, total_bytes
from leadline.model.config import ModelConfig
from leadline.ops.cpu.layout import BITS, Layout, Packed, pack_codes, unpack_codes
from leadline.ops.cpu.memory import allocate

NOISE_BYTES = 16 << 20
DEVIATION = {"int4": 4.32, "int8": 73.3}
"""Of uniform codes: 15 and 254 steps wide."""

_FLOATS = {"f32": "float32", "bf16": "bfloat16"}


def random_regions(config: ModelConfig, recipe: Recipe, *, seed: int = 0, std: float = 0.02) -> Weights:
    """Every region of this recipe, filled."""
    wanted = regions(config, recipe)
    block = allocate(total_bytes(wanted))
    fill_regions(wanted, block, seed=seed, std=std)
    return {name: region.view(block) for name, region in wanted.items()}


def fill_regions(wanted: dict[str, Region], block: Tensor, *, seed: int = 0, std: float = 0.02) -> None:
    """Random weights into a block that has room for these regions; it may be a file's."""
    generator = torch.Generator().manual_seed(seed)
    noise = {name: _noise(name, min(NOISE_BYTES, len(block)), generator) for name in DEVIATION}
    for region in wanted.values():
        _fill(region, block, noise, generator, std)


def _noise(name: str, count: int, generator: torch.Generator) -> Tensor:
    """Bytes of codes whose mean is zero: with any other, all tokens look alike a few layers on and choose the same
    experts."""
    codes = [torch.randint(1, 1 << BITS[name], (count,), dtype=torch.uint8, generator=generator) for _ in range(2)]
    return codes[0] | codes[1] << 4 if BITS[name] == 4 else codes[0]


def _fill(region: Region, block: Tensor, noise: dict[str, Tensor], generator: torch.Generator, std: float) -> None:
    data = block[region.offset : region.offset + region.nbytes]
    if region.layout is not None and region.layout.quantised:
        codes = noise[region.layout.format]
        _fill_codes(data, region.layout, codes, std, int(torch.randint(len(codes), (1,), generator=generator)))
    elif len(region.shape) == 1:
        data.view(torch.float32).fill_(1.0)
    else:
        dtype = getattr(torch, _FLOATS[region.layout.format] if region.layout is not None else region.dtype)
        scale = std if region.layout is not None else 1.0
        values = torch.randn(data.numel() // dtype.itemsize, generator=generator) * scale
        data.view(dtype).copy_(values)


def _fill_codes(data: Tensor, layout: Layout, noise: Tensor, std: float, start: int) -> None:
    """The noise over and over from `start` on; no code is 0, which int8 does not have."""
    place = 0
    while place < data.numel():
        part = noise[start : start + data.numel() - place]
        data[place : place + len(part)] = part
        place, start = place + len(part), 0
    scale = torch.tensor([std / DEVIATION[layout.format]], dtype=torch.float16).view(torch.uint8)
    data.view(-1, layout.panel_bytes)[:, : layout.scale_bytes] = scale.repeat(layout.scale_bytes // 2)
    if layout.columns < layout.padded_columns:
        _clear_pads(data, layout)


def _clear_pads(data: Tensor, layout: Layout) -> None:
    """Columns that are not there add nothing, whatever stands in their places."""
    for start in range(0, data.numel(), layout.nbytes):
        part = data[start : start + layout.nbytes]
        codes, scales = unpack_codes(Packed(layout, part))
        codes[:, layout.columns :] = 1 << (BITS[layout.format] - 1)
        part.copy_(pack_codes(codes, scales, layout.format, layout.group, layout.columns).data)
