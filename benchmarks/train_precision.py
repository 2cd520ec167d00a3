"""What bf16 costs in loss: the same training run in float32 and as `leadline train` does it, in bf16, on a corpus.

    python benchmarks/train_precision.py CORPUS             # a folder that `leadline train data` built
    python benchmarks/train_precision.py CORPUS --steps 20 --output /tmp/precision

The shape of `train_step.py`, its batch of 8 x 512 unless `--sequences` says otherwise; the same rows, seeds and
schedule. In float32 nothing is rounded: weights, activations and gradients are float32 and run on PyTorch; in bf16 the
masters, moments, gates, sums and the loss are.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from machine import describe
from train_step import LENGTH, SEQUENCES, SHAPE

from leadline.model.transformer import DeepseekV2
from leadline.ops.cpu import training
from leadline.train.config import OptimizerConfig, TrainConfig
from leadline.train.data import PackedCorpus, held_out
from leadline.train.loop import HeldOut, Trainer, prepare
from leadline.train.totals import StepTotals

LAST = 20
HELD_OUT_TOKENS = 8192
TEMPLATE = """\
# bf16 against float32 in training

{parameters:.1f}M parameters, {steps} steps of {tokens:,} tokens of a corpus, the same rows and seeds; AdamW, peak
learning rate {lr:g} after {warmup} steps. Loss in nats a token.

Machine: {cpu}, {isa}, {cores} cores; torch {torch} with {threads} threads, leadline {leadline}; the bf16 run on
{kernels}.

| after steps | float32 | bf16 | difference |
|---|---:|---:|---:|
{rows}

bf16 are activations, weights and their gradients; masters, moments, gates, softmax and other sums and the loss are
float32. `python benchmarks/train_precision.py CORPUS` makes this table.
"""


@dataclasses.dataclass(frozen=True)
class Curve:
    """The loss of every step, and of held-out rows at the end."""

    losses: list[float]
    held_out: float


def run(dtype: str, options: argparse.Namespace) -> Curve:
    tokens = options.sequences * LENGTH
    with tempfile.TemporaryDirectory() as out:
        config = TrainConfig(
            out=Path(out),
            data=options.corpus,
            tokens=options.steps * tokens,
            init=Path(out),
            batch_tokens=tokens,
            micro_batch_tokens=tokens,
            threads=options.threads,
            dtype=dtype,  # type: ignore[arg-type]
            optimizer=OptimizerConfig(peak_lr=options.lr, warmup_steps=options.warmup),
        )
        prepare(config)
        model = DeepseekV2(SHAPE)
        model.initialise(torch.Generator().manual_seed(0))
        batches, _ = held_out(options.corpus, "valid", LENGTH, HELD_OUT_TOKENS)
        data = PackedCorpus(options.corpus, "train", LENGTH, options.sequences, config.seed)
        trainer = Trainer(config, model, data, HeldOut(batches))
        losses: list[float] = []

        def note(told: StepTotals, **values: Any) -> None:
            losses.append(told.loss)
            print(f"{dtype} step {len(losses)}: loss {told.loss:.4f}, {values['seconds']:.2f} s", flush=True)

        trainer.metrics.stepped = note  # type: ignore[method-assign]
        for _ in range(options.steps):
            trainer.train_step()
        return Curve(losses, trainer.evaluate()["held_out_loss"])


def rows(curves: dict[str, Curve], steps: int) -> list[str]:
    wide, narrow = curves["float32"], curves["bfloat16"]
    marks = [step for step in (20, 50, 100, 150, 200) if step < steps] + [steps]
    pairs = [
        (
            f"{step}, mean of the last {LAST}",
            *(statistics.mean(c.losses[max(0, step - LAST) : step]) for c in (wide, narrow)),
        )
        for step in marks
    ]
    pairs.append((f"{steps}, held-out", wide.held_out, narrow.held_out))
    return [f"| {name} | {a:.4f} | {b:.4f} | {100 * (b / a - 1):+.2f}% |" for name, a, b in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--sequences", type=int, default=SEQUENCES)
    parser.add_argument("--lr", type=float, default=4.2e-4)
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "train_precision")
    options = parser.parse_args()
    host = describe()
    curves = {dtype: run(dtype, options) for dtype in ("bfloat16", "float32")}
    kernels = "the training kernels" if training.available() else "PyTorch"
    sizes = {"parameters": SHAPE.parameters() / 1e6, "steps": options.steps, "tokens": options.sequences * LENGTH}
    given = {"lr": options.lr, "warmup": options.warmup, "threads": options.threads, "kernels": kernels}
    report = {"machine": host, **sizes, **given, "curves": {name: dataclasses.asdict(c) for name, c in curves.items()}}
    table = TEMPLATE.format(**host, **sizes, **given, rows="\n".join(rows(curves, options.steps)))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    options.output.with_suffix(".md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
