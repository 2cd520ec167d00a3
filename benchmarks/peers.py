"""leadline beside llama.cpp and ik_llama.cpp on a CPU: random weights of the V2-Lite shape, whole, in 4 bits.

Each table is asked for in two steps:

    python benchmarks/peers.py prepare --gguf-python ENV/bin/python --home DIR
    python benchmarks/peers.py run --home DIR --llama ENV/bin/python [--ik ENV2/bin/python] --rounds 3
    python benchmarks/peers.py run --home DIR --llama ENV/bin/python --rounds 2 --long 2048 8192

`--bits 8` with both of them makes a table of its own as well. There the model has 16 experts a layer instead of 64, so
that the peers' file and their repacked copy fit into 24 GB; a token meets six and reads as much as ever.

`prepare` writes each engine's own format tensor by tensor: no bf16 model is ever on the disk or in memory. `run` starts
every engine in every round, in turns, each alone in memory, so that a change of the machine's mood meets all alike.
What is timed is a pass of the model over random ids: prefill from an empty cache to the last token's logits; decode one
token at a time. Memory bandwidth and matrix rate are measured in the same rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from machine import describe

HERE = Path(__file__).parent
THREADS = 2
EXPERTS = {4: 64, 8: 16}
"""Of a layer, by bits."""
PREFILL = [128, 512]
DECODE = [(128, 16, 1), (8, 4, 16)]
BATCH = "decode 8 x 16"
AVX2 = "leadline, AVX2"
"""leadline without AVX-512: what a machine like most laptops would run, beside peers that use all this one has."""

HEAD = """\
# On a CPU, beside its peers{title}

Random weights of the V2-Lite shape, 27 layers, {names} ({bits:.2f} bits a weight of what leadline reads for a
token, scales counted; {theirs}), {threads} threads, {rounds} rounds in turns, each engine alone in
memory. Medians over the rounds, in brackets their range; tokens a second. The ratio is to the fastest of the others.

Machine: {cpu}, {isa}, {cores} cores, {memory_gib} GiB; {system}, Python {python}, torch {torch}, leadline {leadline};
llama-cpp-python {llama}. Measured in the same rounds: memory read {read:.1f} GB/s with {threads} threads
({reads}), bf16 GEMM {gemm:.2f} TFLOP/s.

| case | {engines} | leadline is |
|---|{rule}---:|
{rows}

"""
ONE_BOUND = """\
Bounds are what leadline's threads read from the same weights just before and after, {low:.0f} to {high:.0f} GB/s, over
the bytes that are read: {megabytes:,.0f} MB a token, of which decode after 128 reaches {share:.0%}."""
BATCH_BOUND = """ A step of
sixteen sequences reads {gigabytes:.1f} GB, by the experts that they met, and reaches {share:.0%}."""
TAIL = """\
| | {engines} |
|---|{rule}
| load, seconds | {loads} |
| resident memory, GiB | {memory} |

