"""Shards and manifest out of the parts.

What a build writes (little-endian, the same bytes for the same recipe and input):

    <split>.bin       uint16 token ids (uint32 for over 65,536 tokens); documents one after the other, each begins with
                      BOS and ends with EOS
    <split>.idx.npy   int64, where each document starts, and the end: number of documents + 1 entries
    manifest.json     tokenizer, sources (licence, documents, tokens, bytes, sha256, what was left out and why), splits
                      (documents, tokens, bytes, tokens of each language)

`bytes` counts the UTF-8 bytes of the tokens that are not control tokens. Bits per byte on a split is therefore the sum
of -log2 p over every token but each document's BOS (EOS included), divided by `splits.<split>.bytes`.

The invariant: a file under its final name is whole.
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from leadline.tokenizer import Tokenizer
from leadline.train.corpus.language import LANGUAGES
from leadline.train.corpus.parts import (
    REASONS,
    Filter,
    Part,
    encode_source,
    fingerprint,
    load_part,
    save_array,
    save_part,
    save_text,
    sha256_of,
    token_type,
    tokenizer_file,
)
from leadline.train.corpus.read import source_files
from leadline.train.corpus.recipe import CorpusRecipe, SourceSpec, check_recipe

SPLITS = ("train", "valid")
FORMAT = "leadline-corpus-2"
WRITE_AT_ONCE = 4096  # documents
GOLDEN = 0x9E3779B97F4A7C15

Keys = npt.NDArray[np.uint64]


def build_corpus(recipe: CorpusRecipe, *, show_progress: bool = True) -> dict[str, Any]:
    """Build every split of the recipe into its output folder; the manifest."""
    check_recipe(recipe)
    output = recipe.locate(recipe.output)
    output.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_folder(tokenizer_file(recipe).parent)
    parts, marks = build_parts(recipe, tokenizer, output / "parts", show_progress)
    kind = token_type(tokenizer)
    splits = {split: write_split(output, split, split_order(split, recipe, parts), parts, kind) for split in SPLITS}
    manifest = {
        "format": FORMAT,
        "dtype": kind.str,
        "tokenizer": {"sha256": sha256_of([tokenizer_file(recipe)]), "vocab_size": tokenizer.vocab_size},
        "fingerprint": marks[-1],
        "sources": [describe(recipe, source, part) for source, part in zip(recipe.sources, parts, strict=True)],
        "splits": splits,
    }
    save_text(output / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return manifest


def build_parts(
    recipe: CorpusRecipe, tokenizer: Tokenizer, folder: Path, show_progress: bool
) -> tuple[list[Part], list[str]]:
    chosen, mark = Filter(recipe), ""
    parts, marks = [], []
    columns = (
        TextColumn("{task.description:20s}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not show_progress) as bar:
        for at, source in enumerate(recipe.sources):
            total = sum(path.stat().st_size for path in source_files(recipe, source))
            task = bar.add_task(source.name, total=total)
            mark = fingerprint(recipe, source, mark)
            where = folder / f"{at:03d}-{source.name}"
            part = load_part(where, mark)
            if part is None:
                save_part(where, mark, encode_source(source, tokenizer, chosen, partial(bar.advance, task)))
                part = load_part(where, mark)
                assert part is not None
            else:
                chosen.remember(part)
            bar.update(task, completed=total)
            parts.append(part)
            marks.append(mark)
    return parts, marks


def describe(recipe: CorpusRecipe, source: SourceSpec, part: Part) -> dict[str, Any]:
    return {
        "name": source.name,
        "licence": source.licence,
        "origin": source.origin or (source.path if source.path.startswith("hub:") else ""),
        "repeat": source.repeat,
        "documents": len(part.lengths),
        "tokens": int(part.lengths.sum()),
        "bytes": int(part.sizes.sum()),
        "left_out": dict(zip(REASONS, part.left_out.tolist(), strict=True)),
        "sha256": sha256_of(source_files(recipe, source)),
    }


# ---- the mix


def split_order(split: str, recipe: CorpusRecipe, parts: list[Part]) -> list[tuple[int, int]]:
    """(part, document) of every document of a split in the order of writing: by hash, which mixes sources."""
    kept = kept_shares(recipe, parts) if split == "train" else {}
    entries: list[tuple[int, int, int]] = []
    for at, (source, part) in enumerate(zip(recipe.sources, parts, strict=True)):
        for copy, chosen in enumerate(copies(source, part, split, kept)):
            salted = (part.keys[chosen] ^ np.uint64(copy * GOLDEN & (1 << 64) - 1)) >> np.uint64(10)
            entries += zip(salted.tolist(), [at] * len(chosen), chosen.tolist(), strict=True)
    return [(at, document) for _, at, document in sorted(entries)]


def copies(source: SourceSpec, part: Part, split: str, kept: dict[str, float]) -> list[npt.NDArray[np.int64]]:
    """The documents of each copy that a split holds: as often as the source repeats, the last copy a part of them, and
    of a language as many as the mix keeps. Held-out documents are there once, all of them."""
    documents = np.flatnonzero(part.valid == (split == "valid"))
    if split == "valid":
        return [documents]
    share = np.array([kept.get(language, 1.0 if not kept else 0.0) for language in LANGUAGES])
    documents = documents[_uniform(part.keys[documents], 1) < share[part.languages[documents]]]
    whole, rest = divmod(source.repeat, 1)
    last = documents[_uniform(part.keys[documents], 2) < rest]
    return [*[documents] * int(whole), last] if rest else [documents] * int(whole)


def _uniform(keys: Keys, stream: int) -> npt.NDArray[np.float64]:
    """A number from 0 up to 1 for each document, by its hash: the same whatever else is in the corpus."""
    mixed = (keys ^ np.uint64(stream)) * np.uint64(GOLDEN)
    return ((mixed ^ mixed >> np.uint64(32)) * np.uint64(GOLDEN) >> np.uint64(11)) / float(1 << 53)


def kept_shares(recipe: CorpusRecipe, parts: list[Part]) -> dict[str, float]:
    """Which share of each language's documents the mix keeps: all of the scarcest, relative to what is wanted of it."""
    if not recipe.mix:
        return {}
    there = dict.fromkeys(LANGUAGES, 0.0)
    for source, part in zip(recipe.sources, parts, strict=True):
        for at, language in enumerate(LANGUAGES):
            chosen = ~np.asarray(part.valid) & (part.languages == at)
            there[language] += source.repeat * float(part.lengths[chosen].sum())
    wanted = {language: share / there[language] for language, share in recipe.mix.items() if there[language]}
    return {language: value / max(wanted.values()) for language, value in wanted.items()}


