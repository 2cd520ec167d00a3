"""The corpus builder: source files with a licence in, token shards with a manifest out (tech report, section 3.1.1).

A recipe names the sources. Every document is normalised (Unicode NFC, white space), filtered (length, odd
characters), deduplicated exactly, assigned to `train` or `valid` by the hash of its text, and encoded. A document is a
text or a list of chat messages; a chat is rendered by the tokenizer, so its control tokens are ids and never text.

A JSONL line is an object with `text` (or the source's `field`) or `messages`; a line ends at "\\n" only, since texts
may hold U+2028. A text or Markdown source is one document a file.

What a build writes (little-endian, the same bytes for the same recipe and input):

    <split>.bin       uint16 token ids; documents one after the other, each begins with BOS and ends with EOS
    <split>.idx.npy   int64, where each document starts, and the end: number of documents + 1 entries
    manifest.json     tokenizer, sources (licence, documents, tokens, bytes, sha256), splits (documents, tokens, bytes)

`bytes` counts the UTF-8 bytes of the tokens that are not control tokens. Bits per byte on a split is therefore the sum
of -log2 p over every token but each document's BOS (EOS included), divided by `splits.<split>.bytes`.

The invariant: a file under its final name is whole. Each finished source is kept in `parts/` with a fingerprint of all
that went into it, so a build that was killed goes on where it was, and a changed source, tokenizer or earlier source
makes its part again.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from leadline.config import did_you_mean, read_toml
from leadline.errors import ConfigError, DataError
from leadline.tokenizer import Tokenizer

FORMAT = "leadline-corpus-1"
SPLITS = ("train", "valid")
FORMATS = ("jsonl", "text", "markdown")
ROLES = ("system", "user", "assistant")
LICENCES = re.compile(
    r"(CC0(-1\.0)?|CC-BY(-SA)?-[1-4]\.\d(-[A-Z]{2,3})?|public-domain|Apache-2\.0|MIT|BSD-[23]-Clause|PSF-2\.0|WordNet-3\.0)"
)
LONGEST_ODD = 0.3  # share of characters that are neither letters, digits, white space nor common punctuation
COMMON = frozenset(" \n.,;:!?'\"()-")
WRITE_AT_ONCE = 4096  # documents

Message = dict[str, str]
Document = str | list[Message]


@dataclass(frozen=True)
class SourceSpec:
    """One source: files of one format under one licence (several joined by " AND ")."""

    name: str
    path: str
    licence: str
    format: str = "jsonl"
    field: str = "text"
    origin: str = ""
    min_chars: int = 1
    repeat: int = 1


@dataclass(frozen=True)
class CorpusRecipe:
    """What to build. Relative paths are relative to `folder`."""

    tokenizer: str
    output: str
    sources: tuple[SourceSpec, ...]
    valid_permille: int = 10
    min_chars: int = 20
    folder: str = "."

    def locate(self, path: str) -> Path:
        return Path(self.folder) / path


@dataclass(frozen=True)
class Part:
    """One source, encoded: the ids of its documents end to end, and for each its length, bytes, split and hash."""

    ids: npt.NDArray[np.uint16]
    lengths: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    valid: npt.NDArray[np.bool_]
    keys: npt.NDArray[np.uint64]


Table = TypeVar("Table", SourceSpec, CorpusRecipe)


class Advance(Protocol):
    """Told how many more bytes of the source are read."""

    def __call__(self, size: int) -> None: ...


# ------------------------------------------------------------------------------------------------------------- recipe


def load_recipe(path: Path, *, folder: Path | None = None) -> CorpusRecipe:
    """Read a TOML recipe (top-level keys and `[[source]]` tables), its paths relative to `folder` or to its own."""
    table = read_toml(path)
    sources = tuple(_from_table(SourceSpec, source, f"{path}: [[source]]") for source in table.pop("source", []))
    recipe = _from_table(CorpusRecipe, table | {"sources": sources, "folder": str(folder or path.parent)}, str(path))
    check_recipe(recipe)
    return recipe


def _from_table(cls: type[Table], table: dict[str, Any], where: str) -> Table:
    """A frozen dataclass of strings and integers from a TOML table, every key known, none missing."""
    known = {entry.name: entry for entry in fields(cls)}
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{did_you_mean(key, known)}", param=key)
        kind = {"int": int, "str": str}.get(str(known[key].type))
        if kind is not None and type(value) is not kind:
            raise ConfigError(f"{where}: {key} must be {known[key].type}, got {value!r}", param=key)
    for key, entry in known.items():
        if key not in table and entry.default is MISSING:
            raise ConfigError(f"{where}: {key} is required", param=key)
    return cls(**table)


def check_recipe(recipe: CorpusRecipe) -> None:
    """Refuse a recipe without sources, with two sources of one name, or with a source whose licence is not allowed."""
    if not recipe.sources:
        raise ConfigError("the recipe names no [[source]]")
    if not 0 <= recipe.valid_permille < 1000:
        raise ConfigError(f"valid_permille is {recipe.valid_permille}, not between 0 and 999")
    names = [source.name for source in recipe.sources]
    for source in recipe.sources:
        if names.count(source.name) > 1 or not re.fullmatch(r"[\w-]+", source.name):
            raise ConfigError(f"source name {source.name!r} is used twice or is not one word")
        if source.format not in FORMATS:
            raise ConfigError(f"source {source.name}: format {source.format!r} is not one of {', '.join(FORMATS)}")
        check_licence(source)


def check_licence(source: SourceSpec) -> None:
    parts = source.licence.split(" AND ")
    if not all(LICENCES.fullmatch(part.strip()) for part in parts):
        stated = f"licence {source.licence!r} is not an allowed one" if source.licence else "no licence is stated"
        raise DataError(
            f"source {source.name}: {stated} (CC0, CC-BY, CC-BY-SA with version, public-domain, Apache-2.0, MIT, BSD)"
        )


# ------------------------------------------------------------------------------------------------------------ reading


def source_files(recipe: CorpusRecipe, source: SourceSpec) -> list[Path]:
    """The files of one source, sorted: a file, a folder's files of the format, or a glob."""
    suffixes = {"jsonl": (".jsonl",), "text": (".txt",), "markdown": (".md",)}[source.format]
    where = recipe.locate(source.path)
    if where.is_file():
        return [where]
    if where.is_dir():
        found = sorted(path for path in where.rglob("*") if path.suffix in suffixes and path.is_file())
    else:
        found = sorted(Path(recipe.folder).glob(source.path)) if not Path(source.path).is_absolute() else []
    if not found:
        raise DataError(f"source {source.name}: no {source.format} file at {where}")
    return found


