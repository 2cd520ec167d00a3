"""Migrations: from any released state of the tables to this one, at the server's start, in one transaction.

Each file in `versions` is one step and never changes after a release. Alembic runs them; its env.py is `upgrade` here,
because the connection is the server's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection

from leadline.errors import ConfigError


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Bring the database behind `connection` to `revision`, inside the transaction that is open."""
    scripts = ScriptDirectory(str(Path(__file__).parent))

    def steps(current: Any, _: Any) -> Any:
        return scripts._upgrade_revs(revision, current)

    try:
        with EnvironmentContext(Config(), scripts, fn=steps, destination_rev=revision) as environment:
            environment.configure(connection=connection)
            environment.run_migrations()
    except CommandError as error:
        raise ConfigError(f"the database was made by another version of leadline: {error}") from None
