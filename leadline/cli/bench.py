"""`leadline bench`: how fast a model runs here, measured, with what it was measured on beside the numbers.

Each number is the median of several runs after a warm-up, with the slowest and the fastest. Prompts are random ids, the
prefix cache is off and answers ignore EOS, so that every run does exactly the work it says.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from leadline.engine.types import EngineRequest, SamplingParams
from leadline.errors import InvalidRequest

if TYPE_CHECKING:
    from leadline.engine.engine import Engine

app = App(name="bench", help="Measure how fast a model runs here: decode, prefill, batch, load.")

Json = Annotated[bool, Parameter(name="--json", negative="")]


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured.

    Args:
        model: A folder or a hub id; the embedded model by default.
        dtype: The weights' type.
        device: auto, cpu, cuda or cuda:N.
        quantize: Run a model that is not quantised in 8 or 4 bits.
        isa: The CPU kernels' instruction set; none is PyTorch.
        shape: Instead of a model: random weights of a published shape, quantised, on the CPU kernels.
        layers: Of that shape, only so many layers.
    """

    model: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    quantize: Literal["int8", "int4", "mixed"] | None = None
    isa: Literal["amx", "avx512", "avxvnni", "avx2", "neon", "scalar", "none"] | None = None
    shape: Literal["v2-lite", "v2", "small"] | None = None
    layers: int | None = None


EMBEDDED = Subject()

CACHED_BYTES = 512 << 20
"""Weights of less may lie in a processor's cache, where the memory's bandwidth bounds nothing."""


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """Tokens a second over `runs` runs of the same work.

    `bound` is the memory's bandwidth over the bytes that the passes really read, None where nobody counted.
    """

    what: str
    tokens_per_second: float
    slowest: float
    fastest: float
    runs: int
    bound: float | None = None


@app.command
def decode(
    *,
    subject: Subject = EMBEDDED,
    contexts: tuple[int, ...] = (128,),
    tokens: int = 64,
    runs: int = 5,
    json_output: Json = False,
) -> None:
    """One sequence: tokens a second after a prompt.

    Args:
        contexts: Prompt lengths to decode after; repeat the option for several.
        tokens: Tokens to decode in each run.
        runs: Runs to take the median of.
        json_output: Print one JSON object.
    """
    engine = _engine(subject, 1)
    results = [
        _measure_decode(engine, f"decode after {context}", partial(_decode, engine, 1, context, tokens), runs)
        for context in contexts
    ]
    _print(engine, results, json_output)


@app.command
def prefill(
    *,
    subject: Subject = EMBEDDED,
    lengths: tuple[int, ...] = (512,),
    runs: int = 5,
    json_output: Json = False,
) -> None:
    """One prompt: its tokens a second until the first token of the answer.

    Args:
        lengths: Prompt lengths; repeat the option for several.
        runs: Runs to take the median of.
        json_output: Print one JSON object.
    """
    engine = _engine(subject, 1)
    results = [_measure(f"prefill {length}", partial(_prefill, engine, length), runs) for length in lengths]
    _print(engine, results, json_output)


@app.command
def batch(
    *,
    subject: Subject = EMBEDDED,
    sequences: tuple[int, ...] = (1, 8, 32),
    context: int = 128,
    tokens: int = 32,
    runs: int = 3,
    json_output: Json = False,
) -> None:
    """Many sequences at the same time: all their tokens a second while they decode.

    Args:
        sequences: How many at the same time; repeat the option for several.
        context: Tokens of each prompt.
        tokens: Tokens to decode of each sequence in each run.
        runs: Runs to take the median of.
        json_output: Print one JSON object.
    """
    engine = _engine(subject, max(sequences))
    results = [
        _measure_decode(engine, f"decode of {count}", partial(_decode, engine, count, context, tokens), runs)
        for count in sequences
    ]
    _print(engine, results, json_output)