{notes}`benchmarks/peers.py` makes this table.
"""


def files(options: argparse.Namespace) -> tuple[Path, Path]:
    """The GGUF file, and the quantised folder."""
    home: Path = options.home
    which = "" if options.bits == 4 else "-int8"
    return home / f"lite{which}.gguf", home / f"leadline{which}"


def prepare(options: argparse.Namespace) -> None:
    """Writes both where they are not there yet."""
    options.home.mkdir(parents=True, exist_ok=True)
    gguf, folder = files(options)
    if not gguf.is_file():
        shape = ["--experts", str(EXPERTS[options.bits]), "--bits", str(options.bits)]
        subprocess.run([str(options.gguf_python), str(HERE / "peers_gguf.py"), str(gguf), *shape], check=True)
    if not (folder / "leadline.json").is_file():
        from peers_leadline import write_random_folder

        write_random_folder(folder, EXPERTS[options.bits], "int4" if options.bits == 4 else "int8")


def limits() -> dict[str, float]:
    """GB/s that all threads read together, and TFLOP/s of a large bf16 product."""
    blocks = [torch.ones(1 << 27, dtype=torch.int64) for _ in range(THREADS)]
    torch.set_num_threads(1)
    with ThreadPoolExecutor(THREADS) as pool:
        seconds = min(_timed(lambda: list(pool.map(torch.sum, blocks))) for _ in range(3))
    torch.set_num_threads(THREADS)
    left, right = torch.randn(2048, 4096).bfloat16(), torch.randn(4096, 2048).bfloat16()
    product = min(_timed(lambda: left @ right) for _ in range(3))
    return {"read": THREADS * 8 * (1 << 27) / seconds / 1e9, "gemm": 2 * 2048 * 4096 * 2048 / product / 1e12}


def _timed(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One engine's cases in a process of its own."""
    long: list[int] = options.long
    case: dict[str, Any] = {
        "threads": THREADS,
        "context": max(4096, *(length + 512 for length in long)) if long else 4096,
        "sequences": 1 if long else 16,
        "prefill": [] if long else PREFILL,
        "decode": [(length, 16, 1) for length in long] or (DECODE if options.bits == 4 else DECODE[:1]),
        "mmap": True,
    }
    gguf, folder = files(options)
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    if name in (AVX2, "leadline"):
        command = [sys.executable, HERE / "peers_leadline.py", folder]
        if name == AVX2:
            environment["LEADLINE_ISA"] = "avx2"
    else:
        ik = (options.ik, "ik_llama_cpp._ctypes_api")
        python, module = (options.llama, "llama_cpp") if name == "llama.cpp" else ik
        if name == "ik_llama.cpp":
            case["options"] = {"flash_attn": False}  # it aborts on the sums that random weights give
        command = [python, HERE / "peers_llama.py", module, gguf]
    done = subprocess.run([*command, json.dumps(case)], env=environment, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} ended with {done.returncode}: {done.stderr.decode(errors='replace')[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def engines(options: argparse.Namespace) -> list[str]:
    peers = (["llama.cpp"] if options.llama else []) + (["ik_llama.cpp"] if options.ik else [])
    return ["leadline", *peers, *([AVX2] if options.avx2 else [])]


def run(options: argparse.Namespace) -> None:
    """Results are kept as they come: a run that is cut off, or measures in several sittings, is continued."""
    raw = options.output.with_suffix(".rounds.json")
    rounds: list[dict[str, Any]] = json.loads(raw.read_text()) if raw.is_file() else []
    names = engines(options)
    for number in range(options.rounds):
        if number == len(rounds):
            rounds.append({"limits": limits(), "load": os.getloadavg()[0]})
        turn = names[number % len(names) :] + names[: number % len(names)]
        if number % 2:  # else each would always follow the same one, and have the memory that it left
            turn.reverse()
        for name in turn:
            if name not in rounds[number]:
                print(f"round {number + 1}: {name}", file=sys.stderr, flush=True)
                rounds[number][name] = measure(name, options)
                raw.write_text(json.dumps(rounds, indent=1))
    write(options, rounds)


def write(options: argparse.Namespace, rounds: list[dict[str, Any]]) -> None:
    names = [name for name in ("leadline", "llama.cpp", "ik_llama.cpp", AVX2) if name in rounds[0]]
    cases = list(dict.fromkeys(case for rates in _rates(rounds, "leadline") for case in rates))
    rates = {
        name: {case: [rates[case] for rates in _rates(rounds, name) if case in rates] for case in cases}
        for name in names
    }
    read = statistics.median(each["limits"]["read"] for each in rounds)
    ours = rounds[0]["leadline"]
    rows = [_row(case, names, rates) for case in rates["leadline"]]
    values: dict[str, Any] = {
        **describe(),
        "title": _title(options),
        "names": "4 bits" if options.bits == 4 else f"{EXPERTS[8]} experts a layer, 8 bits",
        "theirs": "Q4_0 is 4.5, its attn_k_b Q5_0" if options.bits == 4 else "Q8_0 is 8.5",
        "llama": options.llama_version,
        "bits": ours["active_bits"],
        "threads": THREADS,
        "rounds": len(rounds),
        "read": read,
        "reads": " to ".join(f"{limit:.0f}" for limit in _range(rounds)),
        "gemm": statistics.median(each["limits"]["gemm"] for each in rounds),
        "engines": " | ".join(names),
        "rule": "---:|" * len(names),
        "rows": "\n".join(rows),
        "loads": " | ".join(_load(rounds, name) for name in names),
        "memory": " | ".join(f"{max(_all(rounds, name, 'rss')) / 2**30:.1f}" for name in names),
        "notes": f"{options.note}\n\n" if options.note else "",
    }
    bounds = "" if options.long else _bounds(rounds)
    text = HEAD.format(**values) + bounds + TAIL.format(**values)
    options.output.with_suffix(".md").write_text(text, encoding="utf-8")
    result = {"machine": describe(), "rounds": rounds}
    options.output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(options.output.with_suffix(".png"), names, rates)


def _title(options: argparse.Namespace) -> str:
    if options.long:
        return f", after {' and '.join(f'{length:,}' for length in options.long)} tokens"
    return "" if options.bits == 4 else ", in 8 bits"


def _bounds(rounds: list[dict[str, Any]]) -> str:
    """What the bandwidth of the same weights allows in each round, and the share of it that was reached."""
    ours = [each["leadline"] for each in rounds]
    own = [each["read"]["decode 128"] / 1e9 for each in ours]

    def share(case: str, sequences: int) -> float:
        steps = [each["tokens_per_second"][case] / sequences for each in ours]
        bounds = [each["read"][case] / each["step_bytes"][case] for each in ours]
        return statistics.median(step / bound for step, bound in zip(steps, bounds, strict=True))

    text = ONE_BOUND.format(
        low=min(own),
        high=max(own),
        megabytes=ours[0]["step_bytes"]["decode 128"] / 1e6,
        share=share("decode 128", 1),
    )
    if BATCH in ours[0]["read"]:
        step = statistics.median(each["step_bytes"][BATCH] for each in ours)
        text += BATCH_BOUND.format(gigabytes=step / 1e9, share=share(BATCH, 16))
    return f"{text}\n\n"


def _range(rounds: list[dict[str, Any]]) -> tuple[float, float]:
    found = [each["limits"]["read"] for each in rounds]
    return min(found), max(found)


def _rates(rounds: list[dict[str, Any]], name: str) -> list[dict[str, float]]:
    return [each[name]["tokens_per_second"] for each in rounds if name in each]


def _all(rounds: list[dict[str, Any]], name: str, field: str) -> list[float]:
    return [each[name][field] for each in rounds if name in each]


def _load(rounds: list[dict[str, Any]], name: str) -> str:
    middle = statistics.median(_all(rounds, name, "load_seconds"))
    seconds = f"{middle:.2f}" if middle < 1 else f"{middle:.1f}"
    if "settled_seconds" not in rounds[0][name]:
        return seconds
    return f"{seconds}, in memory of its own after {statistics.median(_all(rounds, name, 'settled_seconds')):.1f}"


def _row(case: str, names: list[str], rates: dict[str, dict[str, list[float]]]) -> str:
    cells = []
    for name in names:
        found = rates[name].get(case, [])
        spread = f" ({min(found):.1f}-{max(found):.1f})" if len(found) > 1 else ""
        cells.append(f"{statistics.median(found):.1f}{spread}" if found else "")
    middle = {name: statistics.median(rates[name][case]) for name in names if rates[name].get(case)}
    others = [rate for name, rate in middle.items() if name not in ("leadline", AVX2)]
    ratio = f"{middle['leadline'] / max(others):.1f} x" if others else ""
    return f"| {case} | {' | '.join(cells)} | {ratio} |"


def draw(path: Path, names: list[str], rates: dict[str, dict[str, list[float]]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    cases = list(rates["leadline"])
    figure, axes = plt.subplots(1, len(cases), figsize=(2.1 * len(cases), 3.2), layout="constrained")
    for axis, case in zip(axes, cases, strict=True):
        values = [statistics.median(rates[name][case]) if rates[name].get(case) else 0.0 for name in names]
        axis.bar(names, values, color=["#1f6f8b", "#c9b38c", "#b08968", "#7fb3c4"][: len(names)])
        axis.set_title(case, fontsize=9)
        axis.tick_params(axis="x", rotation=60, labelsize=8)
    axes[0].set_ylabel("tokens/s")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "run", "report"])
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--gguf-python", type=Path)
    parser.add_argument("--llama", type=Path)
    parser.add_argument("--llama-version", default="")
    parser.add_argument("--ik", type=Path)
    parser.add_argument("--avx2", action="store_true", help="leadline on AVX2 alone as well")
    long = "instead of the usual cases, prefill of these lengths and decode after them: minutes for some"
    parser.add_argument("--long", type=int, nargs="+", default=[], help=long)
    parser.add_argument("--bits", type=int, choices=[4, 8], default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--note", default="", help="a line under the table")
    parser.add_argument(
        "--output", type=Path, help="of the tables; benchmarks/results/peers, peers_long or peers_int8 by default"
    )
    options = parser.parse_args()
    table = "peers_long" if options.long else "peers" if options.bits == 4 else "peers_int8"
    options.output = options.output or HERE / "results" / table
    if options.what == "prepare":
        prepare(options)
    elif options.what == "run":
        run(options)
    else:
        write(options, json.loads(options.output.with_suffix(".rounds.json").read_text()))


if __name__ == "__main__":
    main()
