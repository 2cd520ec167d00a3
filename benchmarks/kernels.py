"""The CPU kernels at V2-Lite's shape with random weights: `leadline bench`, each row in a process of its own.

    python benchmarks/kernels.py whole slice      # all 27 layers in int4 (9 GB); an 8-layer slice for everything else

Rows that were measured before are kept, so that the parts may be run apart. The bound beside a decode row is the
bandwidth that `leadline bench` measured between its runs over the bytes that were really read: of the experts those
that were met.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machine import describe

from leadline.checkpoint.pack import active_bits
from leadline.checkpoint.regions import regions
from leadline.model.config import V2_LITE

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Row:
    """One call of `leadline bench`."""

    what: str
    verb: str
    options: tuple[str, ...]
    beside: bool = False
    """Another process keeps one of the cores busy."""


def lengths(option: str, *values: int) -> tuple[str, ...]:
    return tuple(word for value in values for word in (option, str(value)))


WHOLE = ("--shape", "v2-lite")
SLICE = (*WHOLE, "--layers", "8")
PARTS = {
    "whole": [
        Row("27 layers, int4", "decode", (*WHOLE, "--tokens", "24", "--runs", "3")),
        Row("27 layers, int4", "prefill", (*WHOLE, "--runs", "2", *lengths("--lengths", 128, 512))),
    ],
    "slice": [
        Row("8 layers, int4", "decode", (*SLICE, "--tokens", "24", "--runs", "2", *lengths("--contexts", 128, 2048))),
        Row("8 layers, int4", "prefill", (*SLICE, "--runs", "2", *lengths("--lengths", 128, 512, 2048))),
        Row("8 layers, int4", "batch", (*SLICE, "--runs", "2", "--tokens", "16", *lengths("--sequences", 4, 16))),
        Row("8 layers, int8", "decode", (*SLICE, "--quantize", "int8", "--tokens", "16", "--runs", "3")),
        Row("8 layers, int4, AVX-VNNI", "decode", (*SLICE, "--isa", "avxvnni", "--tokens", "16", "--runs", "3")),
        Row("8 layers, int4, AVX-VNNI", "prefill", (*SLICE, "--isa", "avxvnni", "--runs", "2")),
        Row("8 layers, int4, AVX2", "decode", (*SLICE, "--isa", "avx2", "--tokens", "16", "--runs", "3")),
        Row("8 layers, int4, AVX2", "prefill", (*SLICE, "--isa", "avx2", "--runs", "2")),
    ],
    "busy": [
        Row("8 layers, int4, beside a busy process", "decode", (*SLICE, "--tokens", "24", "--runs", "3"), beside=True),
        Row("8 layers, int4, beside a busy process", "prefill", (*SLICE, "--runs", "2"), beside=True),
    ],
    "long": [Row("8 layers, int4", "decode", (*SLICE, "--tokens", "16", "--runs", "1", "--contexts", "8192"))],
    "embedded": [
        Row("embedded model, exact", "decode", ("--runs", "5")),
        Row("embedded model, PyTorch", "decode", ("--isa", "none", "--runs", "5")),
    ],
}


@contextlib.contextmanager
def busy() -> Iterator[None]:
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def measure(row: Row) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "leadline", "bench", row.verb, *row.options, "--json"]
    with busy() if row.beside else contextlib.nullcontext():
        shown = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return [{"subject": row.what, "kernels": shown["kernels"], **result} for result in shown["results"]]


def table(found: dict[str, Any]) -> str:
    machine = found["machine"]
    bits = active_bits(regions(V2_LITE, "int4"), V2_LITE)
    lines = [
        "# The CPU kernels at V2-Lite's shape",
        "",
        f"Random weights made in kernel layout; int4 is the recipe of that name ({bits:.2f} bits a weight read).",
        "Medians, in brackets the range; the bound is measured bandwidth over the bytes really read.",
        "",
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, load {machine['load']:.1f}",
        f"before the run; {machine['system']}, Python {machine['python']}, leadline {machine['leadline']}.",
        "",
        "| subject | | tokens/s | bound | of it |",
        "|---|---|---:|---:|---:|",
    ]
    for row in found["rows"]:
        rate = f"{row['tokens_per_second']:,.1f} ({row['slowest']:,.1f}-{row['fastest']:,.1f})"
        bound = row["bound"]
        share = ["", ""] if bound is None else [f"{bound:,.1f}", f"{row['tokens_per_second'] / bound:.0%}"]
        lines.append(f"| {row['subject']} | {row['what']} | {rate} | {share[0]} | {share[1]} |")
    return "\n".join([*lines, "", "`python benchmarks/kernels.py` makes this table.", ""])


def main() -> None:
    path = RESULTS / "kernels.json"
    machine = describe()
    for each in [row for part in sys.argv[1:] or PARTS for row in PARTS[part]]:
        rows = measure(each)
        new = {(row["subject"], row["what"]) for row in rows}
        old = json.loads(path.read_text())["rows"] if path.exists() else []
        kept = [row for row in old if (row["subject"], row["what"]) not in new]
        found = {"machine": machine, "rows": sorted([*kept, *rows], key=lambda row: row["subject"])}
        path.write_text(json.dumps(found, indent=1) + "\n")
        (RESULTS / "kernels.md").write_text(table(found))


if __name__ == "__main__":
    main()
