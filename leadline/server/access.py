"""The seam between answering and accounts: who asks, and what a running answer is paid with.

Without accounts everyone is `NOBODY` and everything is free; with them `leadline.server.platform` takes this place. The
handlers are the same: they admit, the run opens its meter before the engine works and closes it however it ends.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Literal, Protocol

from fastapi import Request

from leadline.engine.types import Usage
from leadline.errors import PermissionDenied

Outcome = Literal["finished", "balance", "aborted", "failed", "swept"]


@dataclasses.dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. None for a limit or a list is: no limit of its own."""

    user_id: int | None = None
    key_id: int | None = None
    session_id: str | None = None
    admin: bool = False
    models: tuple[str, ...] | None = None
    control_tokens: bool = True
    requests_per_minute: int | None = None
    concurrency: int | None = None

    @property
    def owner(self) -> int:
        """The account: where there are any, whoever asks has one."""
        assert self.user_id is not None
        return self.user_id

    def check_model(self, model: str, alias: str | None = None) -> None:
        """The key's list may have the model's name, or the alias by which it was asked for."""
        if self.models is not None and not {model, alias} & {*self.models}:
            raise PermissionDenied(f"this key may not use the model {model!r}", param="model")

    def check_control_tokens(self) -> None:
        if not self.control_tokens:
            raise PermissionDenied("this key may not put control tokens into prompts", param="prompt")

    def check_grammars(self) -> None:
        """Grammars in the compiler's own language are for who is trusted with control tokens: other servers."""
        if not self.control_tokens:
            raise PermissionDenied("this key may not bring grammars of its own", param="structured_outputs")

    def cache_salt(self, divider: str | None) -> bytes:
        """Unlike accounts share no cached prefix, and `divider` only divides an account's own further."""
        owner = b"" if self.user_id is None else b"account %d\0" % self.user_id
        if divider is None:
            return hashlib.sha256(owner).digest() if owner else b""
        return hashlib.sha256(owner + divider.encode()).digest()


NOBODY = Principal()


class Meter(Protocol):
    async def open(self) -> None:
        """Raises `InsufficientBalance` or `RateLimited` before anything runs."""
        ...

    async def cover(self, completion_tokens: int) -> bool:
        """Whether so many tokens of output may be delivered."""
        ...

    def delivered(self, usage: Usage) -> None: ...

    async def close(self, outcome: Outcome) -> None:
        """Bill what was delivered; also when `open` failed or was cancelled, and once however often it is called."""
        ...


class Access(Protocol):
    async def admit(self, request: Request) -> Principal:
        """Raises `AuthenticationError` or `RateLimited`."""
        ...

    def meter(self, principal: Principal, request_id: str, prompt_tokens: int, most: int) -> Meter:
        """For a request whose answers have `most` tokens together, at most."""
        ...


class FreeMeter:
    async def open(self) -> None:
        pass

    async def cover(self, completion_tokens: int) -> bool:
        return True

    def delivered(self, usage: Usage) -> None:
        pass

    async def close(self, outcome: Outcome) -> None:
        pass


class OpenAccess:
    """No accounts: everyone on this machine, for nothing."""

    async def admit(self, request: Request) -> Principal:
        return NOBODY

    def meter(self, principal: Principal, request_id: str, prompt_tokens: int, most: int) -> Meter:
        return FreeMeter()
