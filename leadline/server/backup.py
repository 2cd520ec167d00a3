"""Backup and restore: one file with the database and the secrets, each as of one moment.

SQLite's own backup copies the database while a server writes to it. The file is a tar archive that only its owner can
read: with it someone is you. A restore never writes over an installation; it is checked before it gets its name.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tarfile
import tempfile
from pathlib import Path

from leadline.errors import ConfigError
from leadline.server.secret_file import load_secrets

DATABASE, SECRETS = "leadline.db", "secrets.json"


def backup(folder: Path, target: Path) -> int:
    """Write `target`; its bytes."""
    if not (folder / DATABASE).is_file():
        raise ConfigError(f"there is no installation in {folder}: {DATABASE} is missing")
    if target.exists():
        raise ConfigError(f"{target} is there already")
    draft = target.with_name(f"{target.name}.part")
    try:
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            copy = Path(work, DATABASE)
            _copy(folder / DATABASE, copy)
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w") as archive:
                archive.add(copy, DATABASE)
                archive.add(folder / SECRETS, SECRETS)
        draft.replace(target)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ConfigError(f"cannot write {target}: {error.strerror or error}") from None
    return target.stat().st_size


def restore(source: Path, folder: Path) -> None:
    """Make the installation in `folder`, where there must be none."""
    for name in (DATABASE, SECRETS):
        if (folder / name).exists():
            raise ConfigError(f"{folder} has an installation; restore into another folder, or move {name} away")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            _unpack(source, Path(work))
            load_secrets(Path(work, SECRETS))
            _check(Path(work, DATABASE), source)
            for name in (SECRETS, DATABASE):
                Path(work, name).replace(folder / name)
    except OSError as error:
        raise ConfigError(f"cannot restore {source}: {error.strerror or error}") from None


def _copy(source: Path, target: Path) -> None:
    with contextlib.closing(sqlite3.connect(source)) as old, contextlib.closing(sqlite3.connect(target)) as new:
        old.backup(new)


def _unpack(source: Path, folder: Path) -> None:
    """The two members by name and content; what else an archive says of them is not followed."""
    try:
        with tarfile.open(source) as archive:
            for name in (DATABASE, SECRETS):
                file = archive.extractfile(name)
                if file is None:
                    raise KeyError(name)
                descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "wb") as out:
                    while block := file.read(1 << 20):
                        out.write(block)
    except (tarfile.TarError, KeyError):
        raise ConfigError(f"{source} is no backup of leadline") from None


def _check(database: Path, source: Path) -> None:
    try:
        with contextlib.closing(sqlite3.connect(database)) as connection:
            (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
            connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.DatabaseError as error:
        raise ConfigError(f"the database in {source} is damaged: {error}") from None
    if verdict != "ok":
        raise ConfigError(f"the database in {source} is damaged: {verdict}")