@app.command
def load(
    *,
    subject: Subject = EMBEDDED,
    placements: tuple[Literal["auto", "map", "copy"], ...] = ("auto", "map", "copy"),
    tokens: int = 32,
    runs: int = 3,
    json_output: Json = False,
) -> None:
    """Seconds from a folder to an engine that is ready, imports left out; and how fast it then decodes.

    Placements take turns. Counted are finding and planning, the tokenizer, the weights, binding them and a first pass;
    not the first load of all, which reads the file from the disk and may check its sums.

    Args:
        placements: How a quantised folder's weights are placed: mapped from the file, copied into memory of their own,
            or, auto, mapped first and copied while the model runs. Repeat the option for several.
        tokens: Tokens to decode after each load.
        runs: Runs to take the median of.
        json_output: Print one JSON object.
    """
    if subject.shape is not None:
        raise InvalidRequest("--shape has no folder to load: give --model a quantised folder", param="shape")
    where = _load(subject, placements[0], tokens)[2]
    found: dict[str, list[tuple[float, float]]] = {placement: [] for placement in placements}
    for _ in range(max(runs, 1)):
        for placement in placements:
            found[placement].append(_load(subject, placement, tokens)[:2])
    _print_loads(where, found, json_output)


# ---- measuring ---------------------------------------------------------------------------------------------------


def _engine(subject: Subject, max_num_seqs: int, placement: Literal["auto", "map", "copy"] = "auto") -> Engine:
    if subject.shape is not None:
        from leadline.engine.synthetic import synthetic_engine

        recipe = subject.quantize or "int4"
        return synthetic_engine(
            subject.shape, recipe, layers=subject.layers, isa=subject.isa, max_num_seqs=max_num_seqs
        )
    from leadline.engine.load import load_engine

    options: dict[str, Any] = {"dtype": subject.dtype, "device": subject.device, "max_num_seqs": max_num_seqs}
    options |= {"quantize": subject.quantize, "isa": subject.isa, "placement": placement}
    return load_engine(subject.model, enable_prefix_caching=False, **options).engine


def _load(
    subject: Subject, placement: Literal["auto", "map", "copy"], tokens: int
) -> tuple[float, float, dict[str, Any]]:
    """Seconds to an engine that is ready, its tokens a second once its weights lie still, and what it ran on.

    The engine is gone afterwards."""
    from leadline.ops.cpu.mapped import settle

    start = time.perf_counter()
    engine = _engine(subject, 1, placement)
    seconds = time.perf_counter() - start
    where = _where(engine)
    settle()
    _decode(engine, 1, 16, tokens)  # where weights are mapped, every page's first reading
    rate = _decode(engine, 1, 16, tokens)[0]
    del engine
    gc.collect()
    return seconds, rate, where


def _add(engine: Engine, count: int, length: int, tokens: int) -> None:
    """Random prompts. Several draw their tokens, each by a seed of its own: greedy, random weights would soon say the
    same in all of them, and choose the same experts."""
    if length + tokens > engine.limit:
        raise InvalidRequest(f"{length} + {tokens} tokens do not fit a context of {engine.limit}")
    chance = random.Random(length)
    temperature = 1.0 if count > 1 else 0.0
    for number in range(count):
        ids = tuple(chance.randrange(engine.info.vocab_size) for _ in range(length))
        params = SamplingParams(temperature=temperature, seed=number, max_tokens=tokens, ignore_eos=True)
        engine.add(EngineRequest(f"bench-{number}", ids, params))


def _prefill(engine: Engine, length: int) -> float:
    """Prompt tokens a second."""
    _add(engine, 1, length, 1)
    start = time.perf_counter()
    while engine.has_work:
        engine.step()
    return length / (time.perf_counter() - start)


def _decode(engine: Engine, count: int, length: int, tokens: int) -> tuple[float, float | None]:
    """Generated tokens a second from the step on in which every sequence decodes, and the bytes that each read."""
    _add(engine, count, length, tokens + 1)
    while engine.stats().waiting or any(sequence.generated == 0 for sequence in engine.scheduler.running):
        engine.step()
    before, read = engine.stats().generated_tokens, _bytes_read(engine)
    start = time.perf_counter()
    while engine.has_work:
        engine.step()
    seconds = time.perf_counter() - start
    made, after = engine.stats().generated_tokens - before, _bytes_read(engine)
    return made / seconds, None if read is None or after is None else (after - read) / made


