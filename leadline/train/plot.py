"""Pictures of a run from its metrics: loss, learning rate, share of the peak, balance losses and every expert's load
over time (section 2.2.3); of GRPO the rewards and what they cost (section 4.2)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadline.errors import DataError
from leadline.train.records import read_records

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTH = 0.95
FULL = 2.0
"""The heat map's top colour: an expert with this many times an even share, or more."""

BALANCES = ("expert_loss", "device_loss", "communication_loss")
"""Eq. 23, 26 and 29, each by its factor; what a run has none of is not drawn."""

Record = dict[str, Any]
Panel = tuple[int, Callable[["Axes"], None]]
"""A height, and what draws it."""


def plot_run(out: Path, picture: Path) -> None:
    """Draw the run in folder `out` to `picture`, a PNG, PDF or SVG by its name's end."""
    from matplotlib.figure import Figure

    records = read_records(out / "metrics.jsonl")
    steps = [record for record in records if "loss" in record]
    if not steps:
        raise DataError(f"{out / 'metrics.jsonl'} tells of no step yet")
    held_out = [record for record in records if any(name.startswith("held_out_") for name in record)]
    panels = _reward_panels(steps, held_out) if "reward" in steps[0] else _loss_panels(steps, held_out)
    figure = Figure(figsize=(9, 1.5 * sum(height for height, _ in panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, height_ratios=[height for height, _ in panels])
    for each, (_, draw) in zip(axes, panels, strict=True):
        draw(each)
    _save(figure.savefig, picture)


def _loss_panels(steps: list[Record], held_out: list[Record]) -> list[Panel]:
    panels: list[Panel] = [
        (3, lambda axes: _draw_loss(axes, steps, held_out)),
        (1, lambda axes: _draw_rate(axes, steps)),
    ]
    if "accuracy" in steps[0]:
        panels.insert(1, (2, lambda axes: _draw_accuracy(axes, steps, held_out)))
    if any(record.get("utilisation") for record in steps):
        panels.append((1, lambda axes: _draw_use(axes, steps)))
    if balances := [name for name in BALANCES if any(record.get(name) for record in steps)]:
        panels.append((1, lambda axes: _draw_balance(axes, steps, balances)))
    if loads := [record for record in steps if record.get("expert_load")]:
        panels.append((3, lambda axes: _draw_load(axes, loads)))
    return panels


def _reward_panels(steps: list[Record], held_out: list[Record]) -> list[Panel]:
    """GRPO's: the loss is zero wherever it begins, so what it drives is drawn instead."""
    panels: list[Panel] = [
        (3, lambda axes: _draw_reward(axes, steps, held_out)),
        (1, lambda axes: _draw_values(axes, steps, ("kl",), "to the reference, nats")),
        (1, lambda axes: _draw_values(axes, steps, ("clip_fraction", "groups_without_spread"), "share")),
        (1, lambda axes: _draw_values(axes, steps, ("entropy",), "entropy, nats")),
        (1, lambda axes: _draw_values(axes, steps, ("length",), "tokens an answer")),
    ]
    if any("bits_per_byte" in record for record in held_out):
        panels.append((1, lambda axes: _draw_values(axes, held_out, ("bits_per_byte",), "bits per byte")))
    return panels


def _draw_reward(axes: Axes, steps: list[Record], held_out: list[Record]) -> None:
    """Each step's mean, the spread within its groups, and greedy answers to held-out questions."""
    places, rewards = [record["step"] for record in steps], [record["reward"] for record in steps]
    low, high = ([record["reward"] + sign * record["group_std"] for record in steps] for sign in (-1, 1))
    axes.fill_between(places, low, high, color="0.9", label="one standard deviation within a group")
    axes.plot(places, rewards, label="sampled answers")
    parts = sorted(name for name in steps[0] if name.startswith("reward_") and name != "reward_std")
    for name in parts if len(parts) > 1 else ():
        axes.plot(places, [record[name] for record in steps], linewidth=0.8, label=name.removeprefix("reward_"))
    given = [record for record in held_out if "held_out_reward" in record]
    axes.plot([r["step"] for r in given], [r["held_out_reward"] for r in given], "o-", label="greedy, held out")
    axes.set(ylabel="reward", xlabel="step")
    axes.legend()


def _draw_accuracy(axes: Axes, steps: list[Record], held_out: list[Record]) -> None:
    axes.plot(_millions(steps), [record["accuracy"] for record in steps], color="0.8", label="each step")
    axes.plot(_millions(held_out), [record["held_out_accuracy"] for record in held_out], "o-", label="held out")
    axes.set(ylabel="accuracy", xlabel="million tokens")
    axes.legend()


def _draw_values(axes: Axes, records: list[Record], names: tuple[str, ...], label: str) -> None:
    for name in names:
        given = [record for record in records if name in record]
        axes.plot([record["step"] for record in given], [record[name] for record in given], label=name)
    axes.set(ylabel=label, xlabel="step")
    if len(names) > 1:
        axes.legend()


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


def _draw_use(axes: Axes, steps: list[Record]) -> None:
    axes.plot(_millions(steps), [100 * record["utilisation"] for record in steps], linewidth=0.7)
    axes.set(ylabel="% of the peak", xlabel="million tokens", ylim=(0, None))


def _draw_balance(axes: Axes, steps: list[Record], names: list[str]) -> None:
    for name in names:
        axes.plot(_millions(steps), [record[name] for record in steps], label=name.replace("_", " "))
    axes.set(ylabel="balance", xlabel="million tokens")
    axes.legend()


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
