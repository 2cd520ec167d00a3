"""Which form of a model the engine runs: bound to the CPU kernels where they can run it, else PyTorch's."""

from __future__ import annotations

import torch
from torch import Tensor

from leadline.checkpoint.load import FoundModel, packed_regions, torch_model
from leadline.checkpoint.quantised import Placement
from leadline.checkpoint.regions import Weights
from leadline.model.cpu import CpuModel
from leadline.model.packed import MODEL, PackedWeights, pack_model
from leadline.model.transformer import DeepseekV2
from leadline.ops.cpu import native
from leadline.ops.cpu.layout import Packed, unpack

BOUND_TYPES = ("float32", "bfloat16")
UNBOUND_CACHES = ("float16",)


def bind(
    found: FoundModel, *, isa: str | None = None, placement: Placement = "auto", progress: bool | None = None
) -> DeepseekV2 | CpuModel:
    """The model on the kernels, or in PyTorch where they cannot run it.

    `isa` is one of amx, avx512, avxvnni, avx2, neon, scalar, or none for PyTorch. Weights that are not quantised stay
    exactly as they are.
    """
    if not runs(found, isa):
        return torch_model(found, placement=placement, progress=progress)
    regions = packed_regions(found, placement=placement, progress=progress)
    if regions is not None:
        weights = from_regions(regions)
    else:
        weights = pack_model(torch_model(found, progress=progress), release=True)
    return CpuModel(found.config, weights, dtype=getattr(torch, found.plan.dtype), isa=isa)


def runs(found: FoundModel, isa: str | None = None) -> bool:
    """Whether the kernels can run this model as it is planned."""
    plan = found.plan
    plain = plan.cache_dtype not in UNBOUND_CACHES
    here = native.choose(isa) is not None and plan.device == "cpu"
    return here and found.config.is_mla and plan.dtype in BOUND_TYPES and plain


def from_regions(regions: Weights) -> PackedWeights:
    """The regions of a quantised model under the names that the kernels bind. Embeddings are looked up, not multiplied:
    they are taken out of their groups here."""
    matrices: dict[tuple[int, str], Packed] = {}
    vectors: dict[tuple[int, str], Tensor] = {}
    for name, entry in regions.items():
        prefix, _, kind = name.rpartition(".")
        key = (int(prefix.partition(".")[2]) if prefix else MODEL), kind
        if isinstance(entry, Packed):
            matrices[key] = entry
        else:
            vectors[key] = entry
    embedding = vectors.pop((MODEL, "embed"), None)
    if embedding is None:
        packed = matrices.pop((MODEL, "embed"), None) or matrices[MODEL, "head"]
        embedding = unpack(packed).bfloat16()
    return PackedWeights(embedding, matrices, vectors)