def read_documents(path: Path, source: SourceSpec) -> Iterator[tuple[Document, int]]:
    """(document, bytes read) for each document of a file; a broken line is a DataError with file and line."""
    if source.format != "jsonl":
        raw = path.read_bytes()
        yield _decode(raw, str(path)), len(raw)
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _parse_line(line, source.field, f"{path}, line {number}"), len(line)


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8: {error.reason} at byte {error.start}") from error


def _parse_line(line: bytes, key: str, where: str) -> Document:
    try:
        record = json.loads(_decode(line, where))
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: broken JSON: {error.msg}") from error
    if isinstance(record, dict) and "messages" in record:
        return _checked_messages(record["messages"], where)
    if not isinstance(record, dict) or not isinstance(record.get(key), str):
        raise DataError(f'{where}: no text under "{key}" and no "messages"')
    return str(record[key])


def _checked_messages(messages: Any, where: str) -> list[Message]:
    well_formed = isinstance(messages, list) and all(
        isinstance(turn, dict) and turn.get("role") in ROLES and isinstance(turn.get("content"), str)
        for turn in messages
    )
    if not well_formed or not messages:
        raise DataError(
            f'{where}: "messages" must be a list of {{"role", "content"}} with the roles {", ".join(ROLES)}'
        )
    if messages[-1]["role"] != "assistant":
        raise DataError(f"{where}: the chat does not end with an answer of the assistant")
    return [{"role": turn["role"], "content": turn["content"]} for turn in messages]


# ----------------------------------------------------------------------------------------------------------- cleaning


def clean_text(text: str) -> str:
    """NFC, no control characters, single spaces, at most one empty line, nothing at the ends."""
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\u2028", "\n").replace("\u2029", "\n\n")
    text = "".join(ch for ch in text if ch == "\n" or ch == "\t" or unicodedata.category(ch) not in ("Cc", "Cf", "Co"))
    text = re.sub(r"[^\S\n]+", " ", text)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" ?\n ?", "\n", text)).strip()


