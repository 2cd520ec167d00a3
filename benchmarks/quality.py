"""What fewer bits cost: KL divergence from the original and agreement, of quantised weights and of packed latents.

    python benchmarks/quality.py --text HELD-OUT.txt --calibrate OTHER.txt [--model DIR] [--tokens 51200]

The original is computed in float32 over a float32 cache; every variant runs over the same text through pages, in the
very form in which it is served: on the kernels, with their quantised activations, where those are built, as
`leadline quantize --calibrate` makes it. Beside it attention at V2-Lite's width over random latents: the error of its
output by the format of the cache.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from machine import describe
from torch import Tensor

from leadline.checkpoint.load import load_model
from leadline.checkpoint.pack import active_bits
from leadline.checkpoint.quality import Quality, sequences_of
from leadline.checkpoint.quantise import Options, quantise_folder
from leadline.checkpoint.quantised import load_block
from leadline.checkpoint.recipes import RECIPES, Recipe, check_recipe
from leadline.checkpoint.regions import regions
from leadline.engine.bind import from_regions
from leadline.model.batch import ForwardBatch
from leadline.model.cache import PAGE_SIZE, PagedCache, latent_format
from leadline.model.config import V2_LITE, ModelConfig
from leadline.model.cpu import CpuModel
from leadline.model.packed import pack_model
from leadline.ops.attention import absorbed_attention
from leadline.ops.cpu import native

FORMATS = ("bfloat16", "int8", "6bit")
CONTEXT = 2048

TEMPLATE = """\
# What fewer bits cost

{name}, {parameters:,} parameters, {tokens:,} held-out tokens; the original in float32. KL in nats a token.

{cpu}; torch {torch}, leadline {leadline}, kernels: {kernels}.

| weights | cache | bits a weight read | the same, V2-Lite | bits a latent element | KL | same likeliest token |
|---|---|---:|---:|---:|---:|---:|
{rows}

Attention at V2-Lite's width, {context:,} random latents, 16 heads: the error of the output, relative to it.

| cache | bits an element | bytes a token, V2-Lite | error |
|---|---:|---:|---:|
{widths}

