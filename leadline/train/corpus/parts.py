"""Parts: one source read, cleaned, filtered and encoded, kept with a fingerprint of all that went into it.

A build that was killed goes on where it was, and a changed source, tokenizer, filter or earlier source makes its part
again.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from leadline.errors import DataError
from leadline.tokenizer import Tokenizer
from leadline.train.corpus.clean import clean_document
from leadline.train.corpus.duplicates import (
    HASHES,
    NearDuplicates,
    Signature,
    document_key,
    is_valid_split,
    signature,
)
from leadline.train.corpus.language import LANGUAGES, language_of
from leadline.train.corpus.overlap import EvaluationSets
from leadline.train.corpus.read import Document, read_documents, source_files, text_of
from leadline.train.corpus.recipe import CorpusRecipe, SourceSpec

FORMAT = "leadline-corpus-2"
REASONS = ("short", "odd", "repeated", "language", "duplicate", "near_duplicate", "evaluation")
"""Why a document is left out, in the order in which it is asked."""


@dataclass(frozen=True)
class Part:
    """One source, encoded: the ids of its documents end to end, and for each its length, bytes, split, hash, language
    (place in LANGUAGES) and signature (none unless near duplicates are looked for); how many were left out, by
    REASONS."""

    ids: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    valid: npt.NDArray[np.bool_]
    keys: npt.NDArray[np.uint64]
    languages: npt.NDArray[np.uint8]
    signatures: npt.NDArray[np.uint32]
    left_out: npt.NDArray[np.int64]


class Advance(Protocol):
    """Told how many more bytes of the source are read."""

    def __call__(self, size: int) -> None: ...


class Filter:
    """Which documents are kept: it remembers what it has seen, source after source."""

    def __init__(self, recipe: CorpusRecipe) -> None:
        self.recipe = recipe
        self.seen: set[int] = set()
        self.near = NearDuplicates(recipe.near_duplicates) if recipe.near_duplicates else None
        self.evaluation = EvaluationSets(evaluation_files(recipe), recipe.overlap_words)

    def remember(self, part: Part) -> None:
        """What an earlier build has kept."""
        self.seen.update(part.keys.tolist())
        if self.near is not None:
            for each in part.signatures:
                self.near.add(each)

    def fault(self, text: str, key: int, language: str, sign: Signature | None) -> str:
        """Why a clean document is left out, or nothing; what is kept is remembered."""
        if self.recipe.languages and language not in self.recipe.languages:
            return "language"
        if key in self.seen:
            return "duplicate"
        if self.near is not None and sign is not None and self.near.has(sign):
            return "near_duplicate"
        if self.evaluation.meets(text):
            return "evaluation"
        self.seen.add(key)
        if self.near is not None and sign is not None:
            self.near.add(sign)
        return ""


def evaluation_files(recipe: CorpusRecipe) -> list[Path]:
    """The files that `decontaminate` names, each by a path or a glob, sorted."""
    found: list[Path] = []
    for pattern in recipe.decontaminate:
        path = recipe.locate(pattern)
        matching = [path] if path.is_file() else sorted(p for p in path.parent.glob(path.name) if p.is_file())
        if path.is_dir():
            matching = sorted(p for p in path.rglob("*") if p.is_file())
        if not matching:
            raise DataError(f"decontaminate: no file at {path}")
        found += matching
    return found


def encode_document(tokenizer: Tokenizer, document: Document) -> list[int]:
    if isinstance(document, str):
        return [tokenizer.bos_id, *tokenizer.encode(document), tokenizer.eos_id]
    ids = list(tokenizer.render(document, add_generation_prompt=False))
    assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
    return ids


def token_type(tokenizer: Tokenizer) -> np.dtype[Any]:
    """Little-endian, the shortest that holds every id."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")


