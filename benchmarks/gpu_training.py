"""The training step on one GPU: the embedded model's shape, and a slice of V2-Lite at its real widths.

    python benchmarks/gpu_training.py                          # both, eager and compiled
    python benchmarks/gpu_training.py --shapes slice --output /tmp/gpu

A step is what `leadline train pretrain` does: bf16 with float32 masters, packed documents, balance loss, clipping,
AdamW. Beside it the card's own limits, measured in the same run: a matrix product of 8,192 cubed on random numbers, and
a copy counted as bytes read plus bytes written. Utilisation counts 6 operations a parameter and token (the table of
embeddings left out) and the causal half of attention, over the measured matrix rate: recomputation would not count.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe

from leadline.model.config import V2_LITE, ModelConfig
from leadline.model.transformer import DeepseekV2
from leadline.ops.dispatch import OPS
from leadline.train.config import TrainConfig
from leadline.train.data import Batch
from leadline.train.loop import HeldOut, Trainer, prepare

EMBEDDED = ModelConfig(
    vocab_size=8192,
    hidden_size=320,
    intermediate_size=896,
    num_hidden_layers=8,
    num_attention_heads=5,
    num_key_value_heads=5,
    kv_lora_rank=128,
    qk_nope_head_dim=32,
    qk_rope_head_dim=32,
    v_head_dim=64,
    n_routed_experts=16,
    n_shared_experts=1,
    num_experts_per_tok=4,
    moe_intermediate_size=128,
    max_position_embeddings=1024,
)
LAYERS = 4
SLICE = dataclasses.replace(V2_LITE, num_hidden_layers=LAYERS)


@dataclasses.dataclass(frozen=True)
class Shape:
    """`rows` of `row` tokens make a step; documents are `document` tokens long on average."""

    title: str
    model: ModelConfig
    rows: int
    row: int
    document: int


SHAPES = {
    "embedded": Shape("the embedded model's shape", EMBEDDED, 64, 1024, 256),
    "slice": Shape(f"{LAYERS} of V2-Lite's 27 layers, embeddings and head whole", SLICE, 4, 4096, 4096),
}


class RandomDocuments:
    """Random tokens in documents of one mean length, drawn anew for every step."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    def batch(self, index: int) -> Batch:
        rng, shape = np.random.default_rng(index), self.shape
        count = shape.rows * shape.row
        tokens_T = torch.from_numpy(rng.integers(2, shape.model.vocab_size, count))
        cuts = set(range(0, count + 1, shape.row))
        if shape.document < shape.row:
            cuts |= set(np.sort(rng.choice(count, count // shape.document, replace=False)).tolist())
        rows = tuple(range(0, count + 1, shape.row))
        return Batch(tokens_T, tokens_T.roll(-1), torch.ones(count), tuple(sorted(cuts)), rows)


def seconds_of(work: Callable[[], object], rounds: int) -> list[float]:
    """Wall seconds of each round, the device drained at both ends of it."""
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times


def limits() -> dict[str, float]:
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(1 << 29, device="cuda", dtype=torch.float32)
    target = torch.empty_like(source)
    seconds_of(lambda: a @ b, 3), seconds_of(lambda: target.copy_(source), 2)
    matmul = statistics.median(seconds_of(lambda: [a @ b for _ in range(10)], 5)) / 10
    copy = statistics.median(seconds_of(lambda: target.copy_(source), 5))
    return {"tflops": 2 * 8192**3 / matmul / 1e12, "gbytes": 2 * source.nbytes / copy / 1e9}


def flops_a_token(model: ModelConfig, document: int) -> float:
    """Forward and backward: 6 a parameter met, and attention over half of each document on average."""
    matrices = model.parameters(active=True) - model.vocab_size * model.hidden_size
    widths = model.qk_head_dim + model.v_head_dim
    attention = 2 * (document / 2) * model.num_attention_heads * widths * model.num_hidden_layers
    return 6.0 * matrices + 3.0 * attention


@dataclasses.dataclass(frozen=True)
class Result:
    shape: str
    mode: str
    tokens_per_second: float
    least: float
    most: float
    step_ms: float
    utilisation: float
    first_steps_s: float
    memory_gib: float


def measure(name: str, compiled: bool, peak: float, steps: int) -> Result:
    shape = SHAPES[name]
    tokens = shape.rows * shape.row
    torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder, kernels_as_before():
        out = Path(folder)
        config = TrainConfig(
            out=out, data=out, tokens=10**9, init=out, sequence_length=shape.row, batch_tokens=tokens,
            micro_batch_tokens=tokens, device="cuda", compile=compiled,
        )  # fmt: skip
        prepare(config)
        with torch.device("cuda"):
            model = DeepseekV2(shape.model)
        model.initialise()
        trainer = Trainer(config, model, RandomDocuments(shape), HeldOut([]))
        trainer.metrics.stepped = lambda *told, **values: None  # type: ignore[method-assign]
        first = sum(seconds_of(trainer.train_step, 4))
        times = seconds_of(trainer.train_step, steps)
        memory = torch.cuda.max_memory_allocated() / 2**30
        del trainer, model
    gc.collect()
    torch.cuda.empty_cache()
    middle = statistics.median(times)
    rate = flops_a_token(shape.model, min(shape.document, shape.row)) * tokens / middle / 1e12
    mode = "compiled" if compiled else "eager"
    values = (tokens / middle, tokens / max(times), tokens / min(times))
    return Result(name, mode, *values, middle * 1e3, rate / peak, first, memory)


@contextlib.contextmanager
def kernels_as_before() -> Iterator[None]:
    """What `prepare` registers is for one measurement."""
    known = {name: list(op.kernels) for name, op in OPS.items()}
    yield
    for name, kernels in known.items():
        OPS[name].kernels[:] = kernels


def profile(name: str) -> str:
    """Where the device's time goes in one eager step."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as recorded:
        measure(name, False, 1.0, 2)
    return recorded.key_averages().table(sort_by="self_cuda_time_total", row_limit=30, max_name_column_width=60)


TEMPLATE = """\
# A training step on one GPU

Device: {device}, torch {torch}, {system}, Python {python}, leadline {leadline}. Measured in the same run:
{tflops:.0f} TFLOP/s in a bf16 matrix product of 8,192 cubed, {gbytes:,.0f} GB/s in a copy.

| shape | parameters (active) | a step | mode | tokens/s | range | step | of the matrix rate | memory |
|---|---|---:|---|---:|---|---:|---:|---:|
{rows}

`python benchmarks/gpu_training.py` makes this table. A slice is a slice: {layers} of 27 layers, whole widths.
"""


def markdown(report: dict[str, Any]) -> str:
    rows = "\n".join(map(table_row, report["results"]))
    return TEMPLATE.format(**report["machine"], **report["limits"], device=report["device"], rows=rows, layers=LAYERS)


def table_row(row: dict[str, Any]) -> str:
    shape = SHAPES[row["shape"]]
    sizes = f"{shape.model.parameters() / 1e6:,.0f}M ({shape.model.parameters(active=True) / 1e6:,.0f}M)"
    pace = f"{row['tokens_per_second']:,.0f} | {row['least']:,.0f}-{row['most']:,.0f} | {row['step_ms']:.1f} ms"
    return (
        f"| {shape.title} | {sizes} | {shape.rows} x {shape.row:,} | {row['mode']} | {pace} | "
        f"{row['utilisation']:.1%} | {row['memory_gib']:.1f} GiB |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--modes", nargs="+", choices=("eager", "compiled"), default=["eager", "compiled"])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--profile", action="store_true", help="print where an eager step's time goes, too")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "gpu_training")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no GPU is here")
    report: dict[str, Any] = {"machine": describe(), "device": torch.cuda.get_device_name(), "limits": limits()}
    report["results"] = []
    for name, mode in runs(options.shapes, options.modes):
        result = measure(name, mode == "compiled", report["limits"]["tflops"], options.steps)
        report["results"].append(dataclasses.asdict(result))
        print(json.dumps(report["results"][-1]), flush=True)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
        options.output.with_suffix(".md").write_text(markdown(report))
    print(markdown(report))
    if options.profile:
        for name in options.shapes:
            print(profile(name))


def runs(shapes: list[str], modes: list[str]) -> Iterator[tuple[str, str]]:
    return ((shape, mode) for shape in shapes for mode in modes)


if __name__ == "__main__":
    main()
