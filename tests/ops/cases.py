"""Arguments for every op: the shapes models really use in small, and the edges (no tokens, one token, ragged, dropped).

A case makes its arguments in a dtype; floating tensors come in that dtype, gates and affinities in float32 or wider as
the model passes them. Every op in the registry must be a key here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from leadline.ops.latent import LatentBits, LatentFormat, PackedLatents
from leadline.ops.quant import quantise

Make = Callable[[torch.dtype], tuple[Any, ...]]
MODEL_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
WIDE = (torch.float64, torch.float32)


@dataclasses.dataclass(frozen=True)
class Case:
    """`gradients`: places of the arguments to differentiate by; `types`: the dtypes the model calls it in."""

    name: str
    make: Make
    gradients: tuple[int, ...] = ()
    types: tuple[torch.dtype, ...] = MODEL_TYPES


def normal(*shape: int, seed: int = 0, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


# ---- norm and rotary ---------------------------------------------------------------------------------------------


def norm_case(tokens: int, width: int, *, special: float | None = None, scale: float = 1.0) -> Make:
    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        x = normal(tokens, width, dtype=dtype) * scale
        if special is not None:
            x[0, 1] = special
        return x, normal(width, seed=1, dtype=dtype), 1e-6

    return make


def rotary_case(tokens: int, heads: int, width: int, offset: int = 0) -> Make:
    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        angles = torch.arange(offset, offset + tokens).float()[:, None] / 10000 ** (
            torch.arange(width // 2) / (width // 2)
        )
        return normal(tokens, heads, width, dtype=dtype), angles.cos().to(wide(dtype)), angles.sin().to(wide(dtype))

    return make


ROTARY = [
    Case("queries", rotary_case(7, 4, 16), (0,)),
    Case("one shared key", rotary_case(7, 1, 64, offset=30000), (0,)),
    Case("one token", rotary_case(1, 4, 8), (0,)),
    Case("no tokens", rotary_case(0, 4, 8), (0,)),
]

# ---- attention ---------------------------------------------------------------------------------------------------


def expanded_case(*lengths: int, heads: int = 4, keys: int = 4, width: int = 24, value: int = 16) -> Make:
    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        tokens = sum(lengths)
        starts = (0, *torch.tensor(lengths, dtype=torch.long).cumsum(0).tolist())
        q, k = normal(tokens, heads, width, dtype=dtype), normal(tokens, keys, width, seed=1, dtype=dtype)
        v = normal(tokens, keys, value, seed=2, dtype=dtype)
        return q, k, v, starts, 0.3

    return make


EXPANDED = [
    Case("documents", expanded_case(9, 1, 14), (0, 1, 2)),
    Case("documents of several blocks", expanded_case(150, 9, 64, 65, heads=2, keys=2), (0, 1, 2)),
    Case("values as wide as keys", expanded_case(9, 5, value=24), (0, 1, 2)),
    Case("values wider than keys", expanded_case(9, 5, width=16, value=24), (0, 1, 2)),
    Case("grouped heads", expanded_case(12, 3, keys=2, value=24), (0, 1, 2)),
    Case("one head's keys for all", expanded_case(12, keys=1, value=24), (0, 1, 2)),
    Case("one token", expanded_case(1), (0, 1, 2)),
    Case("an empty document between", expanded_case(3, 0, 4), (0, 1, 2)),
    Case("no tokens", expanded_case(0)),
    Case("no documents", expanded_case()),
]


@dataclasses.dataclass(frozen=True)
class Paged:
    """Sequences over shuffled pages: (context, tokens of this pass) each. Pages of nobody are NaN; what a last page
    holds past its sequence is garbage, but finite, as the cache keeps it."""

    sequences: tuple[tuple[int, int], ...]
    page_size: int = 4
    ordered: bool = False

    def pages(self) -> list[list[int]]:
        needed = [-(-context // self.page_size) for context, _ in self.sequences]
        order = list(range(sum(needed) + 2))
        if not self.ordered:
            order = torch.randperm(len(order), generator=torch.Generator().manual_seed(3)).tolist()
        return [[order.pop(0) for _ in range(count)] for count in needed]

    def rows(self, width: int, dtype: torch.dtype) -> Tensor:
        tables = self.pages()
        rows = torch.full((sum(map(len, tables)) + 2, self.page_size, width), float("nan"), dtype=dtype)
        for seed, (table, (context, _)) in enumerate(zip(tables, self.sequences, strict=True)):
            rows[table] = 1000.0
            filled = normal(context, width, seed=10 + seed, dtype=dtype)
            for i, row in enumerate(filled):
                rows[table[i // self.page_size], i % self.page_size] = row
        return rows

    def places(self) -> tuple[Tensor, tuple[int, ...], tuple[int, ...]]:
        """page_tables, context_lens, starts."""
        tables = self.pages()
        longest = max(map(len, tables), default=0)
        padded = torch.tensor([[*table, *[0] * (longest - len(table))] for table in tables], dtype=torch.long)
        starts = [0]
        for _, tokens in self.sequences:
            starts.append(starts[-1] + tokens)
        return padded.view(len(tables), longest), tuple(context for context, _ in self.sequences), tuple(starts)

    @property
    def tokens(self) -> int:
        return sum(tokens for _, tokens in self.sequences)


PAGED = {
    "decode of one": Paged(((13, 1),)),
    "prefill from nothing": Paged(((9, 9),)),
    "pages side by side": Paged(((11, 3),), ordered=True),
    "ragged company": Paged(((13, 1), (5, 5), (17, 4), (1, 1))),
    "a sequence that rests": Paged(((6, 2), (9, 0), (0, 0), (3, 1))),
    "no sequences": Paged(()),
}


def absorbed_attention_case(paged: Paged, heads: int = 3, latent: int = 8, rope: int = 4) -> Make:
    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        q = normal(paged.tokens, heads, latent + rope, dtype=dtype)
        return q, paged.rows(latent + rope, dtype), *paged.places(), latent, 0.3

    return make


def packed_attention_case(paged: Paged, name: LatentBits, heads: int = 3, latent: int = 8, rope: int = 4) -> Make:
    """The same over packed latents; what no sequence owns holds other bytes."""

    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        plain = paged.rows(latent + rope, torch.float32)
        format = LatentFormat(name, latent, rope)
        pages = torch.full((plain.shape[0], paged.page_size * format.row_bytes), 0x5A, dtype=torch.uint8)
        packed = PackedLatents(pages, paged.page_size, format)
        packed.write(torch.arange(plain.shape[0] * paged.page_size), plain.flatten(0, 1))
        return normal(paged.tokens, heads, latent + rope, dtype=dtype), packed, *paged.places(), latent, 0.3

    return make


def absorbed_mla_case(paged: Paged, heads: int = 3, latent: int = 8, rope: int = 4) -> Make:
    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        q_nope, q_pe = (
            normal(paged.tokens, heads, 6, dtype=dtype),
            normal(paged.tokens, heads, rope, seed=1, dtype=dtype),
        )
        kv_b = normal(heads, 6 + 5, latent, seed=2, dtype=dtype)
        return q_nope, q_pe, kv_b, paged.rows(latent + rope, dtype), *paged.places(), 0.3

    return make


def expand_values_case(tokens: int, heads: int = 3, latent: int = 8, nope: int = 6, value: int = 5) -> Make:
    """The weight is the lower part of W^UKV, as the model passes it: not contiguous."""

    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        kv_b = normal(heads, nope + value, latent, seed=2, dtype=dtype)
        return normal(tokens, heads, latent, dtype=dtype), kv_b[:, nope:]

    return make


def paged_attention_case(paged: Paged, heads: int = 4, keys: int = 2, width: int = 6) -> Make:
    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        q = normal(paged.tokens, heads, width, dtype=dtype)
        return q, paged.rows(2 * keys * width, dtype), *paged.places(), 0.3

    return make


def over_pages(make: Callable[[Paged], Make], gradients: tuple[int, ...]) -> list[Case]:
    return [Case(name, make(paged), gradients if paged.tokens else ()) for name, paged in PAGED.items()]


# ---- experts -----------------------------------------------------------------------------------------------------


def route_case(tokens: int, groups: int, keep: int, normalise: bool, scale: float) -> Make:
    return lambda dtype: (normal(tokens, 8, dtype=dtype) * 2, 3, groups, keep, normalise, scale)


ROUTE = [
    Case("greedy", route_case(9, 1, 1, False, 1.0), (0,), WIDE),
    Case("groups, scaled", route_case(9, 4, 2, False, 16.0), (0,), WIDE),
    Case("normalised", route_case(9, 1, 1, True, 16.0), (0,), WIDE),
    Case("one token", route_case(1, 4, 2, False, 16.0), (0,), WIDE),
    Case("no tokens", route_case(0, 4, 2, False, 16.0), (0,), WIDE),
]


def grouped_case(*counts: int, dropped: int = 0) -> Make:
    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        x = normal(sum(counts) + dropped, 16, dtype=dtype)
        experts = len(counts)
        gate_up, down = (
            normal(experts, 48, 16, seed=1, dtype=dtype) / 4,
            normal(experts, 16, 24, seed=2, dtype=dtype) / 4,
        )
        return x, torch.tensor(counts), gate_up, down

    return make


GROUPED = [
    Case("ragged", grouped_case(3, 0, 7, 1), (0, 2, 3)),
    Case("dropped pairs", grouped_case(3, 0, 4, dropped=5), (0, 2, 3)),
    Case("one expert takes all", grouped_case(0, 0, 6), (0, 2, 3)),
    Case("everything dropped", grouped_case(0, 0, dropped=3), (0, 2, 3)),
    Case("no tokens", grouped_case(0, 0), (0, 2, 3)),
]


def routed_case(tokens: int, *, experts: int = 6, dropped: bool = False, used: int | None = None) -> Make:
    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        affinities = torch.rand(tokens, used or experts, generator=torch.Generator().manual_seed(0))
        ids = affinities.topk(3, dim=-1).indices
        if dropped:
            ids[::2, 1] = experts
        gates = torch.rand(tokens, 3, generator=torch.Generator().manual_seed(1)).to(wide(dtype))
        gate_up, down = (
            normal(experts, 48, 16, seed=1, dtype=dtype) / 4,
            normal(experts, 16, 24, seed=2, dtype=dtype) / 4,
        )
        return normal(tokens, 16, dtype=dtype), ids, gates, gate_up, down

    return make


ROUTED = [
    Case("tokens", routed_case(11), (0, 2, 3, 4)),
    Case("one token", routed_case(1), (0, 2, 3, 4)),
    Case("dropped pairs", routed_case(11, dropped=True), (0, 2, 3, 4)),
    Case("one token, a pair dropped", routed_case(1, dropped=True), (0, 2, 3, 4)),
    Case("experts without tokens", routed_case(5, used=3), (0, 2, 3, 4)),
    Case("no tokens", routed_case(0), (0, 2, 3, 4)),
]


def sorted_rows(dtype: torch.dtype, tokens: int = 5, width: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """rows_ND, gates_TK, order_N, place_TK of tokens with 3 experts each."""
    place = torch.randperm(3 * tokens, generator=torch.Generator().manual_seed(0))
    gates = normal(tokens, 3, seed=2, dtype=wide(dtype)).abs()
    return normal(3 * tokens, width, seed=1, dtype=dtype), gates, place.argsort(), place.view(tokens, 3)


def sum_slots_case(tokens: int, width: int) -> Make:
    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        rows, _, _, place = sorted_rows(dtype, tokens, width)
        return rows, place

    return make


def gated_sum_case(tokens: int, width: int) -> Make:
    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        rows, gates, _, place = sorted_rows(dtype, tokens, width)
        return rows, gates, place

    return make


def gated_sum_backward(dtype: torch.dtype) -> tuple[Any, ...]:
    return normal(5, 8, dtype=dtype), *sorted_rows(dtype)


SWIGLU = [
    Case("tokens", lambda dtype: (normal(7, 12, dtype=dtype),), (0,)),
    Case("one token", lambda dtype: (normal(1, 12, dtype=dtype),), (0,)),
    Case("no tokens", lambda dtype: (normal(0, 12, dtype=dtype),), (0,)),
    Case("far ends", lambda dtype: (normal(7, 12, dtype=dtype) * 60,), (0,)),
]

# ---- quantised ---------------------------------------------------------------------------------------------------


def quantised_case(tokens: int, bits: int, group: int) -> Make:
    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        codes, scales = quantise(normal(10, 128, seed=1, dtype=torch.float32), bits, group)
        return normal(tokens, 128, dtype=dtype), codes, scales.to(wide(dtype)), bits, group

    return make


QUANTISED = [
    Case(f"int{bits} in {group}s, {tokens} tokens", quantised_case(tokens, bits, group), (0,))
    for bits in (4, 8)
    for group in (32, 64)
    for tokens in (0, 1, 5)
]

# ---- loss and sampling -------------------------------------------------------------------------------------------


def nll_case(tokens: int) -> Make:
    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        targets = torch.randint(0, 11, (tokens,), generator=torch.Generator().manual_seed(1))
        scale = torch.rand(tokens, generator=torch.Generator().manual_seed(2)).to(wide(dtype))
        return normal(tokens, 11, dtype=dtype) * 3, targets, scale

    return make


def penalise_case(repetition: float, presence: float, frequency: float) -> Make:
    known, generated = torch.tensor([0, 3, 5]), torch.tensor([3, 5, 5, 5])
    return lambda dtype: (normal(11, dtype=dtype), known, generated, repetition, presence, frequency)


def distribution_case(temperature: float, top_k: int, top_p: float, min_p: float) -> Make:
    return lambda dtype: (normal(400, dtype=dtype) * 3, temperature, top_k, top_p, min_p)


def draw_case(uniform: float) -> Make:
    return lambda dtype: (normal(50, dtype=torch.float64).softmax(-1).to(dtype), uniform)


LATENT_BITS: tuple[LatentBits, ...] = ("int8", "6bit")
NONE = torch.zeros(0, dtype=torch.long)
ONLY_FLOAT32 = (torch.float32,)

CASES: dict[str, list[Case]] = {
    "rms_norm": [
        Case("tokens", norm_case(7, 32), (0, 1)),
        Case("one token", norm_case(1, 32), (0, 1)),
        Case("no tokens", norm_case(0, 32), (0, 1)),
        Case("zeros", norm_case(3, 32, scale=0.0), (1,)),
        Case("large", norm_case(3, 32, scale=1000.0), (0, 1)),
        Case("infinity", norm_case(3, 32, special=float("inf"))),
        Case("NaN", norm_case(3, 32, special=float("nan"))),
    ],
    "rotate_interleaved": ROTARY,
    "rotate_halves": ROTARY,
    "expanded_attention": EXPANDED,
    "absorbed_attention": [
        *over_pages(absorbed_attention_case, (0,)),
        *(
            Case(f"{name}, {each}", packed_attention_case(PAGED[each], name), (0,))
            for name in LATENT_BITS
            for each in ("decode of one", "ragged company")
        ),
    ],
    "absorbed_mla": over_pages(absorbed_mla_case, (0, 1, 2)),
    "expand_values": [
        Case("one token", expand_values_case(1), (0, 1)),
        Case("few tokens", expand_values_case(7), (0, 1)),
        Case("many tokens", expand_values_case(30), (0, 1)),
        Case("no tokens", expand_values_case(0), (0, 1)),
    ],
    "paged_attention": over_pages(paged_attention_case, (0,)),
    "route": ROUTE,
    "swiglu": SWIGLU,
    "swiglu_backward": [
        Case("tokens", lambda dtype: (normal(7, 12, dtype=dtype), normal(7, 6, seed=1, dtype=dtype))),
        Case("no tokens", lambda dtype: (normal(0, 12, dtype=dtype), normal(0, 6, dtype=dtype))),
    ],
    "sum_slots": [
        Case("few", sum_slots_case(5, 8), (0,)),
        Case("many", sum_slots_case(50, 128), (0,)),
        Case("no tokens", sum_slots_case(0, 8), (0,)),
    ],
    "gated_sum": [
        Case("few", gated_sum_case(5, 8), (0, 1)),
        Case("many", gated_sum_case(50, 128), (0, 1)),
        Case("no tokens", gated_sum_case(0, 8), (0, 1)),
    ],
    "gated_sum_backward": [Case("tokens", gated_sum_backward)],
    "grouped_ffn": GROUPED,
    "routed_experts": ROUTED,
    "quantised_linear": QUANTISED,
    "softmax_nll": [Case("tokens", nll_case(7)), Case("one token", nll_case(1)), Case("no tokens", nll_case(0))],
    "penalise": [
        Case("all", penalise_case(1.3, 0.5, 0.2), types=WIDE),
        Case("repetition", penalise_case(0.8, 0.0, 0.0), types=WIDE),
        Case("none", penalise_case(1.0, 0.0, 0.0), types=WIDE),
        Case("nothing known", lambda dtype: (normal(11, dtype=dtype), NONE, NONE, 1.3, 0.5, 0.2), types=WIDE),
    ],
    "distribution": [
        Case("temperature", distribution_case(0.7, 0, 1.0, 0.0), types=ONLY_FLOAT32),
        Case("top-k", distribution_case(1.0, 5, 1.0, 0.0), types=ONLY_FLOAT32),
        Case("top-p", distribution_case(1.0, 0, 0.9, 0.0), types=ONLY_FLOAT32),
        Case("min-p", distribution_case(1.0, 0, 1.0, 0.1), types=ONLY_FLOAT32),
        Case("cold", distribution_case(0.01, 50, 0.95, 0.05), types=ONLY_FLOAT32),
    ],
    "draw": [Case(str(uniform), draw_case(uniform), types=ONLY_FLOAT32) for uniform in (0.0, 0.37, 0.999999)],
}
