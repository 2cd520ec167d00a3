"""One progress bar for loads and downloads, on standard error, only where somebody watches."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

BAR_FROM_BYTES = 1 << 30
"""A load smaller than this is over before a bar could be read."""


@contextlib.contextmanager
def progress_bar(
    title: str, total: int, wanted: bool | None, least: int = BAR_FROM_BYTES
) -> Iterator[Callable[[int], None]]:
    """A function to call with each number of bytes done; below `least` or off a terminal none is shown unless asked."""
    shown = sys.stderr.isatty() and total >= least if wanted is None else wanted
    if not shown:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.advance(task, done)
