"""From the hub's tensors to regions: each tensor is read, quantised and put in its place, one at a time.

Invariant: beside the result no more than one tensor of the source, and what quantising it takes, is ever held.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from leadline.checkpoint.compensate import Moments, Ties, compensated, ties
from leadline.checkpoint.recipes import Recipe
from leadline.checkpoint.regions import Piece, Region, pieces, place, regions
from leadline.checkpoint.safetensors import Entry
from leadline.checkpoint.scales import quantise
from leadline.checkpoint.weights import fill
from leadline.model.config import ModelConfig
from leadline.ops.cpu.layout import PANEL, unpack

BLOCK_ELEMENTS = 1 << 22
"""Of a matrix, quantised at a time: what it takes in float32 stays small beside the largest tensor."""


@dataclasses.dataclass
class Damage:
    """What quantising did to one region: squares of the weights and of their errors, summed."""

    weights: float = 0.0
    errors: float = 0.0

    @property
    def relative(self) -> float:
        """Root mean square of the error over that of the weights."""
        return float((self.errors / self.weights) ** 0.5) if self.weights else 0.0


class Packer:
    """Puts tensors into `block` and keeps account of the damage. Matrices whose inputs are known, by `moments`, are
    rounded for them, others each weight by itself."""

    def __init__(
        self,
        config: ModelConfig,
        recipe: Recipe,
        block: Tensor,
        *,
        search: bool = True,
    ) -> None:
        self.config, self.block, self.search = config, block, search
        self.regions = regions(config, recipe)
        self.moments: Moments = {}
        self._ties: tuple[tuple[str, int, int], Ties] | None = None
        self.damage: dict[str, Damage] = {}

    def add(self, name: str, weight: Tensor) -> None:
        """One tensor of the hub's, under its name there."""
        for piece in pieces(name, weight, self.config):
            self._put(self.regions[piece.region], piece)

    def _put(self, region: Region, piece: Piece) -> None:
        if region.layout is None:
            view = region.view(self.block)
            assert isinstance(view, Tensor)
            view.copy_(piece.matrix)
            return
        found = self._ties_of(region, piece)
        rows = max(BLOCK_ELEMENTS // region.layout.padded_columns // PANEL, 1) * PANEL
        if found is not None and found.rows[piece.turn or 0] is not None:
            rows = piece.matrix.shape[0]  # those that come later make up for earlier ones
        for first_row in range(0, piece.matrix.shape[0], rows):
            exact = piece.matrix[first_row : first_row + rows].float()
            layout = dataclasses.replace(region.layout, rows=exact.shape[0])
            if found is None:
                packed = quantise(exact, layout, search=self.search)
            else:
                packed = compensated(exact, layout, found, piece.turn or 0)
            place(self.block, region, piece, packed, first_row)
            if layout.quantised:
                damage = self.damage.setdefault(region.name, Damage())
                damage.weights += float(exact.square().sum(dtype=torch.float64))
                damage.errors += float((unpack(packed) - exact).square_().sum(dtype=torch.float64))

    def _ties_of(self, region: Region, piece: Piece) -> Ties | None:
        """Gate and up, which follow each other, share them."""
        moment = self.moments.get(region.name)
        if moment is None or region.layout is None or not region.layout.quantised:
            return None
        key = region.name, piece.index, id(self.moments)
        if self._ties is None or self._ties[0] != key:
            self._ties = key, ties(moment(piece.index), region.layout)
        return self._ties[1]


def read_tensors(entries: Iterable[Entry]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor in its own type, one at a time."""
    for entry in entries:
        weight = torch.empty(entry.shape, dtype=getattr(torch, entry.dtype))
        with entry.path.open("rb", buffering=0) as file:
            fill(weight, entry, file, lambda done: None)
        yield entry.name, weight


def bits_per_weight(found: Mapping[str, Region]) -> float:
    """Over all parameters, scales and padding counted."""
    return sum(region.size for region in found.values()) * 8 / sum(region.parameters for region in found.values())


def active_bits(found: Mapping[str, Region], config: ModelConfig) -> float:
    """Bits a weight of what one token reads."""
    weights = sum(region.parameters * _share(region, config) for region in found.values())
    return read_bytes(found, config) * 8 / weights


def read_bytes(found: Mapping[str, Region], config: ModelConfig) -> int:
    """What one token reads."""
    return int(sum(region.nbytes * _share(region, config) for region in found.values()))


def _share(region: Region, config: ModelConfig) -> float:
    """The chosen experts, no embedding."""
    if region.name == "embed":
        return 0.0
    return config.num_experts_per_tok / region.count if ".experts_" in region.name else 1.0