def clean_markdown(text: str) -> str:
    """Markdown's marks and the licence pages of digitised books taken away; the words stay."""
    text = re.sub(r"(?s)^.*?\*\*\* ?START OF TH.*?\*\*\*|\*\*\* ?END OF TH.*$", "", text)
    text = re.sub(r"(?m)^(#+|>|[-*_]{3,}\s*$)\s*", "", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"(\*\*|__|(?<!\w)[*_](?=\w)|(?<=[\w.,!?])[*_](?!\w))", "", text)


def clean_document(document: Document, recipe: CorpusRecipe, source: SourceSpec) -> Document | None:
    """The document as it will be encoded, or None when it is too short or too odd."""
    if isinstance(document, list):
        turns = [{"role": turn["role"], "content": clean_text(turn["content"])} for turn in document]
        return turns if all(turn["content"] for turn in turns) else None
    text = clean_text(clean_markdown(document) if source.format == "markdown" else document)
    odd = sum(not (ch.isalnum() or ch in COMMON) for ch in text)
    if len(text) < max(recipe.min_chars, source.min_chars) or odd > LONGEST_ODD * len(text):
        return None
    return text


def document_key(document: Document) -> int:
    """64 bits that stand for the document: equal documents are one, and the split and the order are read off it."""
    canonical = document if isinstance(document, str) else json.dumps(document, ensure_ascii=False, sort_keys=True)
    return int.from_bytes(hashlib.blake2b(canonical.encode(), digest_size=8).digest(), "little")


def is_valid_split(key: int, permille: int) -> bool:
    """Held out or not: by hash, so that a document keeps its side when others come or go."""
    return key % 1000 < permille


# ----------------------------------------------------------------------------------------------------------- encoding


def encode_document(tokenizer: Tokenizer, document: Document) -> list[int]:
    if isinstance(document, str):
        return [tokenizer.bos_id, *tokenizer.encode(document), tokenizer.eos_id]
    ids = list(tokenizer.render(document, add_generation_prompt=False))
    assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
    return ids


