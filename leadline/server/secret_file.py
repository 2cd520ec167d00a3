"""The server's own secrets: made at its first start, in a file that only its user can read, outside the database.

A copy of the database is then worth no key, voucher or session: all it holds of them are digests under the pepper.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path

from leadline.errors import ConfigError


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Secrets:
    jwt: str
    pepper: str

    def digest(self, purpose: str, secret: str) -> str:
        """What the database keeps of a secret. The same text for another purpose has another digest."""
        return hmac.new(bytes.fromhex(self.pepper), f"{purpose}\0{secret}".encode(), hashlib.sha256).hexdigest()


def new_secrets() -> Secrets:
    return Secrets(jwt=secrets.token_hex(32), pepper=secrets.token_hex(32))


def load_secrets(path: Path) -> Secrets:
    """Read the file, or make it."""
    try:
        _create(path)
        return _read(path)
    except OSError as error:
        raise ConfigError(f"cannot use the secrets in {path}: {error.strerror or error}") from None


def _create(path: Path) -> None:
    """Written whole before it gets its name, so that two servers that start at once agree."""
    if path.exists():
        return
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            json.dump(dataclasses.asdict(new_secrets()), file)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def _read(path: Path) -> Secrets:
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"others can read the secrets in {path}: chmod 600 {path}")
    try:
        made = Secrets(**json.loads(path.read_text(encoding="ascii")))
        strong = all(len(bytes.fromhex(secret)) >= 32 for secret in (made.jwt, made.pepper))
    except (ValueError, TypeError):
        strong = False
    if not strong:
        raise ConfigError(f"{path} does not hold this server's secrets")
    return made
