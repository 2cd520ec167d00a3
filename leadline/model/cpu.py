"""CpuModel: the model bound to the C++ kernels, one call a pass.

It stands where a `DeepseekV2` stands in the engine: `hidden`, `lm_head`, `config`, `dtype`, `device`. The PyTorch model
is its reference. Weights are bound once; a pass hands over addresses of buffers that are there already.

Invariant: a token's numbers depend on nothing but its own sequence, to the bit (rule 6 of docs/architecture.md): one
order of accumulation an output element, whatever the number of rows, threads or neighbours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from leadline.errors import ConfigError
from leadline.model.batch import ForwardBatch
from leadline.model.config import ModelConfig
from leadline.model.moe import Routing
from leadline.model.packed import PackedWeights
from leadline.model.rope import RotaryEmbedding
from leadline.model.transformer import ModelOutput
from leadline.ops.cpu import native
from leadline.ops.cpu.layout import Packed

CACHE_TYPES = ("bfloat16", "float32", "int8", "6bit")

KERNELS = 2
"""Counts the changes of the kernels' bits, so that rows an earlier one computed are not taken for this one's."""


class CpuModel:
    """`dtype` is what the cache is kept in when nobody says otherwise."""

    def __init__(
        self,
        config: ModelConfig,
        weights: PackedWeights,
        *,
        dtype: torch.dtype = torch.bfloat16,
        isa: str | None = None,
        threads: int | None = None,
    ) -> None:
        name = native.choose(isa)
        module = native.extension()
        if name is None or module is None:
            raise ConfigError("the CPU kernels are not built or are switched off")
        if not config.is_mla:
            raise ConfigError("the CPU kernels run models with latent attention only")
        self.config = config
        self.weights = weights  # the memory that the handles point into
        self.dtype = dtype
        self.device = torch.device("cpu")
        self.isa = name
        self.rotary = RotaryEmbedding(config)
        self._native = module.Model(_shape(config), name, threads or native.threads())
        self._bind(module)
        self._cos, self._sin = torch.zeros(0), torch.zeros(0)
        self._hidden, self._logits = torch.zeros(0), torch.zeros(0, config.vocab_size)

    def _bind(self, module: Any) -> None:
        for (layer, name), packed in self.weights.matrices.items():
            self._native.bind_matrix(layer, name, handle(module, packed))
        for (layer, name), vector in self.weights.vectors.items():
            assert vector.dtype == torch.float32 and vector.is_contiguous()
            self._native.bind_vector(layer, name, vector.data_ptr())
        embedding = self.weights.embedding
        self._native.bind_embedding(embedding.data_ptr(), embedding.dtype == torch.bfloat16)
        try:
            self._native.check()
        except ValueError as error:
            raise ConfigError(f"weights in kernel layout: {error}") from None

    @property
    def threads(self) -> int:
        count: int = self._native.threads()
        return count

    @property
    def buffer_bytes(self) -> int:
        """What passes have needed so far beside weights and cache."""
        count: int = self._native.buffer_bytes()
        return count + self._hidden.nbytes + self._logits.nbytes + self._cos.nbytes + self._sin.nbytes

    @property
    def bytes_read(self) -> int:
        """Weights and cached rows that all passes so far had to read, each once a pass: what bandwidth bounds."""
        count: int = self._native.bytes_read()
        return count

    def bandwidth(self) -> float:
        """Bytes a second that as many threads read from the largest matrices."""
        largest = max((each.data for each in self.weights.matrices.values()), key=Tensor.numel)
        module = native.extension()
        assert module is not None
        found: float = module.bandwidth(largest.data_ptr(), largest.numel(), self.threads) * 1e9
        return found

    @property
    def maker(self) -> str:
        """What this model's numbers depend on besides the checkpoint: the recipe. Not the instruction set."""
        formats = sorted(
            (layer, name, each.layout.format, each.layout.group)
            for (layer, name), each in self.weights.matrices.items()
        )
        return f"kernels {KERNELS}, recipe {hashlib.sha256(repr(formats).encode()).hexdigest()[:12]}"

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The weights as they lie in memory, for whoever tells models apart by them."""
        yield "embedding", self.weights.embedding
        for (layer, name), packed in self.weights.matrices.items():
            yield f"{layer}.{name}", packed.data
        for (layer, name), vector in self.weights.vectors.items():
            yield f"{layer}.{name}", vector

    def __call__(self, tokens_T: Tensor, batch: ForwardBatch) -> ModelOutput:
        hidden_TD, routings = self.hidden(tokens_T, batch)
        if batch.logit_rows is not None:
            hidden_TD = hidden_TD[batch.logit_rows]
        return ModelOutput(self.lm_head(hidden_TD), tuple(routings))

    def hidden(self, tokens_T: Tensor, batch: ForwardBatch) -> tuple[Tensor, Routings]:
        """The final normed states (T, D), float32, and the choices of every MoE layer. Both are the buffers' own:
        they stand until the next pass."""
        cache = batch.cache
        assert cache is not None and batch.slots is not None and batch.page_tables is not None
        kind = str(cache.storage.dtype).removeprefix("torch.") if cache.format is None else cache.format.name
        if kind not in CACHE_TYPES:
            raise ConfigError(f"the CPU kernels keep the cache in {', '.join(CACHE_TYPES)}, not {kind}")
        self._reach(max(batch.context_lens, default=0))
        count = len(tokens_T)
        if self._hidden.shape[0] < count:
            self._hidden = torch.empty(count, self.config.hidden_size)
        tokens_T, positions_T, slots_T = (x.contiguous() for x in (tokens_T, batch.positions, batch.slots))
        tables_SP = batch.page_tables.contiguous()
        self._native.forward(
            count,
            tokens_T.data_ptr(),
            positions_T.data_ptr(),
            slots_T.data_ptr(),
            batch.starts,
            batch.context_lens,
            tables_SP.data_ptr(),
            tables_SP.shape[1],
            cache.page_size,
            cache.storage.data_ptr(),
            cache.storage.stride(0) * cache.storage.element_size(),
            kind,
            0 if cache.format is None else cache.format.group,
            self._cos.data_ptr(),
            self._sin.data_ptr(),
            self._hidden.data_ptr(),
        )
        return self._hidden[:count], Routings(self._native, self.config, count)

    def lm_head(self, hidden_RD: Tensor) -> Tensor:
        """(R, V) float32, in a buffer that stands until the next call."""
        hidden_RD = hidden_RD.contiguous()
        rows = len(hidden_RD)
        if self._logits.shape[0] < rows:
            self._logits = torch.empty(rows, self.config.vocab_size)
        self._native.logits(hidden_RD.data_ptr(), rows, self._logits.data_ptr())
        return self._logits[:rows]

    def likeliest(self, logits_RV: Tensor) -> tuple[Tensor, Tensor]:
        """Each row's greatest number, NaN before all others, and where it first stands."""
        assert logits_RV.dtype == torch.float32 and logits_RV.stride(1) == 1
        rows, width = logits_RV.shape
        peaks_R, ids_R = torch.empty(rows), torch.empty(rows, dtype=torch.int64)
        module = native.extension()
        assert module is not None
        places = peaks_R.data_ptr(), ids_R.data_ptr()
        module.likeliest(self.isa, logits_RV.data_ptr(), rows, logits_RV.stride(0), width, *places)
        return peaks_R, ids_R

    def experts(self, layer: int, x_TD: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """A layer's experts alone, shared ones included: (T, D) float32 (eq. 20 without the residual)."""
        x_TD, ids_TK = x_TD.float().contiguous(), expert_ids_TK.int().contiguous()
        weights_TK, out_TD = weights_TK.float().contiguous(), torch.empty(x_TD.shape)
        self._native.experts(
            layer, x_TD.data_ptr(), len(x_TD), ids_TK.data_ptr(), weights_TK.data_ptr(), out_TD.data_ptr()
        )
        return out_TD

    def _reach(self, length: int) -> None:
        """Cosines and sines up to this position, made in powers of two."""
        if len(self._cos) < length:
            positions = torch.arange(max(1024, 1 << (length - 1).bit_length()))
            rope = self.rotary(positions)
            self._cos, self._sin = rope.cos_TP.contiguous(), rope.sin_TP.contiguous()


def handle(module: Any, packed: Packed) -> Any:
    """The C++ side's view of a matrix; the memory stays the tensor's."""
    layout = packed.layout
    assert packed.data.is_contiguous()
    return module.matrix(packed.data.data_ptr(), layout.format, layout.rows, layout.columns, layout.group, packed.count)


class Routings(Sequence[Routing]):
    """The choices of the last pass, a `Routing` a MoE layer, made only when somebody looks."""

    def __init__(self, model: Any, config: ModelConfig, tokens: int) -> None:
        self._model, self._config, self._tokens = model, config, tokens

    def __len__(self) -> int:
        count: int = self._model.moe_layers()
        return count

    @overload
    def __getitem__(self, index: int) -> Routing: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Routing, ...]: ...
    def __getitem__(self, index: int | slice) -> Routing | tuple[Routing, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        shape = self._tokens, self._config.num_experts_per_tok
        ids_TK, gates_TK = torch.empty(shape, dtype=torch.int64), torch.empty(shape)
        scores_TE = torch.empty(self._tokens, self._config.n_routed_experts or 0)
        places = ids_TK.data_ptr(), gates_TK.data_ptr(), scores_TE.data_ptr()
        self._model.routing(index % len(self), self._tokens, *places)
        return Routing(ids_TK, gates_TK, scores_TE)

    def __iter__(self) -> Iterator[Routing]:
        return (self[index] for index in range(len(self)))


def _shape(config: ModelConfig) -> dict[str, int | float | bool]:
    limited = config.topk_method == "group_limited_greedy"
    return {
        "hidden": config.hidden_size,
        "layers": config.num_hidden_layers,
        "vocab": config.vocab_size,
        "heads": config.num_attention_heads,
        "nope": config.qk_nope_head_dim,
        "rope": config.qk_rope_head_dim,
        "values": config.v_head_dim,
        "latent": config.kv_lora_rank or 0,
        "query_rank": config.q_lora_rank or 0,
        "experts": config.n_routed_experts or 0,
        "top_k": config.num_experts_per_tok,
        "groups": config.n_group if limited else 1,
        "keep_groups": config.topk_group if limited else 1,
        "normalise": config.norm_topk_prob,
        "factor": config.routed_scaling_factor,
        "eps": config.rms_norm_eps,
        "scale": config.softmax_scale,
    }
