"""How far a quantised model is from its original: KL divergence and the share of places with the same likeliest token.

Both run over the same text layer by layer, so that no more than one layer of either is held: a model whose original
does not fit this machine is measured all the same.

    KL(P || Q) = sum_v P(v) (ln P(v) - ln Q(v)), P the original's next-token distribution; in nats a token

Shapes: T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import leadline
from leadline.checkpoint.names import layer_of
from leadline.checkpoint.pack import read_tensors
from leadline.checkpoint.regions import Weights, layer_originals, originals
from leadline.checkpoint.safetensors import Entry
from leadline.checkpoint.weights import allocate, tensor_of
from leadline.model.batch import ForwardBatch
from leadline.model.config import ModelConfig
from leadline.model.rope import Rope, RotaryEmbedding
from leadline.model.transformer import DecoderLayer
from leadline.ops.norm import residual_dtype, rms_norm
from leadline.tokenizer import Tokenizer

MAX_KL = 0.03
MIN_AGREEMENT = 0.97
TOKENS = 8192
SEQUENCE = 512
LOGIT_ROWS = 256
PART_TOKENS = 4096

Named = Iterable[tuple[str, Tensor]]


@dataclasses.dataclass(frozen=True, slots=True)
class Quality:
    """`kl` in nats a token, `agreement` the share of equal likeliest tokens, over `tokens` of text."""

    kl: float
    agreement: float
    tokens: int

    @property
    def good(self) -> bool:
        return self.kl <= MAX_KL and self.agreement >= MIN_AGREEMENT


@dataclasses.dataclass(frozen=True)
class Source:
    """A model that is read piece by piece: `top` gives embedding, final norm and head, `layer` one layer's tensors."""

    top: Callable[[], Named]
    layer: Callable[[int], Named]


def folder_source(entries: Sequence[Entry]) -> Source:
    """The hub's tensors in their own type."""
    by_layer: dict[int | None, list[Entry]] = {}
    for entry in entries:
        by_layer.setdefault(layer_of(entry.name), []).append(entry)
    return Source(lambda: read_tensors(by_layer[None]), lambda layer: read_tensors(by_layer[layer]))


def packed_source(weights: Weights, config: ModelConfig) -> Source:
    """A quantised model, dequantised as it is asked for."""

    def top() -> Iterator[tuple[str, Tensor]]:
        return originals(weights, dataclasses.replace(config, num_hidden_layers=0))

    return Source(top, lambda layer: layer_originals(weights, config, layer))


@dataclasses.dataclass(frozen=True)
class Part:
    """Sequences that go through a layer together: where their tokens are among all."""

    rows: slice
    rope: Rope
    batch: ForwardBatch


def parts_of(config: ModelConfig, lengths: Sequence[int]) -> list[Part]:
    """A layer's buffers are some times as large as its states: so many tokens at a time that they do not matter."""
    rotary = RotaryEmbedding(config)
    parts, start = [], 0
    count = max(1, PART_TOKENS // max(lengths, default=1))
    for first in range(0, len(lengths), count):
        batch = ForwardBatch.packed(lengths[first : first + count])
        rows = slice(start, start + batch.starts[-1])
        parts.append(Part(rows, rotary(batch.positions), batch))
        start = rows.stop
    return parts


class Walk:
    """One model's states over a text, taken from layer to layer."""

    def __init__(self, config: ModelConfig, source: Source, sequences: Sequence[Sequence[int]], dtype: torch.dtype):
        self.config, self.source, self.dtype = config, source, dtype
        self.parts = parts_of(config, [len(ids) for ids in sequences])
        self.top = {name: weight.to(dtype) for name, weight in source.top()}
        tokens_T = torch.tensor([token for ids in sequences for token in ids])
        x_TD = self.top["model.embed_tokens.weight"][tokens_T]
        self.states_TD = x_TD.to(residual_dtype(x_TD))

    def load(self, index: int, source: Source | None = None) -> DecoderLayer:
        """The layer with its weights, or with those of another source."""
        with torch.device("meta"):
            layer = DecoderLayer(self.config, index)
        allocate(layer, self.dtype, torch.device("cpu"))
        prefix = f"model.layers.{index}."
        parameters = {f"{prefix}{name}": parameter for name, parameter in layer.named_parameters()}
        fill_parameters(parameters, (source or self.source).layer(index), self.config)
        return layer

    def step(self, layer: DecoderLayer) -> None:
        for part in self.parts:
            self.states_TD[part.rows], _ = layer(self.states_TD[part.rows], part.rope, part.batch)

    def norm(self, states_TD: Tensor) -> Tensor:
        """(T, D): what the head is multiplied by."""
        return rms_norm(states_TD, self.top["model.norm.weight"], self.config.rms_norm_eps)

    def normed(self) -> Tensor:
        return self.norm(self.states_TD)

    def head(self) -> Tensor:
        """(V, D)."""
        return self.top.get("lm_head.weight", self.top["model.embed_tokens.weight"])

    def logits(self) -> Iterator[Tensor]:
        """(rows, V) float32, a block of tokens at a time."""
        for x_RD in self.normed().split(LOGIT_ROWS):
            yield (x_RD.to(self.dtype) @ self.head().T).float()


def fill_parameters(parameters: Mapping[str, nn.Parameter], tensors: Named, config: ModelConfig) -> None:
    for name, weight in tensors:
        tensor_of(parameters, name, config).copy_(weight)


@torch.inference_mode()
def compare(
    config: ModelConfig,
    original: Source,
    changed: Source,
    sequences: Sequence[Sequence[int]],
    dtype: torch.dtype = torch.float32,
) -> Quality:
    """Both models over the text, in `dtype`."""
    walks = [Walk(config, source, sequences, dtype) for source in (original, changed)]
    for index in range(config.num_hidden_layers):
        for walk in walks:
            walk.step(walk.load(index))
    kl, same, tokens = 0.0, 0, 0
    for p_RV, q_RV in zip(*(walk.logits() for walk in walks), strict=True):
        log_p, log_q = p_RV.log_softmax(-1), q_RV.log_softmax(-1)
        kl += float((log_p.exp() * (log_p - log_q)).sum(dtype=torch.float64))
        same += int((p_RV.argmax(-1) == q_RV.argmax(-1)).sum())
        tokens += p_RV.shape[0]
    return Quality(kl / tokens, same / tokens, tokens)


def sequences_of(tokenizer: Tokenizer, text: str, tokens: int = TOKENS) -> list[list[int]]:
    """The beginning of a text as prompts of `SEQUENCE` tokens, each with its BOS."""
    ids = tokenizer.encode(text)[:tokens]
    return [[tokenizer.bos_id, *ids[start : start + SEQUENCE - 1]] for start in range(0, len(ids), SEQUENCE - 1)]


def package_text() -> str:
    """leadline's own source, prose and code: the text that is always there."""
    root = Path(leadline.__file__).parent
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(root.rglob("*.py")))