# ---- writing


def write_split(
    output: Path, split: str, order: list[tuple[int, int]], parts: list[Part], kind: np.dtype[Any]
) -> dict[str, Any]:
    """Write one split's shard and index, each atomically; its numbers."""
    starts = [np.concatenate([[0], np.cumsum(part.lengths)]) for part in parts]
    lengths = np.array([parts[at].lengths[document] for at, document in order], dtype=np.int64)
    unfinished = output / f"{split}.bin.partial"
    digest = hashlib.sha256()
    with unfinished.open("wb") as file:
        for first in range(0, len(order), WRITE_AT_ONCE):
            group = order[first : first + WRITE_AT_ONCE]
            ids = np.concatenate([parts[at].ids[starts[at][doc] : starts[at][doc + 1]] for at, doc in group])
            block = ids.astype(kind).tobytes()
            digest.update(block)
            file.write(block)
    unfinished.replace(output / f"{split}.bin")
    save_array(output / f"{split}.idx.npy", np.concatenate([[0], np.cumsum(lengths)]).astype("<i8"))
    languages = np.array([parts[at].languages[document] for at, document in order], dtype=np.uint8)
    return {
        "documents": len(order),
        "tokens": int(lengths.sum()),
        "bytes": sum(int(parts[at].sizes[document]) for at, document in order),
        "languages": {name: int(lengths[languages == at].sum()) for at, name in enumerate(LANGUAGES)},
        "sha256": digest.hexdigest(),
    }
