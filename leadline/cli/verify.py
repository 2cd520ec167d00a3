"""`leadline verify`: golden checks of a model folder, or of any OpenAI-compatible server."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from leadline.checkpoint.verify.report import all_passed

if TYPE_CHECKING:
    from leadline.checkpoint.verify.report import Check

MARKS = {"pass": "[green]pass[/]", "fail": "[red]fail[/]", "skip": "[yellow]skip[/]"}


def verify(
    *,
    model: str | None = None,
    url: str | None = None,
    api_key: Annotated[str | None, Parameter(env_var="LEADLINE_API_KEY")] = None,
    tokenizer: Path | None = None,
    quick: Annotated[bool, Parameter(negative="")] = False,
    json_output: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Check a model folder, or a server, against the golden numbers; exit code 1 when a check fails.

    Args:
        model: A folder or a hub id, the embedded model by default; with --url the name of the server's model.
        url: Check this OpenAI-compatible server instead.
        api_key: The server's key or token.
        tokenizer: With --url: the folder of the model's tokenizer, to compare counts of tokens.
        quick: Leave out running the whole model.
        json_output: Print JSON, one object a check.
    """
    title, checks = _server(url, api_key, model, tokenizer) if url else _folder(model, quick=quick)
    if json_output:
        print(json.dumps([dataclasses.asdict(check) for check in checks], indent=2, ensure_ascii=False))
    else:
        _print_table(title, checks)
    return 0 if all_passed(checks) else 1


def _folder(model: str | None, *, quick: bool) -> tuple[str, list[Check]]:
    from leadline.checkpoint.source import find_source
    from leadline.checkpoint.verify.folder import verify_folder

    source = find_source(model)
    folder = source.fetch()
    return f"{source.name} ({folder})", list(verify_folder(folder, whole=not quick))


def _server(url: str, api_key: str | None, model: str | None, tokenizer: Path | None) -> tuple[str, list[Check]]:
    from leadline.cli.conformance import verify_server
    from leadline.client.http import Client
    from leadline.tokenizer import Tokenizer

    known = None if tokenizer is None else Tokenizer.from_folder(tokenizer)
    with Client(url, api_key=api_key) as client:
        return url, list(verify_server(client, model, known))


def _print_table(title: str, checks: Iterable[Check]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", box=None, padding=(0, 2, 0, 0), show_header=False)
    for check in checks:
        table.add_row(MARKS[check.state], check.name, escape(check.detail))
    Console().print(table)