def token_sizes(tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
    """UTF-8 bytes of every token; 0 for the control tokens."""
    control = tokenizer.control_ids
    sizes = [0 if at in control else len(tokenizer.token_bytes(at)) for at in range(tokenizer.vocab_size)]
    return np.array(sizes, dtype=np.int64)


def encode_source(source: SourceSpec, tokenizer: Tokenizer, chosen: Filter, advance: Advance) -> Part:
    """Read, clean, filter and encode one source."""
    recipe, kind, sizes_of = chosen.recipe, token_type(tokenizer), token_sizes(tokenizer)
    ids: list[npt.NDArray[Any]] = []
    keys: list[int] = []
    languages: list[int] = []
    signatures: list[Signature] = []
    left_out: Counter[str] = Counter()
    for path in source_files(recipe, source):
        for document, size in read_documents(path, source):
            advance(size)
            cleaned, fault = clean_document(document, recipe, source)
            text, key = text_of(cleaned), document_key(cleaned)
            language = language_of(text)
            sign = signature(text) if recipe.near_duplicates else None
            if fault := fault or chosen.fault(text, key, language, sign):
                left_out[fault] += 1
                continue
            keys.append(key)
            languages.append(LANGUAGES.index(language))
            signatures += [sign] if sign is not None else []
            ids.append(np.array(encode_document(tokenizer, cleaned), dtype=kind))
    if not ids:
        reasons = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in sorted(left_out.items()))
        raise DataError(f"source {source.name}: no document is left after cleaning ({reasons or 'it has none'})")
    return Part(
        ids=np.concatenate(ids),
        lengths=np.array([len(document) for document in ids], dtype=np.int64),
        sizes=np.array([sizes_of[document].sum() for document in ids], dtype=np.int64),
        valid=np.array([is_valid_split(key, recipe.valid_permille) for key in keys], dtype=np.bool_),
        keys=np.array(keys, dtype=np.uint64),
        languages=np.array(languages, dtype=np.uint8),
        signatures=np.array(signatures, dtype=np.uint32).reshape(-1, HASHES),
        left_out=np.array([left_out[reason] for reason in REASONS], dtype=np.int64),
    )


# ---- kept on the disk


def sha256_of(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def fingerprint(recipe: CorpusRecipe, source: SourceSpec, previous: str) -> str:
    """All that a part depends on: format, filters, tokenizer, its files and, for duplicates, every source before."""
    filters = {
        name: value
        for name, value in asdict(recipe).items()
        if name not in ("tokenizer", "output", "sources", "decontaminate", "mix", "folder")
    }
    given = {
        "format": FORMAT, "previous": previous, **filters,
        "source": asdict(source) | {"path": "", "origin": "", "licence": "", "repeat": 1},
        "tokenizer": sha256_of([tokenizer_file(recipe)]), "files": sha256_of(source_files(recipe, source)),
        "evaluation": sha256_of(evaluation_files(recipe)),
    }  # fmt: skip
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()


def tokenizer_file(recipe: CorpusRecipe) -> Path:
    path = recipe.locate(recipe.tokenizer) / "tokenizer.json"
    if not path.is_file():
        raise DataError(f"{path}: no tokenizer there; train one first")
    return path


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write under a temporary name, then rename: a file under its own name is whole."""
    unfinished = path.with_name(path.name + ".partial")
    with unfinished.open("wb") as file:
        np.save(file, array)
    unfinished.replace(path)


def save_text(path: Path, text: str) -> None:
    unfinished = path.with_name(path.name + ".partial")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def save_part(folder: Path, mark: str, part: Part) -> None:
    """The arrays first, the mark last: a part without its mark was never finished."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mark").unlink(missing_ok=True)
    for name, array in vars(part).items():
        save_array(folder / f"{name}.npy", array)
    save_text(folder / "mark", mark)


def load_part(folder: Path, mark: str) -> Part | None:
    """The finished part with this fingerprint, memory-mapped, or None."""
    try:
        if (folder / "mark").read_text(encoding="utf-8") != mark:
            return None
        return Part(**{known.name: np.load(folder / f"{known.name}.npy", mmap_mode="r") for known in fields(Part)})
    except (OSError, ValueError):
        return None
