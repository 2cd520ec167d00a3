"""`leadline verify`: golden checks of a model folder, or of any OpenAI-compatible server."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from leadline.checkpoint.verify.report import Check

MARKS = {"pass": "[green]pass[/]", "fail": "[red]fail[/]", "skip": "[yellow]skip[/]"}


def verify(
    *,
    model: str | None = None,
    quick: Annotated[bool, Parameter(negative="")] = False,
    json_output: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Check a model folder against the golden numbers; exit code 1 when a check fails.

    Args:
        model: A folder or a hub id; the embedded model by default.
        quick: Leave out running the whole model.
        json_output: Print JSON, one object a check.
    """
    from leadline.checkpoint.source import find_source
    from leadline.checkpoint.verify.folder import verify_folder
    from leadline.checkpoint.verify.report import all_passed

    source = find_source(model)
    folder: Path = source.fetch()
    checks = list(verify_folder(folder, whole=not quick))
    _print(checks, title=f"{source.name} ({folder})", as_json=json_output)
    return 0 if all_passed(checks) else 1


def _print(checks: Iterable[Check], *, title: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps([dataclasses.asdict(check) for check in checks], indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", box=None, padding=(0, 2, 0, 0), show_header=False)
    for check in checks:
        table.add_row(MARKS[check.state], check.name, escape(check.detail))
    Console().print(table)
