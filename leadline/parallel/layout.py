"""How a model's parameters lie over the processes of a run, applied to a finished model from outside.

A parameter lies in one of three ways:

* whole: a copy in every process; its gradients are summed over all.
* sharded, by FSDP2 (`fully_shard`): rows of it in each process, gathered for a layer's pass; its gradients are
  reduce-scattered.
* as experts: those of this process; their gradients are summed over the processes with the same ones.

Every process's loss is its share of the step's, so that gradients are sums and never means. The optimiser sees what is
here as plain tensors; checkpoints see whole ones, and so know nothing of how many processes there were.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from leadline.errors import ConfigError
from leadline.model.moe import MoE
from leadline.model.transformer import DeepseekV2
from leadline.parallel.experts import spread_experts
from leadline.parallel.world import World

BUCKET = 1 << 22
"""Elements that are summed over the processes at a time: 16 MiB."""


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """`data`: what each process keeps of the parameters that all use, a copy or a shard (FSDP2). `experts`: how many
    processes divide the routed experts among them."""

    data: Literal["replicate", "shard"] = "replicate"
    experts: int = 1

    def check(self, world: World, experts: int | None) -> None:
        """Raise `ConfigError` where experts or processes cannot be divided."""
        if self.experts < 1:
            raise ConfigError("parallel.experts must be at least 1")
        if self.experts > 1 and (experts is None or experts % self.experts):
            raise ConfigError(f"parallel.experts {self.experts} does not divide the model's {experts or 0} experts")
        if world.size % self.experts:
            raise ConfigError(f"parallel.experts {self.experts} does not divide the {world.size} processes")


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where each parameter lies. `expert_group` are the processes that divide the experts, `replica_group` those that
    hold the same ones; names in neither set are whole everywhere."""

    world: World = World()
    shards: Mapping[str, DTensor] = dataclasses.field(default_factory=dict)
    experts: frozenset[str] = frozenset()
    expert_group: dist.ProcessGroup | None = None
    replica_group: dist.ProcessGroup | None = None

    def here(self, name: str, parameter: nn.Parameter) -> nn.Parameter:
        """What of a parameter is in this process: itself, or a parameter that shares its memory."""
        return nn.Parameter(local(parameter.detach())) if name in self.shards else parameter

    def sum_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """In place, of what FSDP has not summed already; `gradients` are in one dtype."""
        if self.world.size == 1:
            return
        _sum([grad for name, grad in gradients.items() if name not in self.experts | self.shards.keys()], None)
        _sum([grad for name, grad in gradients.items() if name in self.experts], self.replica_group)

    def norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Over all parameters, every one counted once, the same bits in every process."""
        if self.world.size == 1:
            return nn.utils.get_total_norm(gradients.values())
        squares = {name: grad.float().square().sum().double() / self._copies(name) for name, grad in gradients.items()}
        return self.world.total(torch.stack(list(squares.values())).sum()).sqrt().float()

    def _copies(self, name: str) -> int:
        """In how many processes the same numbers are."""
        if name in self.shards:
            return 1
        return self.world.size // (_size(self.expert_group) if name in self.experts else 1)

    def whole(self, name: str, here: Tensor) -> Tensor:
        """All of a tensor that lies as parameter `name` does: in every process, from every process."""
        if here.dim() == 0 or self.world.size == 1:
            return here
        if name in self.shards:
            like = self.shards[name]
            return DTensor.from_local(
                here, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
            ).full_tensor()
        if name in self.experts:
            parts = [torch.empty_like(here) for _ in range(_size(self.expert_group))]
            dist.all_gather(parts, here.contiguous(), group=self.expert_group)
            return torch.cat(parts)
        return here

    def part(self, name: str, whole: Tensor) -> Tensor:
        """The inverse of `whole`: what of it belongs in this process."""
        if whole.dim() == 0 or not (name in self.shards or name in self.experts):
            return whole
        rank, size = self.world.rank, self.world.size
        if name in self.experts:
            rank, size = dist.get_rank(self.expert_group), _size(self.expert_group)
        parts = whole.chunk(size)
        return parts[rank] if rank < len(parts) else whole[:0]


def _size(group: dist.ProcessGroup | None) -> int:
    return dist.get_world_size(group)


def local(tensor: Tensor) -> Tensor:
    """What of a tensor is in this process."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_gradient(parameter: nn.Parameter) -> Tensor | None:
    """The gradient of what is here."""
    return None if parameter.grad is None else local(parameter.grad)


def _sum(tensors: Iterable[Tensor], group: dist.ProcessGroup | None) -> None:
    """Over the processes of the group, in place, a few mebibytes at a time."""
    bucket: list[Tensor] = []
    for tensor in [*tensors, None]:
        if tensor is not None:
            bucket.append(tensor)
        if bucket and (tensor is None or sum(t.numel() for t in bucket) >= BUCKET):
            flat = torch.cat([each.flatten() for each in bucket])
            dist.all_reduce(flat, group=group)
            for each, summed in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
                each.copy_(summed.view_as(each))
            bucket = []


def distribute(model: DeepseekV2, config: ParallelConfig, world: World) -> Layout:
    """Lay the model, the same in every process, over the processes."""
    config.check(world, model.config.n_routed_experts)
    if world.size == 1:
        return Layout()
    device = model.device.type
    mesh = init_device_mesh(
        device, (world.size // config.experts, config.experts), mesh_dim_names=("replica", "expert")
    )
    expert_group, replica_group = mesh.get_group("expert"), mesh.get_group("replica")
    cut = spread_experts(model, expert_group) if config.experts > 1 else set()
    if config.data == "shard":
        _shard(model, {model.get_parameter(name) for name in cut}, world)
    shards = {name: p.data for name, p in model.named_parameters() if isinstance(p.data, DTensor)}
    return Layout(world, shards, frozenset(cut), expert_group, replica_group)


def _shard(model: DeepseekV2, kept_whole: set[nn.Parameter], world: World) -> None:
    """FSDP2 a layer; the gates by themselves, since they are float32 in a bf16 model and a unit has one dtype."""
    mesh = init_device_mesh(model.device.type, (world.size,))
    precision = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    gates = [module.gate for module in model.modules() if isinstance(module, MoE)]
    for unit in (*gates, *model.model.layers, model):
        fully_shard(unit, mesh=mesh, mp_policy=precision, ignored_params=kept_whole or None)
    register_fsdp_forward_method(model, "hidden")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def sum_after_this_pass(model: nn.Module, is_last: bool) -> None:
    """Of a step's passes only the last one sums the shards' gradients over the processes."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(is_last)


def forget_gathered(model: nn.Module) -> None:
    """Free what a pass without a backward left gathered, before the shards change under it."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
