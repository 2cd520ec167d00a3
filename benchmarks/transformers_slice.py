"""leadline's PyTorch path and its kernels against transformers on a slice of the V2-Lite shape, in one interleaved run.

    python benchmarks/transformers_slice.py                     # eight layers, bf16: 9.2 GB of random weights
    python benchmarks/transformers_slice.py --layers 2 --rounds 3 --output /tmp/slice

The PyTorch path and transformers hold the very same bf16 tensors; the kernels have random weights of their own in int4,
which is what a user would run. Every round runs every engine, so that a change of the machine's mood meets
all alike; the table gives medians and the range over the rounds. What is timed: prefill, from ids to the last token's
logits with an empty cache; decode, one token at a time with greedy choice, the mean over the tokens of a round.
transformers is called at its lowest level, without `generate`, with its default attention and experts and again with
its eager experts, and is asked for the last row's logits only.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import describe
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from leadline.checkpoint.synthetic import random_regions
from leadline.engine.bind import from_regions
from leadline.model.batch import ForwardBatch
from leadline.model.cache import PAGE_SIZE, PagedCache
from leadline.model.config import V2_LITE, ModelConfig
from leadline.model.cpu import CpuModel
from leadline.model.transformer import DeepseekV2

PREFILL, CONTEXTS = 512, (128, 2048)
OURS = ("leadline, PyTorch", "leadline, kernels, int4")
TEMPLATE = """\
# A slice beside transformers

{layers} layers of the V2-Lite shape, {billions:.2f} billion random bf16 weights held once for leadline's PyTorch path
and transformers; the kernels in int4. {rounds} interleaved rounds, {tokens} tokens a decode round. Medians over the
rounds, in brackets their range; ratios are of medians.

Machine: {cpu}, {isa}, {cores} cores, {memory_gib} GiB, load {load:.1f} before the run; {system}, Python {python}, torch
{torch} with {threads} threads, transformers {transformers}, leadline {leadline}.

| case | engine | tokens/s | leadline on PyTorch is | leadline's kernels are |
|---|---|---:|---:|---:|
{rows}

After a prompt of 64 the bf16 engines' logits differ by at most {difference:.1%} of the largest: the rounding of bf16.
`python benchmarks/transformers_slice.py` makes this table.
"""
BLOCK = (1 << 24) - 3  # random numbers repeat at this odd length: seconds instead of minutes


@dataclasses.dataclass(frozen=True)
class Options:
    layers: int
    rounds: int
    tokens: int
    threads: int
    output: Path


class Leadline:
    """The model over its paged cache, absorbed throughout, as the engine runs it."""

    def __init__(self, model: DeepseekV2 | CpuModel, name: str) -> None:
        self.model, self.name = model, name
        pages = -(-(max(CONTEXTS) + 256) // PAGE_SIZE)
        self.cache, self.pages = PagedCache(model.config, pages), list(range(pages))

    def step(self, ids_T: Tensor, done: int) -> Tensor:
        last = torch.tensor([len(ids_T) - 1])
        batch = ForwardBatch.paged(self.cache, [done], [len(ids_T)], [self.pages], logit_rows=last)
        logits_V: Tensor = self.model(ids_T, batch).logits[0]
        return logits_V

    def rewind(self, context: int) -> None:
        """Nothing to do: rows past the context are written again before they are read."""


class Transformers:
    """transformers' model on the same tensors, with its default attention and the named form of its experts."""

    def __init__(self, model: DeepseekV2, experts: str | None) -> None:
        config = AutoConfig.for_model(**model.config.to_dict())
        config._experts_implementation = experts
        with torch.device("meta"):
            self.model = AutoModelForCausalLM.from_config(config)
        self.model.load_state_dict(model.state_dict(keep_vars=True), assign=True)
        with torch.device("cpu"):
            self.model.model.rotary_emb = type(self.model.model.rotary_emb)(config)
        self.model.eval()
        self.name = f"transformers ({self.model.config._experts_implementation} experts)"
        self.cache = DynamicCache(config=config)
        known = inspect.signature(self.model.forward).parameters
        self.cache_argument = "cache" if "cache" in known else "past_key_values"  # before transformers 5.24

    def step(self, ids_T: Tensor, done: int) -> Tensor:
        if done == 0:
            self.cache = DynamicCache(config=self.model.config)
        options = {self.cache_argument: self.cache, "use_cache": True, "logits_to_keep": 1}
        reply = self.model(input_ids=ids_T[None], **options)
        logits_V: Tensor = reply.logits[0, -1]
        return logits_V

    def rewind(self, context: int) -> None:
        surplus = self.cache.get_seq_length() - context
        if surplus:
            self.cache.crop(-surplus)


