"""Writes docs/cli.md from the commands' own help: `make docs`."""

from __future__ import annotations

import sys
from unittest import mock

from leadline.cli import build_app
from tests.source import ROOT

PAGE = ROOT / "docs/cli.md"
NOTE = "<!-- Written by `make docs` from the commands' own help; a test keeps it fresh. -->\n\n"


def reference() -> str:
    """The page, which imports every verb. The program's own name would be taken for the command's."""
    with mock.patch.object(sys, "argv", ["leadline"]):
        page: str = build_app().generate_docs(output_format="markdown", recursive=True)
    return f"{NOTE}{page.rstrip()}\n"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
