"""What a model needs and what fits, from its configuration alone: before any download or allocation.

Weights and cache are exact (sections 2.1.4, 3.1.2): parameters times bytes, and the latent row of every layer.
Activations are an upper estimate of one pass. The context is what then fits, never more than the model was advertised
for: the 163,840 positions of the published configs are not a context that anybody trained or promised.

Invariant: a plan that fits stays within its budget: weights + cache + activations <= budget. No torch here.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from leadline.checkpoint.machine import Gpu, Machine, show_bytes
from leadline.errors import ConfigError, ResourceError
from leadline.model.config import DTYPE_BYTES, PACKED_CACHES, ModelConfig

PAGE = 64  # tokens: contexts and caches are whole pages
MIN_CONTEXT = 256  # less than this is no conversation: the model is said not to fit
FREE_SHARE = 0.9  # of what is free, when no --max-memory says otherwise
BATCHED_TOKENS = 1024  # of one pass, the engine's default

CACHE_TYPES = ("float64", "float32", "bfloat16", "float16", *PACKED_CACHES)
_PUBLISHED_POSITIONS = 163_840
_LITE_CONTEXT, _V2_CONTEXT = 32_768, 131_072
_LITE_HIDDEN = 2048
_SCORES = 1 << 24  # attention makes its scores in blocks of at most this many elements
_SCORE_BYTES = 14  # float32 scores, masked, softmaxed, and once in the model's type

_VLLM_GPU = Gpu("80 GB", 80 * 10**9, 80 * 10**9)
_VLLM_SHARE = 0.9  # vLLM's own default of --gpu-memory-utilization
_NODE_GPUS = 8
_VLLM_CONTEXT = 8192  # the least that is worth a cluster


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """All sizes in bytes. `context_length` is the longest sequence, `cache_tokens` what the cache is to hold of all.

    `problem` is one line that says, with the numbers, why the model does not fit; None when it does. `recipe` is what
    the weights are quantised by and stay in; `dtype` is then what is computed in.
    """

    name: str
    device: str
    dtype: str
    cache_dtype: str
    parameters: int
    active_parameters: int
    weight_bytes: int
    cache_bytes_per_token: int
    activation_bytes: int
    advertised_context: int
    context_length: int
    concurrency: int
    cache_tokens: int
    budget: int
    budget_reason: str
    decode_bytes: int
    bandwidth: float | None = None
    problem: str | None = None
    vllm: str | None = None
    recipe: str | None = None

    @property
    def weight_format(self) -> str:
        return self.recipe or self.dtype

    @property
    def fits(self) -> bool:
        return self.problem is None

    @property
    def cache_bytes(self) -> int:
        return self.cache_tokens * self.cache_bytes_per_token

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.cache_bytes + self.activation_bytes

    @property
    def tokens_per_second(self) -> float | None:
        """An upper bound for one short sequence: each token reads the active weights, at the memory's bandwidth."""
        return None if self.bandwidth is None else self.bandwidth / self.decode_bytes

    @property
    def tokens_per_second_full(self) -> float | None:
        """The same when the context is full: each token reads the whole cache of its sequence too."""
        cache = self.context_length * self.cache_bytes_per_token
        return None if self.bandwidth is None else self.bandwidth / (self.decode_bytes + cache)

    def to_dict(self) -> dict[str, Any]:
        derived = ("fits", "cache_bytes", "total_bytes", "tokens_per_second", "tokens_per_second_full")
        return {**dataclasses.asdict(self), **{name: getattr(self, name) for name in derived}}


