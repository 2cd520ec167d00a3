"""One engine of the llama.cpp family, timed through its C interface: run in its own environment by peers.py.

    python benchmarks/peers_llama.py llama_cpp FILE.gguf '{"threads": 2, ...}'

Prints one JSON line. What is timed: `llama_decode` of random ids, the choice of a token left out.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import random
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

VOCABULARY = 102400


def rss() -> int:
    """Bytes of this process now, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Engine:
    """A model and a context over the module's ctypes bindings."""

    def __init__(self, module: str, path: str, case: dict[str, Any]) -> None:
        self.c = importlib.import_module(module)
        c = self.c
        c.llama_backend_init()
        params = c.llama_model_default_params()
        params.n_gpu_layers = 0
        params.use_mmap = case["mmap"]
        started = time.perf_counter()
        load = getattr(c, "llama_model_load_from_file", None) or c.llama_load_model_from_file
        self.model = load(path.encode(), params)
        if not self.model:
            raise SystemExit(f"{module} cannot load {path}")
        context = c.llama_context_default_params()
        context.n_ctx = case["context"]
        context.n_batch = context.n_ubatch = 512
        context.n_threads = context.n_threads_batch = case["threads"]
        context.n_seq_max = case["sequences"]
        for name, value in case.get("options", {}).items():
            setattr(context, name, value)
        if hasattr(context, "kv_unified"):
            context.kv_unified = True  # else each sequence gets its share of the context only
        create = getattr(c, "llama_init_from_model", None) or c.llama_new_context_with_model
        self.context = create(self.model, context)
        if not self.context:
            raise SystemExit(f"{module} cannot make a context")
        self.load_seconds = time.perf_counter() - started
        self.chance = random.Random(0)

    def clear(self) -> None:
        if hasattr(self.c, "llama_memory_clear"):
            self.c.llama_memory_clear(self.c.llama_get_memory(self.context), True)
        else:
            self.c.llama_kv_cache_clear(self.context)

    def decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Rows of (token, position, sequence, wants logits)."""
        batch = self.c.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wanted
        code = self.c.llama_decode(self.context, batch)
        if hasattr(self.c, "llama_synchronize"):
            self.c.llama_synchronize(self.context)
        self.c.llama_batch_free(batch)
        if code:
            raise SystemExit(f"llama_decode answered {code}")

    def token(self) -> int:
        return self.chance.randrange(3, VOCABULARY)

    def prefill(self, length: int, sequence: int = 0) -> None:
        for start in range(0, length, 512):
            end = min(start + 512, length)
            self.decode([(self.token(), place, sequence, place == length - 1) for place in range(start, end)])

    def time_prefill(self, length: int) -> float:
        self.clear()
        started = time.perf_counter()
        self.prefill(length)
        return length / (time.perf_counter() - started)

    def time_decode(self, context: int, tokens: int, sequences: int) -> tuple[float, float]:
        """All sequences' tokens a second, the median of the steps; and prefill's before them."""
        self.clear()
        started = time.perf_counter()
        for sequence in range(sequences):
            self.prefill(context, sequence)
        prefill = sequences * context / (time.perf_counter() - started)
        times = []
        for step in range(tokens):
            rows = [(self.token(), context + step, sequence, True) for sequence in range(sequences)]
            started = time.perf_counter()
            self.decode(rows)
            times.append(time.perf_counter() - started)
        return sequences / statistics.median(times), prefill


def main() -> None:
    module, path, case = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    engine = Engine(module, path, case)
    engine.time_prefill(16)  # warms the threads
    found: dict[str, float] = {}
    for length in case["prefill"]:
        found[f"prefill {length}"] = engine.time_prefill(length)
    for context, tokens, sequences in case["decode"]:
        name = f"decode {context}" if sequences == 1 else f"decode {context} x {sequences}"
        rate, prefill = engine.time_decode(context, tokens, sequences)
        if sequences == 1:
            found.setdefault(f"prefill {context}", prefill)
        found[name] = rate
    print(json.dumps({"tokens_per_second": found, "load_seconds": engine.load_seconds, "rss": rss()}))
    sys.stdout.flush()
    ctypes.CDLL(None)._exit(0)  # freeing 9 GB politely takes seconds


if __name__ == "__main__":
    main()
