"""Weights from a folder into a model, tensor by tensor, straight into place.

Invariant: everything is checked before anything is allocated, and beside the loaded weights themselves no more than one
staging block is ever held: bytes of the wanted type are read into the parameter itself, others pass through the block.

    model = read_network(DeepseekV2, folder, dtype=torch.bfloat16)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, TypeVar

import torch
from torch import Tensor, nn

from leadline.checkpoint.folder import weight_entries
from leadline.checkpoint.names import place
from leadline.checkpoint.progress import progress_bar
from leadline.checkpoint.safetensors import ITEM_BYTES, Entry, read_into
from leadline.errors import CheckpointError
from leadline.model.config import ModelConfig
from leadline.model.reward import RewardModel
from leadline.model.transformer import DeepseekV2

Network = TypeVar("Network", DeepseekV2, RewardModel)
BLOCK_BYTES = 16 << 20


def read_network(
    kind: type[Network],
    folder: Path,
    *,
    shape: ModelConfig | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Network:
    """A network of this kind with the folder's weights, built without memory of its own before they are read. `shape`
    None is the folder's config, `dtype` None the shape's."""
    with torch.device("meta"):
        model = kind(shape or ModelConfig.from_folder(folder))
    return load_weights(model, folder, dtype=dtype, device=device)


def load_weights(
    model: Network,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    progress: bool | None = None,
) -> Network:
    """Fill `model` from the folder's safetensors and return it.

    Parameters on the meta device are allocated as `dtype` (None: the config's) on `device`; others are filled as they
    are. `progress` None shows a bar for large models on a terminal.
    """
    entries = weight_entries(folder, model.config)
    allocate(model, dtype or getattr(torch, model.config.dtype), torch.device(device))
    parameters = dict(model.named_parameters())
    with torch.no_grad(), progress_bar(f"loading {folder.name}", sum(e.size for e in entries), progress) as advance:
        for path, group in itertools.groupby(entries, key=lambda entry: entry.path):
            with path.open("rb", buffering=0) as file:
                for entry in group:
                    fill(tensor_of(parameters, entry.name, model.config), entry, file, advance)
    return model


def allocate(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Give every parameter on the meta device memory of its own; shared ones (tied embeddings) stay shared."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if not parameter.is_meta:
                continue
            if parameter not in made:
                memory = torch.empty(parameter.shape, dtype=dtype, device=device)
                made[parameter] = nn.Parameter(memory, requires_grad=parameter.requires_grad)
            setattr(module, name, made[parameter])


def tensor_of(parameters: Mapping[str, nn.Parameter], name: str, config: ModelConfig) -> Tensor:
    """The memory of the tensor that the hub calls `name`: a parameter, or a contiguous slice of a stacked one."""
    where = place(name, config)
    parameter = parameters[where.parameter].detach()
    return parameter if where.expert is None else parameter[where.expert, where.start : where.stop]


def fill(target: Tensor, entry: Entry, file: BinaryIO, advance: Callable[[int], None]) -> None:
    """Read one tensor's bytes into `target`, block by block, converting where types differ."""
    flat, source = target.view(-1), getattr(torch, entry.dtype)
    direct = flat.dtype == source and flat.device.type == "cpu"
    item = ITEM_BYTES[entry.dtype]
    step = BLOCK_BYTES // item
    block = flat if direct else torch.empty(min(step, flat.numel()), dtype=source)
    for start in range(0, flat.numel(), step):
        part = flat[start : start + step]
        staged = part if direct else block[: part.numel()]
        read_into(file, entry, memory_of(staged), start * item)
        if not direct:
            part.copy_(staged)
            _check_range(part, entry)
        advance(part.numel() * item)


def memory_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, shared."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def _check_range(part: Tensor, entry: Entry) -> None:
    """float16 ends at 65,504: a weight beyond it would become infinite without a word."""
    if part.dtype == torch.float16 and not bool(part.isfinite().all()):
        raise CheckpointError(f"{entry.path}: {entry.name} holds values that float16 cannot; take bfloat16 or float32")