def kernels(config: ModelConfig, threads: int) -> CpuModel:
    return CpuModel(config, from_regions(random_regions(config, "int4")), threads=threads)


def random_model(config: ModelConfig) -> DeepseekV2:
    with torch.device("meta"):
        model = DeepseekV2(config).to(torch.bfloat16)
    model.to_empty(device="cpu")
    block = (torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                for part in parameter.view(-1).split(BLOCK):
                    part.copy_(block[: len(part)])
    return model.eval()


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def decode(engine: Any, first: Tensor, context: int, tokens: int) -> float:
    """Seconds a token."""
    engine.rewind(context)
    ids = first

    def run() -> None:
        nonlocal ids
        for i in range(tokens):
            ids = engine.step(ids, context + i).argmax().view(1)

    return seconds(run) / tokens


@torch.inference_mode()
def measure(engines: list[Any], options: Options) -> dict[str, dict[str, list[float]]]:
    """case -> engine -> seconds a pass of each round; a round runs a case on every engine, in turning order."""
    ids = torch.randint(0, V2_LITE.vocab_size, (max(CONTEXTS),), generator=torch.Generator().manual_seed(1))
    cases: dict[str, tuple[int, Callable[[Any], float]]] = {
        f"prefill {PREFILL}": (PREFILL, lambda engine: seconds(lambda: engine.step(ids[:PREFILL], 0)))
    }
    for context in CONTEXTS:
        work = functools.partial(decode, first=ids[:1], context=context, tokens=options.tokens)
        cases[f"decode at context {context}"] = (context, work)
    return {label: rounds(engines, ids[:warm], work, label, options) for label, (warm, work) in cases.items()}


def rounds(
    engines: list[Any], prompt: Tensor, work: Callable[[Any], float], label: str, options: Options
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {engine.name: [] for engine in engines}
    for engine in engines:
        engine.step(prompt, 0)  # warms up, and is the context of the decode
    for number in range(options.rounds):
        for engine in engines if number % 2 else engines[::-1]:
            times[engine.name].append(work(engine))
        print(f"{label}, round {number + 1}: " + ", ".join(f"{t[-1]:.3f} s" for t in times.values()), flush=True)
    return times


@torch.inference_mode()
def disagreement(engines: list[Any]) -> float:
    """Largest difference of the engines' logits after a prompt, over the largest logit: that it is the same model."""
    ids = torch.randint(0, V2_LITE.vocab_size, (64,), generator=torch.Generator().manual_seed(2))
    logits = [engine.step(ids, 0).float() for engine in engines]
    return max(float((each - logits[0]).abs().max() / logits[0].abs().max()) for each in logits)


def markdown(report: dict[str, Any]) -> str:
    host, options = report["machine"], report["options"]
    rows = [
        f"| {case} | {name} | {value['median']:.2f} ({value['least']:.2f}-{value['most']:.2f}) | "
        + " | ".join("" if name in OURS else f"{engines[our]['median'] / value['median']:.2f}x" for our in OURS)
        + " |"
        for case, engines in report["tokens_per_second"].items()
        for name, value in engines.items()
    ]
    return TEMPLATE.format(
        **(host | options), billions=report["parameters"] / 1e9, difference=report["disagreement"], rows="\n".join(rows)
    )


def rates(results: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Tokens a second."""
    table: dict[str, Any] = {}
    for case, engines in results.items():
        tokens = PREFILL if case.startswith("prefill") else 1
        table[case] = {
            name: {
                "median": tokens / statistics.median(times),
                "least": tokens / max(times),
                "most": tokens / min(times),
                "seconds": times,
            }
            for name, times in engines.items()
        }
    return table


def parse() -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=16, help="tokens of one decode round")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "transformers_slice")
    return Options(**vars(parser.parse_args()))


def main() -> None:
    options = parse()
    host = describe()
    torch.set_num_threads(options.threads)
    config = dataclasses.replace(V2_LITE, num_hidden_layers=options.layers)
    model = random_model(config)
    engines: list[Any] = [Leadline(model, OURS[0]), Transformers(model, None), Transformers(model, "eager")]
    difference = disagreement(engines)
    engines.insert(1, Leadline(kernels(config, options.threads), OURS[1]))
    report = {
        "machine": host,
        "options": {**dataclasses.asdict(options), "output": options.output.name},
        "parameters": config.parameters(),
        "disagreement": difference,
        "tokens_per_second": rates(measure(engines, options)),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    options.output.with_suffix(".md").write_text(markdown(report), encoding="utf-8")
    print(markdown(report))


if __name__ == "__main__":
    main()