def _bytes_read(engine: Engine) -> int | None:
    from leadline.model.cpu import CpuModel

    model = engine.model_runner.model
    return model.bytes_read if isinstance(model, CpuModel) else None


def _measure(what: str, run: Callable[[], float], runs: int) -> Result:
    run()  # warms caches, allocators and, on a GPU, the kernels' own choices
    rates = [run() for _ in range(max(runs, 1))]
    return Result(what, statistics.median(rates), min(rates), max(rates), len(rates))


def _measure_decode(engine: Engine, what: str, run: Callable[[], tuple[float, float | None]], runs: int) -> Result:
    """The bandwidth is measured between the runs, since a shared machine's changes by the minute."""
    sizes: list[float] = []
    speeds: list[float] = []

    def rate() -> float:
        found, read = run()
        bandwidth = _bandwidth(engine)
        if read is not None and bandwidth is not None:
            sizes.append(read)
            speeds.append(bandwidth)
        return found

    result = _measure(what, rate, runs)
    return dataclasses.replace(result, bound=statistics.median(speeds) / statistics.median(sizes) if sizes else None)


def _bandwidth(engine: Engine) -> float | None:
    """Bytes a second that the kernels' threads read of the weights; None for weights that a cache may hold."""
    from leadline.model.cpu import CpuModel

    model = engine.model_runner.model
    return model.bandwidth() if isinstance(model, CpuModel) and model.weights.nbytes > CACHED_BYTES else None


# ---- showing -----------------------------------------------------------------------------------------------------


def _print(engine: Engine, results: list[Result], json_output: bool) -> None:
    where = _where(engine)
    if json_output:
        print(json.dumps({**where, "results": [dataclasses.asdict(result) for result in results]}, indent=2))
        return
    print(", ".join(f"{key} {value}" for key, value in where.items()), file=sys.stderr)
    for result in results:
        spread = f"{result.slowest:,.1f} to {result.fastest:,.1f} in {result.runs} runs"
        share = (
            f"; bound {result.bound:,.1f}, {result.tokens_per_second / result.bound:.0%} of it" if result.bound else ""
        )
        print(f"{result.what:<20} {result.tokens_per_second:>10,.1f} tokens/s   ({spread}{share})")


def _print_loads(where: dict[str, Any], found: dict[str, list[tuple[float, float]]], json_output: bool) -> None:
    if json_output:
        rows = {
            placement: [{"seconds": seconds, "tokens_per_second": rate} for seconds, rate in runs]
            for placement, runs in found.items()
        }
        print(json.dumps({**where, "results": rows}, indent=2))
        return
    print(", ".join(f"{key} {value}" for key, value in where.items()), file=sys.stderr)
    for placement, runs in found.items():
        seconds, rates = zip(*runs, strict=True)
        print(
            f"load, {placement:<5} {statistics.median(seconds):>8.2f} s ({min(seconds):.2f} to {max(seconds):.2f} in "
            f"{len(runs)} runs), then {statistics.median(rates):,.1f} tokens/s"
        )


def _where(engine: Engine) -> dict[str, Any]:
    """What the numbers were measured on."""
    import torch

    info = engine.info
    cuda = torch.cuda.get_device_name(info.device) if info.device.startswith("cuda") else None
    return {
        "model": info.model,
        "parameters": info.parameters,
        "active_parameters": info.active_parameters,
        "dtype": info.dtype,
        "device": cuda or platform.processor() or platform.machine(),
        "kernels": getattr(engine.model_runner.model, "isa", "PyTorch"),
        "threads": getattr(engine.model_runner.model, "threads", torch.get_num_threads()),
        "torch": torch.__version__,
    }
