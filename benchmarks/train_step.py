"""A training step of leadline against transformers' DeepseekV2, on the CPU, in one interleaved run.

    python benchmarks/train_step.py                     # 24M parameters, batch 8 x 512
    python benchmarks/train_step.py --rounds 2 --output /tmp/step

The same shape, tokens and optimiser (AdamW, clipping at 1): forward, cross-entropy, backward, step. leadline runs as
`leadline train` does: bf16 with float32 masters, the gates in float32, attention, experts and cross-entropy on the
training kernels where the machine has them, the memory-bound ops compiled; with the balance loss, which transformers'
DeepseekV2 lacks. transformers runs in float32 and under bf16 autocast, whichever is faster
counts. Rounds alternate, so that a change of the machine's mood meets all alike.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import describe
from transformers import AutoConfig, AutoModelForCausalLM

from leadline.model.config import ModelConfig
from leadline.model.transformer import DeepseekV2
from leadline.ops.cpu import training
from leadline.train.config import TrainConfig
from leadline.train.data import Batch
from leadline.train.flops import measured_peak, step_flops
from leadline.train.loop import HeldOut, Trainer, prepare

SEQUENCES, LENGTH = 8, 512
SHAPE = ModelConfig(
    vocab_size=8192,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=8,
    kv_lora_rank=64,
    qk_nope_head_dim=32,
    qk_rope_head_dim=16,
    v_head_dim=32,
    n_routed_experts=16,
    n_shared_experts=1,
    num_experts_per_tok=3,
    moe_intermediate_size=192,
    topk_method="group_limited_greedy",
    n_group=4,
    topk_group=2,
    max_position_embeddings=1024,
    bos_token_id=0,
    eos_token_id=1,
)
TEMPLATE = """\
# A training step against transformers

{parameters:.1f}M parameters ({active:.1f}M active), batch {sequences} x {length}, {rounds} interleaved rounds; medians,
in brackets the range; the ratio is of medians.

Machine: {cpu}, {isa}, {cores} cores, {memory_gib} GiB, load {load:.1f} before the run; {system}, Python {python}, torch
{torch} with {threads} threads, transformers {transformers}, leadline {leadline}.

| trainer | tokens/s | leadline is |
|---|---:|---:|
{rows}

leadline ran on {kernels}: {step_tflops:.2f} TFLOP a step, recomputation and padding not counted, make {share:.0%} of
the {peak:.2f} TFLOP/s of a bf16 product of 1024 x 1024, measured at the end. bf16 are activations, weights and their
gradients; masters, moments, gates, softmax and other sums and the loss are float32.

`python benchmarks/train_step.py` makes this table, `train_precision.py` the one of what bf16 costs in loss.
"""


class RandomRows:
    """Whole rows of random tokens: every row is one document."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tokens_BL = torch.randint(2, SHAPE.vocab_size, (SEQUENCES, LENGTH), generator=generator)

    def batch(self, index: int) -> Batch:
        targets_BL = self.tokens_BL.roll(-1, dims=1)
        weights_BL = torch.ones(SEQUENCES, LENGTH)
        weights_BL[:, -1] = 0.0
        starts = tuple(range(0, SEQUENCES * LENGTH + 1, LENGTH))
        return Batch(self.tokens_BL.flatten(), targets_BL.flatten(), weights_BL.flatten(), starts, starts)


def leadline_step(threads: int, out: Path) -> Callable[[], None]:
    tokens = SEQUENCES * LENGTH
    config = TrainConfig(
        out=out, data=out, tokens=10**9, init=out, batch_tokens=tokens, micro_batch_tokens=tokens, threads=threads
    )
    prepare(config)
    model = DeepseekV2(SHAPE)
    model.initialise(torch.Generator().manual_seed(0))
    trainer = Trainer(config, model, RandomRows(), HeldOut([]))
    trainer.metrics.stepped = lambda *told, **values: None  # type: ignore[method-assign]
    return trainer.train_step


def transformers_step(autocast: bool) -> Callable[[], None]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SHAPE.to_dict()), dtype=torch.float32).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens_BL = RandomRows().tokens_BL

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(input_ids=tokens_BL, labels=tokens_BL, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    return step


def measure(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each round; every round runs every trainer, in turning order."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(3):
            step()
    for number in range(rounds):
        for name in steps if number % 2 else reversed(steps):
            start = time.perf_counter()
            steps[name]()
            times[name].append(time.perf_counter() - start)
        print(f"round {number + 1}: " + ", ".join(f"{name} {t[-1]:.2f} s" for name, t in times.items()), flush=True)
    return times


def use(tokens_per_second: float) -> dict[str, Any]:
    """What of the machine's bf16 products the step's own operations come to."""
    tokens = SEQUENCES * LENGTH
    flops = step_flops(SHAPE, tokens, SEQUENCES * LENGTH * (LENGTH + 1) // 2)
    peak = measured_peak("cpu", "bfloat16", seconds=1.0)
    kernels = "the training kernels" if training.available() else "PyTorch alone"
    share = flops * tokens_per_second / tokens / peak
    return {"kernels": kernels, "step_tflops": flops / 1e12, "peak": peak / 1e12, "share": share}


def markdown(report: dict[str, Any]) -> str:
    values = report["tokens_per_second"]
    rows = [
        f"| {name} | {value['median']:,.0f} ({value['least']:,.0f}-{value['most']:,.0f}) | "
        + ("|" if name == "leadline" else f"{values['leadline']['median'] / value['median']:.2f}x |")
        for name, value in values.items()
    ]
    shape = {"parameters": SHAPE.parameters() / 1e6, "active": SHAPE.parameters(active=True) / 1e6}
    sizes = {"sequences": SEQUENCES, "length": LENGTH, "rows": "\n".join(rows), **report["use"]}
    return TEMPLATE.format(**report["machine"], **report["options"], **shape, **sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "train_step")
    options = parser.parse_args()
    host = describe()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    steps = {
        "leadline": leadline_step(options.threads, options.output.parent),
        "transformers, float32": transformers_step(autocast=False),
        "transformers, bf16 autocast": transformers_step(autocast=True),
    }
    tokens = SEQUENCES * LENGTH
    rates = {
        name: {"median": tokens / statistics.median(times), "least": tokens / max(times), "most": tokens / min(times)}
        for name, times in measure(steps, options.rounds).items()
    }
    report = {
        "machine": host,
        "options": {"rounds": options.rounds, "threads": options.threads},
        "use": use(rates["leadline"]["median"]),
        "shape": dataclasses.asdict(SHAPE),
        "tokens_per_second": rates,
    }
    options.output.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    options.output.with_suffix(".md").write_text(markdown(report), encoding="utf-8")
    print(markdown(report))


if __name__ == "__main__":
    main()
