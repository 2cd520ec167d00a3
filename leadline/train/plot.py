"""Pictures of a run from its metrics: loss, learning rate, and every expert's load over time (section 2.2.3)."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadline.errors import DataError
from leadline.train.metrics import read_records

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTH = 0.95
FULL = 2.0
"""The heat map's top colour: an expert with this many times an even share, or more."""

Record = dict[str, Any]


def plot_run(out: Path, picture: Path) -> None:
    """Draw the run in folder `out` to `picture`, a PNG, PDF or SVG by its name's end."""
    from matplotlib.figure import Figure

    records = read_records(out / "metrics.jsonl")
    steps = [record for record in records if "loss" in record]
    if not steps:
        raise DataError(f"{out / 'metrics.jsonl'} tells of no step yet")
    loads = [record for record in steps if record.get("expert_load")]
    figure = Figure(figsize=(9, 9 if loads else 6), layout="constrained")
    axes = figure.subplots(3 if loads else 2, 1, height_ratios=[3, 1, 3] if loads else [3, 1])
    _draw_loss(axes[0], steps, [record for record in records if "held_out_loss" in record])
    _draw_rate(axes[1], steps)
    if loads:
        _draw_load(axes[2], loads)
    _save(figure.savefig, picture)


def _draw_loss(axes: Axes, steps: list[Record], held_out: list[Record]) -> None:
    tokens, losses = _millions(steps), [record["loss"] for record in steps]
    smooth = list(accumulate(losses, lambda old, new: SMOOTH * old + (1 - SMOOTH) * new))
    axes.plot(tokens, losses, color="0.8", linewidth=0.7, label="each step")
    axes.plot(tokens, smooth, label="smoothed")
    axes.plot(_millions(held_out), [record["held_out_loss"] for record in held_out], "o-", label="held out")
    axes.set(ylabel="loss, nats a token", xlabel="million tokens")
    axes.legend()


def _draw_rate(axes: Axes, steps: list[Record]) -> None:
    axes.plot(_millions(steps), [record["lr"] for record in steps])
    axes.set(ylabel="learning rate", xlabel="million tokens")


def _draw_load(axes: Axes, loads: list[Record]) -> None:
    """A row an expert, the layers one under the other; a column a record."""
    layers = len(loads[0]["expert_load"])
    experts = len(loads[0]["expert_load"][0])
    columns = [[share for layer in record["expert_load"] for share in layer] for record in loads]
    first, last = loads[0]["step"], loads[-1]["step"]
    extent = (first - 0.5, last + 0.5, layers * experts - 0.5, -0.5)
    rows = list(zip(*columns, strict=True))
    image = axes.imshow(rows, aspect="auto", vmin=0, vmax=FULL, extent=extent, interpolation="nearest")
    axes.set(xlabel="step", ylabel=f"{layers} layers of {experts} experts")
    axes.set_yticks([layer * experts - 0.5 for layer in range(layers)], [str(layer) for layer in range(layers)])
    assert axes.figure is not None
    axes.figure.colorbar(image, ax=axes, label="load: 1 is even, 0 is dead", extend="max")


def _millions(records: list[Record]) -> list[float]:
    return [record["tokens"] / 1e6 for record in records]


def _save(savefig: Any, picture: Path) -> None:
    try:
        savefig(picture, dpi=120)
    except (OSError, ValueError) as error:  # ValueError: a kind of picture that matplotlib does not know
        raise DataError(f"cannot write {picture}: {error}") from None
