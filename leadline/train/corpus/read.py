"""Documents out of files, one at a time: JSONL, text, Markdown, Parquet; a folder's, a glob's or a dataset's of the
hub.

A JSONL line or Parquet row has `text` (or the source's `field`) or `messages`; a line ends at "\\n" only, since texts
may hold U+2028. A text or Markdown source is one document a file. Nothing that was downloaded is ever run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leadline.errors import ConnectionFailed, DataError
from leadline.train.corpus.recipe import HUB, CorpusRecipe, SourceSpec

ROLES = ("system", "user", "assistant")
SUFFIXES = {"jsonl": (".jsonl",), "text": (".txt",), "markdown": (".md",), "parquet": (".parquet",)}
ROWS_AT_ONCE = 1024

Message = dict[str, str]
Document = str | list[Message]


def source_files(recipe: CorpusRecipe, source: SourceSpec) -> list[Path]:
    """The files of one source, sorted: a file, a folder's files of the format, a glob, or what the hub has."""
    if source.path.startswith(HUB):
        return _in_folder(download(source), source)
    where = recipe.locate(source.path)
    if where.is_file():
        return [where]
    if where.is_dir():
        return _in_folder(where, source)
    found = sorted(Path(recipe.folder).glob(source.path)) if not Path(source.path).is_absolute() else []
    if not found:
        raise DataError(f"source {source.name}: no {source.format} file at {where}")
    return found


def _in_folder(folder: Path, source: SourceSpec) -> list[Path]:
    suffixes = SUFFIXES[source.format]
    found = sorted(path for path in folder.rglob(source.files) if path.suffix in suffixes and path.is_file())
    if not found:
        raise DataError(f"source {source.name}: no {source.format} file at {folder}")
    return found


def download(source: SourceSpec) -> Path:
    """The dataset's files of the source's format in the hub's own cache; a second call finds them there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name = source.path.removeprefix(HUB)
    wanted = [f"{source.files}{suffix}" if source.files == "*" else source.files for suffix in SUFFIXES[source.format]]
    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=source.revision, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConnectionFailed(f"source {source.name}: cannot get {name} from the hub: {reason}") from None


def read_documents(path: Path, source: SourceSpec) -> Iterator[tuple[Document, int]]:
    """(document, bytes read) for each document of a file; what is broken is a DataError with file and line or row."""
    if source.format == "parquet":
        yield from _read_parquet(path, source)
        return
    if source.format != "jsonl":
        raw = path.read_bytes()
        yield decode(raw, str(path)), len(raw)
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _parse_line(line, source.field, f"{path}, line {number}"), len(line)


def _read_parquet(path: Path, source: SourceSpec) -> Iterator[tuple[Document, int]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
        columns = [name for name in ("messages", source.field) if name in file.schema_arrow.names]
        size, number = path.stat().st_size / max(1, file.metadata.num_rows), 0
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield _parse_record(row, source.field, f"{path}, row {number}"), int(size)
    except (ArrowException, OSError) as error:
        raise DataError(f"cannot read {path}: {str(error).splitlines()[0]}") from None


def decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8: {error.reason} at byte {error.start}") from error


def _parse_line(line: bytes, key: str, where: str) -> Document:
    try:
        record = json.loads(decode(line, where))
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: broken JSON: {error.msg}") from error
    return _parse_record(record, key, where)


def _parse_record(record: Any, key: str, where: str) -> Document:
    if isinstance(record, dict) and record.get("messages") is not None:
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


def text_of(document: Document) -> str:
    """What a reader sees of it."""
    return document if isinstance(document, str) else "\n".join(turn["content"] for turn in document)
