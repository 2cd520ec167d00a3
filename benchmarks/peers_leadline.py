"""leadline's side of peers.py: a random quantised folder of the V2-Lite shape, and its passes, timed.

python benchmarks/peers_leadline.py FOLDER '{"prefill": [128], "decode": [[128, 24, 1]], ...}'
"""

from __future__ import annotations

import dataclasses
import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leadline.checkpoint.pack import active_bits, bits_per_weight
from leadline.checkpoint.quantise import Report, write_folder
from leadline.checkpoint.quantised import FILE, checksums, create_file, load_block, read_manifest
from leadline.checkpoint.recipes import Recipe
from leadline.checkpoint.regions import regions, total_bytes
from leadline.checkpoint.source import EMBEDDED
from leadline.checkpoint.synthetic import fill_regions
from leadline.engine.bind import from_regions
from leadline.model.batch import ForwardBatch
from leadline.model.cache import PAGE_SIZE, PagedCache
from leadline.model.config import V2_LITE, ModelConfig
from leadline.model.cpu import CpuModel
from leadline.ops.cpu.mapped import settle


def write_random_folder(folder: Path, experts: int, recipe: Recipe) -> None:
    """A quantised folder of random weights, written region by region."""
    config = dataclasses.replace(V2_LITE, n_routed_experts=experts)
    found = regions(config, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    block = create_file(folder / FILE, found)
    fill_regions(found, block)
    report = Report(recipe, total_bytes(found), bits_per_weight(found), active_bits(found, config), {})
    write_folder(EMBEDDED, folder, config, report, checksums(block, found))


class Engine:
    """The model over its paged cache, as the engine runs it."""

    def __init__(self, folder: Path, case: dict[str, Any]) -> None:
        started = time.perf_counter()
        self.config = ModelConfig.from_folder(folder)
        weights, _ = load_block(folder, self.config, case.get("placement", "auto"))
        self.model = CpuModel(self.config, from_regions(weights), threads=case["threads"])
        self.load_seconds = time.perf_counter() - started
        settle()
        self.settled_seconds = time.perf_counter() - started
        self.each = -(-case["context"] // PAGE_SIZE)
        self.cache = PagedCache(self.config, max(self.each, case["sequences"] * 4))

    def step(self, ids_T: Tensor, done: list[int], lengths: list[int], tables: list[list[int]]) -> None:
        rows = torch.tensor(lengths).cumsum(0) - 1
        self.model(ids_T, ForwardBatch.paged(self.cache, done, lengths, tables, logit_rows=rows))

    def tables(self, sequences: int, length: int) -> list[list[int]]:
        pages = -(-length // PAGE_SIZE)
        return [list(range(s * pages, (s + 1) * pages)) for s in range(sequences)]

    def random_ids(self, count: int) -> Tensor:
        return torch.randint(3, self.config.vocab_size, (count,))

    def prefill(self, length: int, table: list[int]) -> None:
        for start in range(0, length, 512):
            count = min(512, length - start)
            self.step(self.random_ids(count), [start], [count], [table])

    def time_prefill(self, length: int) -> float:
        started = time.perf_counter()
        self.prefill(length, self.tables(1, length)[0])
        return length / (time.perf_counter() - started)

    def time_decode(self, context: int, tokens: int, sequences: int) -> tuple[float, float, float]:
        """All sequences' tokens a second, the median of the steps; prefill's before them; and the bytes that a step
        really read, on average: of the experts those that were met."""
        tables = self.tables(sequences, context + tokens)
        started = time.perf_counter()
        for table in tables:
            self.prefill(context, table)
        prefill = sequences * context / (time.perf_counter() - started)
        times, before = [], self.model.bytes_read
        for place in range(context, context + tokens):
            ids_T = self.random_ids(sequences)
            started = time.perf_counter()
            self.step(ids_T, [place] * sequences, [1] * sequences, tables)
            times.append(time.perf_counter() - started)
        return sequences / statistics.median(times), prefill, (self.model.bytes_read - before) / tokens


@torch.inference_mode()
def main() -> None:
    folder, case = Path(sys.argv[1]), json.loads(sys.argv[2])
    engine = Engine(folder, case)
    engine.time_prefill(16)  # warms the threads
    found, step_bytes, read = dict[str, float](), dict[str, float](), dict[str, float]()
    for length in case["prefill"]:
        found[f"prefill {length}"] = engine.time_prefill(length)
    for context, tokens, sequences in case["decode"]:
        name = f"decode {context}" if sequences == 1 else f"decode {context} x {sequences}"
        before = engine.model.bandwidth()
        rate, prefill, step_bytes[name] = engine.time_decode(context, tokens, sequences)
        read[name] = (before + engine.model.bandwidth()) / 2
        if sequences == 1:
            found.setdefault(f"prefill {context}", prefill)
        found[name] = rate
    rss = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    all_regions = regions(engine.config, read_manifest(folder, engine.config).recipe)
    result = {
        "tokens_per_second": found,
        "load_seconds": engine.load_seconds,
        "settled_seconds": engine.settled_seconds,
        "rss": rss,
        "isa": engine.model.isa,
        "active_bits": active_bits(all_regions, engine.config),
        "step_bytes": step_bytes,
        "read": read,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