def token_sizes(tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
    """UTF-8 bytes of every token; 0 for the control tokens."""
    control = tokenizer.control_ids
    sizes = [0 if at in control else len(tokenizer.token_bytes(at)) for at in range(tokenizer.vocab_size)]
    return np.array(sizes, dtype=np.int64)


def encode_source(
    recipe: CorpusRecipe, source: SourceSpec, tokenizer: Tokenizer, seen: set[int], advance: Advance
) -> Part:
    """Read, clean, deduplicate (against `seen`, which grows) and encode one source."""
    sizes_of = token_sizes(tokenizer)
    ids: list[npt.NDArray[np.uint16]] = []
    keys: list[int] = []
    for path in source_files(recipe, source):
        for document, size in read_documents(path, source):
            advance(size)
            cleaned = clean_document(document, recipe, source)
            if cleaned is None or (key := document_key(cleaned)) in seen:
                continue
            seen.add(key)
            keys.append(key)
            ids.append(np.array(encode_document(tokenizer, cleaned), dtype=np.uint16))
    if not ids:
        raise DataError(f"source {source.name}: no document is left after cleaning")
    return Part(
        ids=np.concatenate(ids),
        lengths=np.array([len(document) for document in ids], dtype=np.int64),
        sizes=np.array([sizes_of[document].sum() for document in ids], dtype=np.int64),
        valid=np.array([is_valid_split(key, recipe.valid_permille) for key in keys], dtype=np.bool_),
        keys=np.array(keys, dtype=np.uint64),
    )


# -------------------------------------------------------------------------------------------------------------- parts


def sha256_of(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def fingerprint(recipe: CorpusRecipe, source: SourceSpec, previous: str) -> str:
    """All that a part depends on: format, limits, tokenizer, its files and, for duplicates, every source before."""
    given = {
        "format": FORMAT, "previous": previous,
        "source": asdict(source) | {"path": "", "origin": "", "licence": "", "repeat": 1},
        "valid_permille": recipe.valid_permille, "min_chars": recipe.min_chars,
        "tokenizer": sha256_of([tokenizer_file(recipe)]), "files": sha256_of(source_files(recipe, source)),
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


# -------------------------------------------------------------------------------------------------------------- build


def build_corpus(recipe: CorpusRecipe, *, show_progress: bool = True) -> dict[str, Any]:
    """Build every split of the recipe into its output folder; the manifest."""
    check_recipe(recipe)
    output = recipe.locate(recipe.output)
    output.mkdir(parents=True, exist_ok=True)
    parts, marks = build_parts(recipe, output / "parts", show_progress)
    splits = {split: write_split(output, split, recipe, parts) for split in SPLITS}
    manifest = {
        "format": FORMAT,
        "tokenizer": {"sha256": sha256_of([tokenizer_file(recipe)]), "vocab_size": load_tokenizer(recipe).vocab_size},
        "fingerprint": marks[-1],
        "sources": [describe(recipe, source, part) for source, part in zip(recipe.sources, parts, strict=True)],
        "splits": splits,
    }
    save_text(output / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return manifest


def load_tokenizer(recipe: CorpusRecipe) -> Tokenizer:
    tokenizer = Tokenizer.from_folder(tokenizer_file(recipe).parent)
    if tokenizer.vocab_size > 1 << 16:
        raise DataError(f"the tokenizer has {tokenizer.vocab_size:,} tokens; a shard of 16-bit ids holds 65,536")
    return tokenizer


def build_parts(recipe: CorpusRecipe, folder: Path, show_progress: bool) -> tuple[list[Part], list[str]]:
    tokenizer, seen, mark = load_tokenizer(recipe), set[int](), ""
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
            if load_part(where, mark) is None:
                save_part(where, mark, encode_source(recipe, source, tokenizer, seen, partial(bar.advance, task)))
            bar.update(task, completed=total)
            part = load_part(where, mark)
            assert part is not None
            seen.update(part.keys.tolist())
            parts.append(part)
            marks.append(mark)
    return parts, marks


def describe(recipe: CorpusRecipe, source: SourceSpec, part: Part) -> dict[str, Any]:
    return {
        "name": source.name,
        "licence": source.licence,
        "origin": source.origin,
        "repeat": source.repeat,
        "documents": len(part.lengths),
        "tokens": int(part.lengths.sum()),
        "bytes": int(part.sizes.sum()),
        "sha256": sha256_of(source_files(recipe, source)),
    }


def split_order(split: str, recipe: CorpusRecipe, parts: list[Part]) -> list[tuple[int, int]]:
    """(part, document) of every document of a split in the order of writing: by hash, which mixes sources."""
    entries: list[tuple[int, int, int]] = []
    for at, (source, part) in enumerate(zip(recipe.sources, parts, strict=True)):
        chosen = np.flatnonzero(part.valid == (split == "valid"))
        for copy in range(source.repeat if split == "train" else 1):
            salted = (part.keys[chosen] ^ np.uint64(copy * 0x9E3779B97F4A7C15 & (1 << 64) - 1)) >> np.uint64(10)
            entries += zip(salted.tolist(), [at] * len(chosen), chosen.tolist(), strict=True)
    return [(at, document) for _, at, document in sorted(entries)]


def write_split(output: Path, split: str, recipe: CorpusRecipe, parts: list[Part]) -> dict[str, Any]:
    """Write one split's shard and index, each atomically; its numbers."""
    order = split_order(split, recipe, parts)
    starts = [np.concatenate([[0], np.cumsum(part.lengths)]) for part in parts]
    lengths = np.array([parts[at].lengths[document] for at, document in order], dtype=np.int64)
    unfinished = output / f"{split}.bin.partial"
    digest = hashlib.sha256()
    with unfinished.open("wb") as file:
        for first in range(0, len(order), WRITE_AT_ONCE):
            group = order[first : first + WRITE_AT_ONCE]
            ids = np.concatenate([parts[at].ids[starts[at][doc] : starts[at][doc + 1]] for at, doc in group])
            block = ids.astype("<u2").tobytes()
            digest.update(block)
            file.write(block)
    unfinished.replace(output / f"{split}.bin")
    save_array(output / f"{split}.idx.npy", np.concatenate([[0], np.cumsum(lengths)]).astype("<i8"))
    size = sum(int(parts[at].sizes[document]) for at, document in order)
    return {"documents": len(order), "tokens": int(lengths.sum()), "bytes": size, "sha256": digest.hexdigest()}
