"""ModelConfig: the fields of the hub's `config.json`, the presets, and every size that follows from them.

Reads both spellings (transformers 4: `rope_theta` + `rope_scaling`; 5: `rope_parameters`). Nothing is guessed: a field
that would change the numbers and that we do not implement is an error, never ignored. No torch here: `leadline plan`
knows the exact bytes of a model from this file alone.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from leadline.errors import CheckpointError, ConfigError

Architecture = Literal["deepseek_v2", "deepseek", "llama"]

PACKED_CACHES = ("int8", "6bit")
DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "int8": 1}

ARCHITECTURES = {
    "DeepseekV2ForCausalLM": "deepseek_v2",  # V2, V2-Lite, Coder-V2, V2.5: MLA and DeepSeekMoE
    "DeepseekForCausalLM": "deepseek",  # MoE-16B: MHA and DeepSeekMoE
    "LlamaForCausalLM": "llama",  # 7B (MHA) and 67B (GQA), dense
}


def scoring(architecture: str) -> str:
    """The hub's name of a language model's architecture with a value head, a reward model's."""
    return architecture.replace("ForCausalLM", "ForSequenceClassification")


@dataclasses.dataclass(frozen=True)
class YarnConfig:
    """YaRN's parameters (section 3.1.4): scale s, the two betas and the two mscales."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0


def yarn_mscale(factor: float, mscale: float) -> float:
    """sqrt(t) of section 3.1.4: 0.1 m ln s + 1."""
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Field names are the hub's. `kv_lora_rank` None means plain MHA, GQA or MQA by `num_key_value_heads`;
    `n_routed_experts` None means a dense FFN in every layer."""

    model_type: Architecture = "deepseek_v2"
    vocab_size: int = 102400
    hidden_size: int = 2048
    intermediate_size: int = 10944
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    head_dim: int | None = None  # MHA, GQA, MQA only
    q_lora_rank: int | None = None
    kv_lora_rank: int | None = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    n_routed_experts: int | None = 64
    n_shared_experts: int = 2
    num_experts_per_tok: int = 6
    moe_intermediate_size: int = 1408
    first_k_dense_replace: int = 1
    moe_layer_freq: int = 1
    topk_method: Literal["greedy", "group_limited_greedy"] = "greedy"
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = False
    routed_scaling_factor: float = 1.0
    aux_loss_alpha: float = 0.001
    seq_aux: bool = True
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    yarn: YarnConfig | None = None
    max_position_embeddings: int = 4096
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    initializer_range: float = 0.006
    bos_token_id: int = 100000
    eos_token_id: int = 100001
    num_labels: int = 0  # 0: a language model; 1: a reward model, with a value head in its head's place
    dtype: str = "bfloat16"

    # ---- reading -----------------------------------------------------------------------------------------------

    @staticmethod
    def from_folder(folder: Path) -> ModelConfig:
        """Read `folder/config.json`. Errors name the file."""
        path = folder / "config.json"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{folder} is not a model folder: it has no config.json") from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None
        if not isinstance(raw, dict):
            raise CheckpointError(f"{path} does not hold a JSON object")
        try:
            return ModelConfig.from_dict(raw)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> ModelConfig:
        """The hub's fields to ours. Unknown fields are the hub's business; contradicting ones are refused."""
        model_type = _architecture(raw)
        _refuse_unsupported(raw)
        known = {field.name for field in dataclasses.fields(ModelConfig)} - {
            "model_type",
            "yarn",
            "rope_theta",
            "dtype",
            "num_labels",
        }
        values = {name: raw[name] for name in known if raw.get(name) is not None}
        values["num_labels"] = _labels(raw)
        if model_type != "deepseek_v2":
            values["kv_lora_rank"] = None
        if "kv_lora_rank" in raw and raw["kv_lora_rank"] is None:
            values["kv_lora_rank"] = None
        if model_type == "llama" or ("n_routed_experts" in raw and raw["n_routed_experts"] is None):
            values["n_routed_experts"] = None
        if "n_shared_experts" in raw and raw["n_shared_experts"] is None:
            values["n_shared_experts"] = 0
        values.setdefault("num_key_value_heads", raw.get("num_attention_heads", 16))
        if isinstance(values.get("eos_token_id"), list):
            values["eos_token_id"] = values["eos_token_id"][0]
        theta, yarn = _rope(raw)
        dtype = str(raw.get("dtype") or raw.get("torch_dtype") or "bfloat16").removeprefix("torch.")
        try:
            config = ModelConfig(model_type=model_type, rope_theta=theta, yarn=yarn, dtype=dtype, **values)
            config.validate()
        except TypeError as error:
            raise CheckpointError(f"a field has the wrong type: {error}") from None
        return config

    def validate(self) -> None:
        """Raise `CheckpointError` for sizes that cannot be one model."""
        positive = (
            "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
            "qk_nope_head_dim qk_rope_head_dim v_head_dim moe_intermediate_size num_experts_per_tok n_group topk_group "
            "max_position_embeddings moe_layer_freq"
        ).split()
        for name in positive:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise CheckpointError(f"{name} must be a positive whole number, not {value!r}")
        if self.dtype not in DTYPE_BYTES:
            raise CheckpointError(f"dtype {self.dtype!r} is not one of {', '.join(DTYPE_BYTES)}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise CheckpointError("num_attention_heads is not a multiple of num_key_value_heads")
        if self.rotary_dim % 2:
            raise CheckpointError(f"the rotary width {self.rotary_dim} is odd")
        if self.n_routed_experts is not None:
            self._validate_routing(self.n_routed_experts)

    def _validate_routing(self, experts: int) -> None:
        if self.topk_method not in ("greedy", "group_limited_greedy"):
            raise CheckpointError(f"topk_method {self.topk_method!r} is not implemented")
        if experts % self.n_group:
            raise CheckpointError(f"n_routed_experts {experts} is not a multiple of n_group {self.n_group}")
        candidates = experts
        if self.topk_method == "group_limited_greedy":
            if self.topk_group > self.n_group:
                raise CheckpointError(f"topk_group {self.topk_group} is more than n_group {self.n_group}")
            candidates = experts // self.n_group * self.topk_group
        if self.num_experts_per_tok > candidates:
            raise CheckpointError(f"num_experts_per_tok {self.num_experts_per_tok} is more than {candidates} experts")

    # ---- writing -----------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """A `config.json` in the published spelling, which every release of transformers reads."""
        raw = dataclasses.asdict(self)
        dtype, yarn = raw.pop("dtype"), raw.pop("yarn")
        if raw["head_dim"] is None:
            del raw["head_dim"]
        names = {kind: name for name, kind in ARCHITECTURES.items()}
        raw["architectures"] = [names[self.model_type] if not self.num_labels else scoring(names[self.model_type])]
        if not self.num_labels:
            del raw["num_labels"]
        raw["torch_dtype"] = dtype
        raw["rope_scaling"] = None if yarn is None else {**yarn, "type": "yarn"}
        raw.update(hidden_act="silu", scoring_func="softmax", attention_dropout=0.0, pretraining_tp=1, use_cache=True)
        return raw

    # ---- sizes -------------------------------------------------------------------------------------------------

    @property
    def is_mla(self) -> bool:
        return self.kv_lora_rank is not None

    @property
    def qk_head_dim(self) -> int:
        """Width of one query head: 192 in V2; the plain head width for MHA, GQA, MQA."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim if self.is_mla else self.plain_head_dim

    @property
    def plain_head_dim(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def value_head_dim(self) -> int:
        return self.v_head_dim if self.is_mla else self.plain_head_dim

    @property
    def rotary_dim(self) -> int:
        return self.qk_rope_head_dim if self.is_mla else self.plain_head_dim

    @property
    def softmax_scale(self) -> float:
        """(d_h + d_h^R)^-0.5 times YaRN's mscale squared, from `mscale_all_dim`: 0.1147213868 for V2 and V2-Lite."""
        scale: float = self.qk_head_dim**-0.5
        if self.yarn is not None and self.yarn.mscale_all_dim:
            scale *= yarn_mscale(self.yarn.factor, self.yarn.mscale_all_dim) ** 2
        return scale

    @property
    def cache_row(self) -> int:
        """Elements cached a token and layer: d_c + d_h^R for MLA (576), 2 n_g d_h else (table 1)."""
        if self.kv_lora_rank is not None:
            return self.kv_lora_rank + self.qk_rope_head_dim
        return 2 * self.num_key_value_heads * self.plain_head_dim

    def cache_bytes_per_token(self, dtype: str = "bfloat16") -> int:
        """Bytes of cache a token over all layers: 69,120 for V2, 31,104 for V2-Lite in bf16. int8 and 6bit are the
        packed formats of `leadline.ops.latent`, scales counted."""
        if dtype not in PACKED_CACHES:
            return self.cache_row * self.num_hidden_layers * DTYPE_BYTES[dtype]
        if self.kv_lora_rank is None:
            raise ConfigError(f"a cache in {dtype} holds latents, and this model has none", param="kv_cache_dtype")
        latent = self.kv_lora_rank
        scales = 2 * (latent // 64 if latent % 64 == 0 else 1) if dtype == "6bit" else 4
        codes = (latent * 3 // 4 if dtype == "6bit" else latent) + self.qk_rope_head_dim
        return (codes + scales + 4) * self.num_hidden_layers

    def is_moe_layer(self, layer: int) -> bool:
        return (
            self.n_routed_experts is not None
            and layer >= self.first_k_dense_replace
            and layer % self.moe_layer_freq == 0
        )

    def attention_parameters(self) -> int:
        d, heads = self.hidden_size, self.num_attention_heads
        out = heads * self.value_head_dim * d
        if self.kv_lora_rank is None:
            return d * heads * self.qk_head_dim + d * self.cache_row + out + self._attention_biases()
        latent = d * self.cache_row + self.kv_lora_rank
        expand = self.kv_lora_rank * heads * (self.qk_nope_head_dim + self.v_head_dim)
        query = d * heads * self.qk_head_dim
        if self.q_lora_rank is not None:
            query = d * self.q_lora_rank + self.q_lora_rank + self.q_lora_rank * heads * self.qk_head_dim
        return query + latent + expand + out + self._attention_biases()

    def _attention_biases(self) -> int:
        if not self.attention_bias:
            return 0
        if self.is_mla:
            return (self.q_lora_rank or 0) + self.cache_row + self.hidden_size
        return self.num_attention_heads * self.qk_head_dim + self.cache_row + self.hidden_size

    def ffn_parameters(self, layer: int, *, active: bool = False) -> int:
        """Parameters of one layer's FFN; `active`: those one token meets."""
        if not self.is_moe_layer(layer):
            return 3 * self.hidden_size * self.intermediate_size
        assert self.n_routed_experts is not None
        routed = self.num_experts_per_tok if active else self.n_routed_experts
        experts = (routed + self.n_shared_experts) * 3 * self.hidden_size * self.moe_intermediate_size
        return experts + self.n_routed_experts * self.hidden_size

    def parameters(self, *, active: bool = False) -> int:
        """Total parameters: 235,741,434,880 for V2, 15,706,484,224 for V2-Lite. `active`: those that one token is
        multiplied with, 20.9B and 2.45B; of an embedding of its own it looks up a row."""
        per_layer = self.attention_parameters() + 2 * self.hidden_size
        layers = sum(per_layer + self.ffn_parameters(i, active=active) for i in range(self.num_hidden_layers))
        tied = self.tie_word_embeddings and not self.num_labels
        head_rows = self.num_labels or self.vocab_size
        embedding_rows = 0 if active or tied else self.vocab_size
        return layers + (embedding_rows + head_rows + 1) * self.hidden_size


def _architecture(raw: Mapping[str, Any]) -> Architecture:
    names = raw.get("architectures") or []
    known = ARCHITECTURES | {scoring(name): kind for name, kind in ARCHITECTURES.items()}
    kinds = {known.get(name) for name in names} or {raw.get("model_type")}
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind not in ("deepseek_v2", "deepseek", "llama"):
        shown = ", ".join(map(str, names)) or raw.get("model_type") or "unnamed"
        raise CheckpointError(f"architecture {shown} is not one of {', '.join(ARCHITECTURES)}")
    return cast(Architecture, kind)


def _labels(raw: Mapping[str, Any]) -> int:
    """Of a classifier's head; only one that gives a single score is a reward model."""
    if not any(str(name).endswith("ForSequenceClassification") for name in raw.get("architectures") or []):
        return 0
    labels = len(raw["id2label"]) if isinstance(raw.get("id2label"), dict) else raw.get("num_labels", 1)
    if labels != 1:
        raise CheckpointError(f"num_labels {labels!r} is not implemented (only 1, a reward model's)")
    return 1


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    expected = {"hidden_act": "silu", "scoring_func": "softmax", "mlp_bias": False}
    for name, value in expected.items():
        if raw.get(name, value) != value:
            raise CheckpointError(f"{name} {raw[name]!r} is not implemented (only {value!r})")
    if raw.get("quantization_config") and raw["quantization_config"].get("quant_method") != "leadline":
        method = raw["quantization_config"].get("quant_method", "unknown")
        raise CheckpointError(f"quantization_config {method!r} is not implemented; use the bf16 weights")


def _rope(raw: Mapping[str, Any]) -> tuple[float, YarnConfig | None]:
    """RoPE's base and YaRN's fields from either spelling."""
    scaling = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    theta = float(scaling.pop("rope_theta", None) or raw.get("rope_theta") or 10000.0)
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    if kind == "default":
        return theta, None
    if kind != "yarn":
        raise CheckpointError(f"rope scaling {kind!r} is not implemented (only 'yarn')")
    fields = {field.name for field in dataclasses.fields(YarnConfig)}
    missing = {"factor", "original_max_position_embeddings"} - scaling.keys()
    if missing:
        raise CheckpointError(f"rope_scaling lacks {', '.join(sorted(missing))}")
    return theta, YarnConfig(**{name: value for name, value in scaling.items() if name in fields})


_V2_YARN = YarnConfig(
    factor=40.0,
    original_max_position_embeddings=4096,
    beta_fast=32.0,
    beta_slow=1.0,
    mscale=0.707,
    mscale_all_dim=0.707,
)

V2_LITE = ModelConfig(yarn=_V2_YARN, max_position_embeddings=163840)

V2 = dataclasses.replace(
    V2_LITE,
    hidden_size=5120,
    intermediate_size=12288,
    num_hidden_layers=60,
    num_attention_heads=128,
    num_key_value_heads=128,
    q_lora_rank=1536,
    n_routed_experts=160,
    moe_intermediate_size=1536,
    topk_method="group_limited_greedy",
    n_group=8,
    topk_group=3,
    routed_scaling_factor=16.0,
    aux_loss_alpha=0.003,
)

V2_5 = dataclasses.replace(V2, yarn=dataclasses.replace(_V2_YARN, mscale=1.0, mscale_all_dim=1.0))

SMALL = ModelConfig(
    vocab_size=4096,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=4,
    kv_lora_rank=64,
    qk_nope_head_dim=48,
    qk_rope_head_dim=16,
    v_head_dim=64,
    n_routed_experts=16,
    n_shared_experts=1,
    num_experts_per_tok=3,
    moe_intermediate_size=192,
    max_position_embeddings=1024,
    bos_token_id=0,
    eos_token_id=1,
)

PRESETS = {"v2": V2, "v2.5": V2_5, "v2-lite": V2_LITE, "small": SMALL}
