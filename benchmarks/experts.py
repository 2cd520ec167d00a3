"""The routed experts of one V2-Lite layer alone, in 4 bits: leadline's kernels beside kt-kernel's.

    python benchmarks/experts.py --kt ENV/bin/python [--rounds 3]

ENV has kt-kernel and torch. Random weights, every token's 6 of 64 experts drawn evenly, no shared experts. kt-kernel
runs with one worker and with two, and the better counts; its 4 bits have one scale a row of the weight, leadline's one
a group (4.5 bits a weight). Each engine is a process of its own, in turns. What is timed is a call on rows that are
there: the sorting of tokens, the quantisation of activations and the weighted sum are in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXPERTS, TOP_K, HIDDEN, INNER = 64, 6, 2048, 1408
ROWS = (1, 16, 128, 512, 2048)
CALLS = 7
RESULTS = Path(__file__).parent / "results"


def inputs(rows: int) -> tuple[Any, Any, Any]:
    """(x (T, D) bf16, ids (T, K) int64, weights (T, K) float32)"""
    import torch

    generator = torch.Generator().manual_seed(rows)
    x_TD = torch.randn(rows, HIDDEN, generator=generator).bfloat16()
    ids_TK = torch.rand(rows, EXPERTS, generator=generator).topk(TOP_K).indices.contiguous()
    return x_TD, ids_TK, torch.rand(rows, TOP_K, generator=generator)


def rates(call: Callable[[int], Callable[[], object]]) -> dict[str, float]:
    """Rows a second of each number of rows: the median of the calls after a first one."""
    found = {}
    for rows in ROWS:
        run = call(rows)
        run()
        times = []
        for _ in range(CALLS):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        found[str(rows)] = rows / statistics.median(times)
    return found


def ours() -> dict[str, float]:
    import dataclasses

    import torch

    from leadline.checkpoint.synthetic import random_regions
    from leadline.engine.bind import from_regions
    from leadline.model.config import V2_LITE
    from leadline.model.cpu import CpuModel

    config = dataclasses.replace(
        V2_LITE, num_hidden_layers=1, first_k_dense_replace=0, n_shared_experts=0, vocab_size=64
    )
    model = CpuModel(config, from_regions(random_regions(config, "int4")), dtype=torch.bfloat16)

    def call(rows: int) -> Callable[[], object]:
        x_TD, ids_TK, weights_TK = inputs(rows)
        return lambda: model.experts(0, x_TD, ids_TK, weights_TK)

    return rates(call)


def kt(workers: int) -> dict[str, float]:
    import torch
    from kt_kernel import kt_kernel_ext as native  # type: ignore[import-not-found]

    pool = native.WorkerPoolConfig()
    pool.subpool_count, pool.subpool_numa_map, pool.subpool_thread_count = 1, [0], [workers]
    engine = native.CPUInfer(pool)
    weights = [
        torch.randn(EXPERTS, *shape).mul_(0.02).bfloat16() for shape in ((INNER, HIDDEN),) * 2 + ((HIDDEN, INNER),)
    ]
    elsewhere = torch.zeros(EXPERTS, dtype=torch.bool)
    config = native.moe.MOEConfig(EXPERTS, TOP_K, HIDDEN, INNER, elsewhere.data_ptr())
    config.layer_idx, config.pool, config.max_len = 0, engine.backend_, max(ROWS)
    config.gate_proj, config.up_proj, config.down_proj = (each.data_ptr() for each in weights)
    config.load = config.save = False
    layer = native.moe.AMXInt4_MOE(config)
    places = torch.arange(EXPERTS)
    engine.submit(layer.load_weights_task(places.data_ptr()))
    engine.sync()

    def call(rows: int) -> Callable[[], object]:
        x_TD, ids_TK, weights_TK = inputs(rows)
        out_TD, count = torch.empty_like(x_TD), torch.tensor([rows], dtype=torch.int32)
        buffers = [count, ids_TK, weights_TK, x_TD, out_TD]

        def run() -> None:
            length, ids, gates, x, out = (each.data_ptr() for each in buffers)
            engine.submit(layer.forward_task(length, TOP_K, ids, gates, x, out, False))
            engine.sync()

        return run

    return rates(call)


def child(python: str, *arguments: str) -> dict[str, float]:
    output = subprocess.run([python, __file__, *arguments], check=True, capture_output=True, text=True).stdout
    line = next(each for each in output.splitlines() if each.startswith("{"))
    found: dict[str, float] = json.loads(line)
    return found


TEMPLATE = """\
# Routed experts alone, beside kt-kernel

One layer of V2-Lite, 64 experts of 1,408, 6 a token drawn evenly, 4 bits, random weights; rows a second, medians
of {rounds} rounds in turns, in brackets their range. kt-kernel {version} ({variant}) has one scale a row of a weight,
leadline one a group.

Machine: {cpu}, {isa}, {cores} cores, {memory_gib} GiB, load {load:.1f} before the run; {system}, leadline {leadline}.

| rows | leadline | kt-kernel, 1 worker | kt-kernel, 2 workers | leadline is |
|---:|---:|---:|---:|---:|
{lines}

`python benchmarks/experts.py --kt ENV/bin/python` makes this table.
"""


def run(options: argparse.Namespace) -> None:
    from machine import describe

    machine = describe()
    engines = {
        "leadline": (sys.executable, "--ours"),
        "1": (options.kt, "--workers", "1"),
        "2": (options.kt, "--workers", "2"),
    }
    rounds = []
    for turn in range(options.rounds):
        names = list(engines)[turn % 3 :] + list(engines)[: turn % 3]
        rounds.append({name: child(*engines[name]) for name in names})
        print(json.dumps(rounds[-1]), file=sys.stderr)
    about = "import kt_kernel as k, importlib.metadata as m; print(m.version('kt-kernel'), k.__cpu_variant__)"
    version, variant = subprocess.check_output([options.kt, "-c", about], text=True).split()[-2:]
    lines = "\n".join(line(str(rows), rounds) for rows in ROWS)
    text = TEMPLATE.format(rounds=options.rounds, lines=lines, version=version, variant=variant, **machine)
    (options.output / "experts.json").write_text(json.dumps({"machine": machine, "rounds": rounds}, indent=1) + "\n")
    (options.output / "experts.md").write_text(text)
    print(text)


def line(rows: str, rounds: list[dict[str, dict[str, float]]]) -> str:
    from machine import spread

    found = {name: [each[name][rows] for each in rounds] for name in rounds[0]}
    medians = {name: statistics.median(each) for name, each in found.items()}
    cells = [spread(found[n], ",.0f") for n in ("leadline", "1", "2")]
    ratio = medians["leadline"] / max(medians["1"], medians["2"])
    return f"| {int(rows):,} | {' | '.join(cells)} | {ratio:.1f} x |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kt", help="the Python of the environment that has kt-kernel")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours or options.workers:
        print(json.dumps(ours() if options.ours else kt(options.workers)))
    elif options.kt:
        run(options)
    else:
        parser.error("--kt: which Python has kt-kernel?")


if __name__ == "__main__":
    main()
