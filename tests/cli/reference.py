"""Writes docs/cli.md from the commands' own help: `make docs`."""

from __future__ import annotations

from leadline.cli import build_app
from tests.source import ROOT

PAGE = ROOT / "docs/cli.md"
NOTE = "<!-- Written by `make docs` from the commands' own help; a test keeps it fresh. -->\n\n"


def reference() -> str:
    """The page, which imports every verb."""
    return NOTE + build_app().generate_docs(output_format="markdown", recursive=True).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
