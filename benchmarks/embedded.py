"""The embedded model, one stream, as a user runs it: leadline's `LLM.generate` beside transformers' `generate`.

    python benchmarks/embedded.py [--rounds 5]

Both hold the same weights and continue the same prompts greedily; every round asks each of the engines, in turns. Also
timed, in processes of their own: from the start of a command to its first token.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from machine import describe, spread
from transformers import AutoModelForCausalLM

from leadline import LLM, SamplingParams

MODEL = Path(str(files("leadline"))) / "embedded" / "model"
RESULTS = Path(__file__).parent / "results"
CONTEXT, TOKENS = 128, 128
OURS = "leadline"
START_OURS = [sys.executable, "-m", "leadline", "generate", "The sea", "--max-tokens", "1", "--disk-cache", "off"]
START_THEIRS = [sys.executable, "-c", f"""
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
tokenizer = PreTrainedTokenizerFast.from_pretrained({str(MODEL)!r})
model = AutoModelForCausalLM.from_pretrained({str(MODEL)!r}, dtype=torch.float32)
ids = tokenizer("The sea", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=1, do_sample=False)[0]))
"""]  # fmt: skip
TEMPLATE = """\
# The embedded model, one stream, beside transformers

{tokens} tokens after a prompt of {context}, greedy, through each library's own `generate`; {rounds} interleaved rounds.
Medians, in brackets the range; tokens a second.

Machine: {cpu}, {isa}, {cores} cores, {memory_gib} GiB, load {load:.1f} before the run; {system}, Python {python},
torch {torch}, transformers {transformers}, leadline {leadline}.

| engine | tokens/s | leadline is | seconds from the command to its first token |
|---|---:|---:|---:|
{rows}

`python benchmarks/embedded.py` makes this table.
"""


def leadline_engine() -> Callable[[list[int]], float]:
    llm = LLM(MODEL)

    def run(ids: list[int]) -> float:
        params = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
        (output,) = llm.generate([ids], params)
        return len(output.token_ids)

    return run


def transformers_engine(dtype: torch.dtype) -> Callable[[list[int]], float]:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype).eval()

    def run(ids: list[int]) -> float:
        options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
        found = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), **options)
        return found.shape[1] - len(ids)

    return run


def start(command: list[str]) -> float:
    """Seconds a command takes that ends after its first token."""
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begun


def measure(rounds: int) -> dict[str, Any]:
    engines = {
        OURS: leadline_engine(),
        "transformers, float32": transformers_engine(torch.float32),
        "transformers, bfloat16": transformers_engine(torch.bfloat16),
    }
    chance = random.Random(0)
    rates: dict[str, list[float]] = {name: [] for name in engines}
    starts: dict[str, list[float]] = {OURS: [], "transformers, float32": []}
    for number in range(-1, rounds):  # the first warms up
        ids = [chance.randrange(100, 8000) for _ in range(CONTEXT)]
        names = list(engines)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            begun = time.perf_counter()
            made = engines[name](ids)
            if number >= 0:
                rates[name].append(made / (time.perf_counter() - begun))
        if number >= 0:
            starts[OURS].append(start(START_OURS))
            starts["transformers, float32"].append(start(START_THEIRS))
    return {"tokens_per_second": rates, "first_token_seconds": starts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    machine = describe()
    found = measure(rounds)
    rates, starts = found["tokens_per_second"], found["first_token_seconds"]
    ours = statistics.median(rates[OURS])
    rows = [
        f"| {name} | {spread(each, ',.0f')} | {'' if name == OURS else f'{ours / statistics.median(each):.1f}x'} | "
        f"{spread(starts[name], '.1f') if name in starts else ''} |"
        for name, each in rates.items()
    ]
    text = TEMPLATE.format(**machine, tokens=TOKENS, context=CONTEXT, rounds=rounds, rows="\n".join(rows))
    (RESULTS / "embedded.md").write_text(text, encoding="utf-8")
    (RESULTS / "embedded.json").write_text(json.dumps({"machine": machine, **found}, indent=1) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
