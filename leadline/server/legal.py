"""What users agree to and what a model's authors ask: the terms, in versions, and a licence record for each model.

Both are the operator's to edit. What is here are beginnings: terms (terms.md) that pass on the use restrictions of
DeepSeek's model licence, as that licence asks of whoever offers its models, and the records of models known by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Row, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from leadline.errors import InvalidRequest, TermsNotAccepted
from leadline.server.db import licences, terms, users

MOST_TEXT = 100_000

DEEPSEEK_LICENCE = "https://github.com/deepseek-ai/DeepSeek-V2/blob/main/LICENSE-MODEL"

# Attachment A of DeepSeek's model licence in our words; its own decide.
DEEPSEEK_RESTRICTIONS = (
    "nothing that breaks a law that applies, or that violates the rights of others",
    "no military use of any kind",
    "nothing that exploits or harms minors, or is meant to",
    "no content that is verifiably false and made to harm others",
    "no content that the applicable rules call inappropriate",
    "no personal data without permission, or for an unreasonable use",
    "nothing that defames, disparages or harasses others",
    "no fully automated decisions that harm someone's legal rights or create or change a binding obligation",
    "nothing that discriminates against or harms people for their behaviour or a known or predicted personality",
    "nothing that uses a group's weaknesses of age, body, mind or social place to change in a harmful way what they do",
    "nothing that discriminates against people for a characteristic that the law protects",
)

CC_BY_SA = "https://creativecommons.org/licenses/by-sa/4.0/"

_NO_LICENCE: Mapping[str, Any] = {"name": "", "url": "", "text": "", "restrictions": [], "note": ""}
_KNOWN: tuple[tuple[str, Mapping[str, Any]], ...] = (
    (
        r"deepseek",
        {"name": "DeepSeek Model License", "url": DEEPSEEK_LICENCE, "restrictions": list(DEEPSEEK_RESTRICTIONS)},
    ),
    (
        r"^leadline-small$",
        {"name": "CC BY-SA 4.0", "url": CC_BY_SA, "note": "the small model that ships with leadline"},
    ),
)


def default_terms() -> str:
    text = Path(__file__).with_name("terms.md").read_text(encoding="utf-8")
    restrictions = "\n".join(f"   - {each}" for each in DEEPSEEK_RESTRICTIONS)
    return text.replace("RESTRICTIONS", restrictions).replace("LICENCE", DEEPSEEK_LICENCE)


# ---- terms ---------------------------------------------------------------------------------------------------------


async def ensure_terms(connection: AsyncConnection, now: int) -> None:
    """The first start publishes the default ones."""
    if await current_version(connection) == 0:
        await publish(connection, default_terms(), now)


async def current_version(connection: AsyncConnection) -> int:
    return int(await connection.scalar(select(func.max(terms.c.version))) or 0)


async def current_terms(connection: AsyncConnection) -> Row[Any]:
    return (await connection.execute(select(terms).order_by(terms.c.version.desc()).limit(1))).one()


async def all_terms(connection: AsyncConnection) -> list[Row[Any]]:
    return list((await connection.execute(select(terms).order_by(terms.c.version.desc()))).all())


async def publish(connection: AsyncConnection, text: str, now: int) -> int:
    """A new version, which everyone is asked to accept."""
    if not text.strip() or len(text) > MOST_TEXT:
        raise InvalidRequest(f"the terms have 1 to {MOST_TEXT} characters", param="text")
    version = await current_version(connection) + 1
    await connection.execute(insert(terms).values(version=version, text=text, created=now))
    return version


async def accept(connection: AsyncConnection, user_id: int, version: int, *, param: str = "version") -> None:
    if version != await current_version(connection):
        raise InvalidRequest("these are not the current terms; read them again", param=param, code="terms_changed")
    await connection.execute(update(users).where(users.c.id == user_id).values(terms=version))


async def check_accepted(connection: AsyncConnection, user_id: int) -> None:
    """Raises `TermsNotAccepted` until the user has accepted the current terms."""
    accepted = await connection.scalar(select(users.c.terms).where(users.c.id == user_id))
    if (accepted or 0) < await current_version(connection):
        raise TermsNotAccepted("accept the terms of use first")


# ---- licences ------------------------------------------------------------------------------------------------------


def known_licence(model: str) -> dict[str, Any] | None:
    """What is known of a model by its name alone."""
    for pattern, record in _KNOWN:
        if re.search(pattern, model, re.IGNORECASE):
            return {**_NO_LICENCE, **record}
    return None


async def licence(connection: AsyncConnection, model: str) -> dict[str, Any] | None:
    """The operator's record, or what is known."""
    record = await connection.scalar(select(licences.c.record).where(licences.c.model == model))
    return known_licence(model) if record is None else dict(record)


async def set_licence(connection: AsyncConnection, model: str, record: Mapping[str, Any], now: int) -> None:
    values = {"record": dict(record), "updated": now}
    changed = await connection.execute(update(licences).where(licences.c.model == model).values(values))
    if changed.rowcount == 0:
        await connection.execute(insert(licences).values(model=model, **values))
