"""`leadline quantize`: a model in fewer bits, measured against what it was made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from leadline.checkpoint.machine import show_bytes
from leadline.checkpoint.source import find_source
from leadline.errors import DataError

if TYPE_CHECKING:
    from leadline.checkpoint.quantise import Report

_WORST = 5


def quantize(
    model: str,
    output: Path,
    /,
    *,
    recipe: Literal["int8", "int4", "mixed"] = "int4",
    calibrate: Path | None = None,
    text: Path | None = None,
    search: bool = True,
    check: bool = True,
    force: Annotated[bool, Parameter(negative="")] = False,
    json_output: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Write a model in 8 or 4 bits, in the layout that the CPU kernels read, and say how far it is from the original.

    Args:
        model: A folder or a hub id.
        output: The new folder; it appears when it is whole.
        recipe: int8; int4, with the first layer and what makes the latents in 8 bits; mixed, with all but the routed
            experts in 8 bits.
        calibrate: A text file, like what the model will read: weights are rounded so that their errors cancel on it.
        text: A text file to measure on; leadline's own source by default.
        search: Look for the scales with the least error.
        check: Measure the result: KL divergence from the original and agreement of the likeliest token.
        force: Keep a result over KL 0.03 or under 97% agreement.
        json_output: Print one JSON object, with every tensor.
    """
    from leadline.checkpoint.quantise import Options, quantise_folder

    calibration = None if calibrate is None else _read(calibrate)
    measured = None if text is None else _read(text)
    folder = find_source(model).fetch()
    report = quantise_folder(folder, output, Options(recipe, measured, calibration, search, check, force))
    if json_output:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        print_report(output, report)


def print_report(output: Path, report: Report) -> None:
    print(f"{output}: {report.recipe}, {show_bytes(report.bytes)}, {report.bits_per_weight:.2f} bits a weight,")
    print(f"  {report.active_bits:.2f} of those that a token reads")
    worst = sorted(report.tensors.items(), key=lambda item: -item[1]["error"])[:_WORST]
    for name, row in worst:
        print(f"  {name:<32} {row['format']}  {row['bits']:.2f} bits  error {row['error']:.2%} of the weights")
    if report.quality is not None:
        quality = report.quality
        print(
            f"  KL {quality.kl:.5f}, the same likeliest token in {quality.agreement:.2%} of {quality.tokens:,} places"
        )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