def make_plan(
    config: ModelConfig,
    machine: Machine,
    *,
    name: str = "the model",
    reference: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    cache_dtype: str = "auto",
    context: int | None = None,
    concurrency: int = 1,
    max_num_seqs: int = 1,
    max_memory: int | None = None,
    max_num_batched_tokens: int = BATCHED_TOKENS,
    bandwidth: float | None = None,
    packed: tuple[int, int] | None = None,
    recipe: str | None = None,
) -> Plan:
    """The sizes of this model on this machine. It may say that the model does not fit: see `require`.

    `reference` is what another program finds the model under, if not `name`. `concurrency` sequences must fit at full
    length; `max_num_seqs` of them get cache as far as there is room. `packed` are the bytes of weights quantised by
    `recipe`, all and what a token reads, where they run as they are: on a CPU.
    """
    _check_options(config, context, concurrency)
    device = choose_device(config, machine, device, dtype)
    dtype = choose_dtype(config, device, dtype)
    cache_dtype = choose_cache_dtype(config, dtype, cache_dtype)
    budget, reason = _budget(machine, device, max_memory)
    plain = config.parameters() * DTYPE_BYTES[dtype], config.parameters(active=True) * DTYPE_BYTES[dtype]
    packed = packed if device == "cpu" else None
    weights, decode = packed or plain
    row = config.cache_bytes_per_token(cache_dtype)
    fixed, per_token = activation_bytes(config, dtype, max_num_batched_tokens, max(concurrency, max_num_seqs))
    advertised = advertised_context(config, name)
    room = max(0, budget - weights - fixed) // (row * concurrency + per_token)
    length = context if context is not None else min(advertised, room // PAGE * PAGE or room)
    spare = max(0, budget - weights - fixed - per_token * length) // row
    plan = Plan(
        name=name,
        device=device,
        dtype=dtype,
        cache_dtype=cache_dtype,
        parameters=config.parameters(),
        active_parameters=config.parameters(active=True),
        weight_bytes=weights,
        cache_bytes_per_token=row,
        activation_bytes=fixed + per_token * length,
        advertised_context=advertised,
        context_length=length,
        concurrency=concurrency,
        cache_tokens=_cache_tokens(length, spare, concurrency, max_num_seqs),
        budget=budget,
        budget_reason=reason,
        decode_bytes=decode,
        bandwidth=bandwidth or _gpu_bandwidth(machine, device),
        recipe=recipe if packed else None,
    )
    wanted = context if context is not None else min(MIN_CONTEXT, advertised)
    if room >= wanted:
        return plan
    vllm = vllm_command(config, machine, reference or name, dtype, context)
    return dataclasses.replace(plan, problem=_problem(plan, wanted, room), vllm=vllm)


def _check_options(config: ModelConfig, context: int | None, concurrency: int) -> None:
    positions = config.max_position_embeddings
    if context is not None and not 1 <= context <= positions:
        raise ConfigError(f"max_model_len {context:,} is not between 1 and the model's {positions:,} positions")
    if concurrency < 1:
        raise ConfigError(f"concurrency must be at least 1, not {concurrency}")


def _cache_tokens(length: int, spare: int, concurrency: int, max_num_seqs: int) -> int:
    """Whole pages: full contexts for `concurrency` sequences, for up to `max_num_seqs` as far as there is room."""
    pages = -(-length // PAGE)
    return PAGE * max(pages * concurrency, min(pages * max_num_seqs, spare // PAGE))


def require(plan: Plan) -> Plan:
    """The plan itself, or `ResourceError` with the numbers and, where it helps, the command for several GPUs."""
    if plan.problem is None:
        return plan
    raise ResourceError(plan.problem if plan.vllm is None else f"{plan.problem}. On several GPUs: {plan.vllm}")


def advertised_context(config: ModelConfig, name: str = "") -> int:
    """The context a model was released with: V2, V2.5 and both Coder-V2 128K, V2-Lite 32K; else its positions.

    V2-Lite and Coder-V2-Lite have the same config.json, so only the name tells them apart.
    """
    if not config.is_mla or config.max_position_embeddings != _PUBLISHED_POSITIONS:
        return config.max_position_embeddings
    is_lite = config.hidden_size == _LITE_HIDDEN and "coder" not in name.lower()
    return _LITE_CONTEXT if is_lite else _V2_CONTEXT


def choose_dtype(config: ModelConfig, device: str, dtype: str = "auto") -> str:
    """`auto` is the config's type; a model under 1 GiB runs in float32 on a CPU, where bfloat16 is slower."""
    if dtype == "auto":
        small = config.parameters() * DTYPE_BYTES["float32"] < 1 << 30
        return "float32" if device == "cpu" and small and DTYPE_BYTES[config.dtype] < 4 else config.dtype
    if dtype not in ("float64", "float32", "bfloat16", "float16"):
        raise ConfigError(f"dtype {dtype!r} is not one of auto, float32, bfloat16, float16, float64")
    return dtype


def choose_cache_dtype(config: ModelConfig, dtype: str, cache_dtype: str = "auto") -> str:
    """`auto` is the weights' type; bf16 is bfloat16; int8 and 6bit pack the latents."""
    cache_dtype = {"auto": dtype, "bf16": "bfloat16"}.get(cache_dtype, cache_dtype)
    if cache_dtype not in CACHE_TYPES:
        raise ConfigError(f"kv_cache_dtype {cache_dtype!r} is not one of auto, bf16, int8, 6bit, float32, float16")
    config.cache_bytes_per_token(cache_dtype)  # says which models have no latents to pack
    return cache_dtype


def choose_device(config: ModelConfig, machine: Machine, device: str = "auto", dtype: str = "auto") -> str:
    """`auto` is the first GPU with room for the weights and a little more, else the CPU."""
    if device != "auto":
        return _checked_device(device, machine)
    for index, gpu in enumerate(machine.gpus):
        needed = config.parameters() * DTYPE_BYTES[choose_dtype(config, "cuda", dtype)]
        if needed < gpu.free * FREE_SHARE:
            return f"cuda:{index}"
    return "cpu"


def _checked_device(device: str, machine: Machine) -> str:
    kind, _, index = device.partition(":")
    if kind == "cpu" and not index:
        return device
    if kind != "cuda" or (index and not index.isdigit()):
        raise ConfigError(f"device {device!r} is not one of auto, cpu, cuda, cuda:N")
    if int(index or 0) >= len(machine.gpus):
        raise ResourceError(f"device {device!r} is not here: {len(machine.gpus)} GPUs were found")
    return f"cuda:{int(index or 0)}"


def _budget(machine: Machine, device: str, max_memory: int | None) -> tuple[int, str]:
    if device.startswith("cuda"):
        gpu = machine.gpus[int(device.partition(":")[2])]
        free, reason = int(gpu.free * FREE_SHARE), f"{FREE_SHARE:.0%} of the free memory of {gpu.name}"
    else:
        free, reason = (
            int(machine.memory * FREE_SHARE),
            f"{FREE_SHARE:.0%} of {machine.memory:,} {machine.memory_reason}",
        )
    return (max_memory, "--max-memory") if max_memory is not None and max_memory < free else (free, reason)


def _gpu_bandwidth(machine: Machine, device: str) -> float | None:
    return machine.gpus[int(device.partition(":")[2])].bandwidth if device.startswith("cuda") else None


def activation_bytes(config: ModelConfig, dtype: str, tokens: int, sequences: int = 1) -> tuple[int, int]:
    """An upper estimate of one pass over `tokens`: (fixed, per token of context)."""
    item, heads, row = DTYPE_BYTES[dtype], config.num_attention_heads, config.cache_row
    hidden = tokens * config.hidden_size * item * 8
    queries = tokens * heads * (config.qk_head_dim + 3 * row) * item
    scores = min(_SCORES, tokens * heads * config.max_position_embeddings) * _SCORE_BYTES
    experts = config.num_experts_per_tok * (3 * config.moe_intermediate_size + 2 * config.hidden_size)
    widest = max(3 * config.intermediate_size, experts if config.n_routed_experts else 0)
    logits = min(sequences, tokens) * config.vocab_size * 12  # as they come, in float32, sorted
    repacked = (
        config.vocab_size * config.hidden_size * item
    )  # the largest matrix, as a GEMM library may lay it out anew
    return hidden + queries + scores + tokens * widest * item + logits + repacked, row * item


def _problem(plan: Plan, wanted: int, room: int) -> str:
    needed = plan.weight_bytes + plan.activation_bytes + wanted * plan.concurrency * plan.cache_bytes_per_token
    sizes = (
        f"weights {plan.weight_bytes:,} bytes ({plan.parameters:,} parameters in {plan.weight_format}), cache "
        f"{plan.cache_bytes_per_token:,} bytes a token, activations about {show_bytes(plan.activation_bytes)}"
    )
    have = f"{plan.budget:,} bytes are usable on {plan.device} ({plan.budget_reason})"
    fits = f"; a context of {room // PAGE * PAGE:,} fits" if room >= PAGE else ""
    sequences = f"{plan.concurrency} sequences" if plan.concurrency > 1 else "a context"
    return f"{plan.name} with {sequences} of {wanted:,} tokens needs {show_bytes(needed)}: {sizes}; {have}{fits}"


def vllm_command(
    config: ModelConfig, machine: Machine, name: str, dtype: str, context: int | None = None
) -> str | None:
    """How to serve a model that outgrows this machine on several GPUs: of the kind it has, else of 80 GB.

    None for a model that one GPU of 80 GB holds, unless there are GPUs here. vLLM keeps the latent cache whole on every
    GPU, whatever the parallelism.
    """
    gpu = min(machine.gpus, key=lambda gpu: gpu.total, default=_VLLM_GPU)
    weights, row = config.parameters() * min(DTYPE_BYTES[dtype], 2), config.cache_bytes_per_token()
    wanted = context or min(advertised_context(config, name), _VLLM_CONTEXT)
    if len(machine.gpus) < 2 and weights <= _VLLM_GPU.total * _VLLM_SHARE:
        return None
    for count in (2, 4, 8, 16, 32, 64):
        room = int((gpu.total * _VLLM_SHARE - weights / count) * FREE_SHARE) // row
        if room >= wanted:
            length = context or min(advertised_context(config, name), room) // 1024 * 1024
            there = "" if len(machine.gpus) >= count else f" (on {count} x {gpu.name})"
            return f"vllm serve {name} {_parallel_options(count)} --max-model-len {length}{there}"
    return None


def _parallel_options(gpus: int) -> str:
    """Tensor parallelism within a node of eight, a pipeline over nodes."""
    tensor = f"--tensor-parallel-size {min(gpus, _NODE_GPUS)}"
    return tensor if gpus <= _NODE_GPUS else f"{tensor} --pipeline-parallel-size {gpus // _NODE_GPUS}"
