"""Proving who one is: passwords, the tokens of sessions, API keys.

Passwords are argon2id. A token is a JWT of one pinned algorithm that names a session of one purpose; whether it still
holds is for the session's row to say, so that signing out or a new password ends it at once. A key is 160 random bits
and a checksum that catches a typing error before the database is asked. Of keys and links the database has digests.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
import secrets
import zlib
from typing import Any

import jwt
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from leadline.errors import AuthenticationError, InvalidRequest

MIN_PASSWORD, MAX_PASSWORD = 8, 256
HASHERS = 2  # at the same time: each takes a core and 19 MiB

ALGORITHM = "HS256"
AUDIENCE = "leadline"
LEEWAY_SECONDS = 60  # a clock that is set back a little must not make what was just issued come from the future
_CLAIMS = ("sub", "sid", "use", "aud", "iat", "nbf", "exp")

KEY = re.compile(r"sk-[0-9a-f]{48}")

# The first guesses of every list; a length of eight alone lets them through.
_GUESSED = frozenset(
    "password password1 password123 passw0rd 12345678 123456789 1234567890 11111111 00000000 87654321 qwertyui "
    "qwerty123 qwertyuiop 1q2w3e4r abcd1234 abc12345 iloveyou sunshine princess football baseball letmein1 welcome1 "
    "administrator changeme trustno1 superman starwars deepseek leadline woaini1314 a1b2c3d4 88888888 66666666".split()
)


class Passwords:
    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        # The cost that OWASP names as the least for argon2id: 19 MiB, two passes, one lane.
        self.hasher = hasher or PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
        self._gate = asyncio.Semaphore(HASHERS)
        self._nobody: str | None = None

    async def hash(self, password: str) -> str:
        async with self._gate:
            return await asyncio.to_thread(self.hasher.hash, password)

    async def verify(self, stored: str, password: str) -> bool:
        """An unknown user's `stored` is empty, and takes as long."""
        if not stored:
            self._nobody = self._nobody or await self.hash(secrets.token_hex(16))
        async with self._gate:
            return await asyncio.to_thread(self._verify, stored or self._nobody or "", password) and bool(stored)

    def is_old(self, stored: str) -> bool:
        return self.hasher.check_needs_rehash(stored)

    def _verify(self, stored: str, password: str) -> bool:
        try:
            return self.hasher.verify(stored, password)
        except (VerificationError, InvalidHashError):
            return False


def check_password(password: str, email: str = "") -> None:
    """Long enough, and not what is tried first."""
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        text = f"a password has {MIN_PASSWORD} to {MAX_PASSWORD} characters"
        raise InvalidRequest(text, param="password", code="password_length")
    guess = password.lower()
    if guess in _GUESSED or (email and guess in (email.lower(), email.lower().partition("@")[0])):
        text = "this password is among the first that are guessed; choose another"
        raise InvalidRequest(text, param="password", code="password_guessable")


@dataclasses.dataclass(frozen=True, slots=True)
class Claims:
    user_id: int
    session_id: str
    purpose: str


def issue_token(secret: str, claims: Claims, *, now: int, expires: int) -> str:
    payload = {
        "sub": str(claims.user_id),
        "sid": claims.session_id,
        "use": claims.purpose,
        "aud": AUDIENCE,
        "iat": now,
        "nbf": now,
        "exp": expires,
    }
    return jwt.encode(payload, bytes.fromhex(secret), algorithm=ALGORITHM)


def read_token(secret: str, token: str, purpose: str) -> Claims:
    """The claims of a token that is ours, in time and made for `purpose`."""
    try:
        payload: dict[str, Any] = jwt.decode(
            token,
            bytes.fromhex(secret),
            algorithms=[ALGORITHM],
            audience=AUDIENCE,
            leeway=LEEWAY_SECONDS,  # `exp` gets it too, but the session's row has the last word on that
            options={"require": list(_CLAIMS)},
        )
        claims = Claims(int(payload["sub"]), str(payload["sid"]), str(payload["use"]))
    except (jwt.InvalidTokenError, ValueError):
        raise AuthenticationError("the token is invalid or has expired; sign in again") from None
    if claims.purpose != purpose:
        raise AuthenticationError("this token is for something else")
    return claims


def new_key() -> str:
    body = secrets.token_hex(20)
    return f"sk-{body}{_checksum(body)}"


def is_key(text: str) -> bool:
    """Whether it was made by `new_key`, typing errors apart."""
    return KEY.fullmatch(text) is not None and text[-8:] == _checksum(text[3:-8])


def masked(secret: str) -> str:
    """As much of a wrong key as may be repeated."""
    return f"****{secret[-4:]}" if len(secret) >= 12 and secret.isascii() and secret.isprintable() else "****"


def bearer(header: str | None) -> str:
    """The secret of an Authorization header."""
    scheme, _, secret = (header or "").strip().partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not secret:
        raise AuthenticationError("Authentication Fails (auth header format should be Bearer sk-...)")
    return secret


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode('ascii')):08x}"