`python benchmarks/quality.py --text FILE --calibrate FILE` makes these tables.
"""


@dataclasses.dataclass(frozen=True)
class Variant:
    weights: str
    cache: str
    bits: float
    lite_bits: float
    latent_bits: float
    quality: Quality


def logits(model: Any, cache: PagedCache, sequences: list[list[int]]) -> Iterator[Tensor]:
    """(T, V) of each sequence, float32."""
    for ids in sequences:
        pages = list(range(-(-len(ids) // PAGE_SIZE)))
        batch = ForwardBatch.paged(cache, [0], [len(ids)], [pages])
        yield model(torch.tensor(ids), batch).logits.float()


@dataclasses.dataclass(frozen=True)
class Original:
    """Of one sequence: logits (T, V), their softmax, and the logarithm of its denominator."""

    logits_TV: Tensor
    p_TV: Tensor
    log_sum_T: Tensor

    @staticmethod
    def of(logits_TV: Tensor) -> Original:
        return Original(logits_TV.clone(), logits_TV.softmax(-1), logits_TV.logsumexp(-1))


def quality(originals: list[Original], changed: Iterator[Tensor]) -> Quality:
    """KL = sum p (l - l') + ln sum exp l' - ln sum exp l: one exponential a logit, and the original's only once."""
    kl, same, tokens = 0.0, 0, 0
    for original, q_TV in zip(originals, changed, strict=True):
        likeliest_T = q_TV.argmax(-1)
        expected_T = torch.linalg.vecdot(original.p_TV, original.logits_TV - q_TV)
        kl += float((expected_T + q_TV.logsumexp(-1) - original.log_sum_T).sum(dtype=torch.float64))
        same += int((original.logits_TV.argmax(-1) == likeliest_T).sum())
        tokens += len(q_TV)
    return Quality(kl / tokens, same / tokens, tokens)


def make_cache(config: ModelConfig, kind: str, length: int) -> PagedCache:
    format = latent_format(config, kind)
    dtype = torch.float32 if format is not None else getattr(torch, kind)
    return PagedCache(config, -(-length // PAGE_SIZE), dtype=dtype, format=format)


def latent_bits(config: ModelConfig, kind: str) -> float:
    return config.cache_bytes_per_token(kind) * 8 / config.num_hidden_layers / config.cache_row


def variants(folder: Path, calibration: str, sequences: list[list[int]]) -> Iterator[Variant]:
    """In chunks of sequences, so that the original's logits need not all be held."""
    loaded = load_model(folder, dtype="float32", device="cpu")
    config, length = loaded.config, max(map(len, sequences))
    exact: Any = loaded.model
    if native.choose() is not None:
        exact = CpuModel(config, pack_model(loaded.model), dtype=torch.float32)
    models: list[tuple[str, str, float, float, Any]] = [("exact", kind, 16.0, 16.0, exact) for kind in FORMATS]
    for recipe in map(check_recipe, RECIPES):
        bits, lite = (active_bits(regions(shape, recipe), shape) for shape in (config, V2_LITE))
        models.append((recipe, "bfloat16", bits, lite, quantised(folder, recipe, calibration)))
    sums: dict[int, list[Quality]] = {}
    for start in range(0, len(sequences), 8):
        part = sequences[start : start + 8]
        original = [Original.of(each) for each in logits(exact, make_cache(config, "float32", length), part)]
        for number, (_, kind, _, _, model) in enumerate(models):
            cache = make_cache(config, kind, length)
            sums.setdefault(number, []).append(quality(original, logits(model, cache, part)))
        print(f"{start + len(part)} of {len(sequences)}", file=sys.stderr, flush=True)
    for number, (name, kind, bits, lite, _) in enumerate(models):
        yield Variant(name, kind, bits, lite, latent_bits(config, kind), total(sums[number]))


def quantised(folder: Path, recipe: Recipe, calibration: str) -> Any:
    """As `leadline quantize` writes it and the engine runs it."""
    with tempfile.TemporaryDirectory() as room:
        made = Path(room) / recipe
        quantise_folder(folder, made, Options(recipe, calibration=calibration, check=False, progress=True))
        if native.choose() is None:
            return load_model(made, dtype="float32", device="cpu").model
        config = ModelConfig.from_folder(made)
        return CpuModel(config, from_regions(load_block(made, config, "copy")[0]), dtype=torch.bfloat16)


def total(parts: list[Quality]) -> Quality:
    tokens = sum(part.tokens for part in parts)
    kl = sum(part.kl * part.tokens for part in parts) / tokens
    return Quality(kl, sum(part.agreement * part.tokens for part in parts) / tokens, tokens)


def attention_error(kind: str, rounds: int = 5) -> float:
    """Normed latents and roped keys as V2-Lite has them, queries that give scores of a few units."""
    config = dataclasses.replace(V2_LITE, num_hidden_layers=1)
    errors = []
    for seed in range(rounds):
        generator = torch.Generator().manual_seed(seed)
        latent = torch.randn(CONTEXT, 512, generator=generator) * (0.5 + torch.rand(512, generator=generator))
        rows = latent, torch.randn(CONTEXT, 64, generator=generator) * 4
        q = torch.randn(4, 16, 576, generator=generator)
        outputs = []
        for each in ("float32", kind):
            cache = make_cache(config, each, CONTEXT)
            cache.write(0, torch.arange(CONTEXT), *rows)
            table = torch.arange(CONTEXT // PAGE_SIZE)[None]
            out = absorbed_attention(q, cache.layer(0), table, [CONTEXT], [0, 4], 512, config.softmax_scale)
            outputs.append(out.float())
        errors.append(float((outputs[1] - outputs[0]).norm() / outputs[0].norm()))
    return statistics.median(errors)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--calibrate", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tokens", type=int, default=51200)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "quality.md")
    options = parser.parse_args()
    loaded = load_model(options.model, dtype="float32", device="cpu")
    sequences = sequences_of(loaded.tokenizer, options.text.read_text(encoding="utf-8"), options.tokens)
    found = list(variants(loaded.folder, options.calibrate.read_text(encoding="utf-8"), sequences))
    rows = [
        f"| {v.weights} | {v.cache} | {v.bits:.2f} | {v.lite_bits:.2f} | {v.latent_bits:.2f} | {v.quality.kl:.5f} "
        f"| {v.quality.agreement:.2%} |"
        for v in found
    ]
    widths = [
        f"| {kind} | {latent_bits(V2_LITE, kind):.2f} | {V2_LITE.cache_bytes_per_token(kind):,} "
        f"| {attention_error(kind):.2%} |"
        for kind in FORMATS
    ]
    text = TEMPLATE.format(
        **describe(),
        name=loaded.name,
        parameters=loaded.config.parameters(),
        tokens=found[0].quality.tokens,
        context=CONTEXT,
        rows="\n".join(rows),
        widths="\n".join(widths),
        kernels=native.choose() or "none",
    )
    options.output.write_text(text, encoding="utf-8")
    options.output.with_suffix(".json").write_text(
        json.dumps([dataclasses.asdict(each) for each in found], indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
