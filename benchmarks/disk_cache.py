"""A prompt resent after kill -9: its prefill against reading its pages from the disk, on a slice of the V2-Lite shape.

    python benchmarks/disk_cache.py --home DIR [--layers 8] [--tokens 8192]

Random weights in 4 bits. The first process computes the prompt and is killed by signal 9 a second after its first
token; the second is sent the same prompt. Both tell the seconds from the request to the first token.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

TEMPLATE = """\
# A prompt resent after kill -9

{tokens:,} tokens, {layers} layers of the V2-Lite shape in int4, cache in bf16 ({megabytes:,.0f} MB of pages), {cpu}.

| | seconds to the first token | tokens from the cache |
|---|---:|---:|
| first time | {cold:.2f} | 0 |
| resent to a new process | {warm:.2f} | {cached:,} |

{share:.1%} of the first time; the same first token: {same}. `python benchmarks/disk_cache.py` makes this table.
"""


def answer(folder: Path, pages: Path, tokens: int) -> None:
    """One process: load, ask, tell, wait to be killed."""
    import random

    from leadline.engine.load import load_engine
    from leadline.engine.types import EngineRequest, SamplingParams

    options: dict[str, Any] = {"max_model_len": tokens + 64, "max_num_seqs": 1}
    options |= {"disk_cache": True, "disk_cache_folder": pages, "disk_cache_size": "16GiB"}
    loaded = load_engine(folder, **options)
    engine = loaded.engine
    chance = random.Random(0)
    ids = tuple(chance.randrange(3, engine.info.vocab_size) for _ in range(tokens))
    started = time.perf_counter()
    engine.add(EngineRequest("prompt", ids, SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    seconds = time.perf_counter() - started
    last = outputs[-1]
    told = {"seconds": seconds, "cached": last.usage.cached_tokens, "token": last.token_ids[0]}
    print(json.dumps(told | {"bytes": engine.info.cache_bytes_per_token * tokens}), flush=True)
    time.sleep(60)


def run_once(folder: Path, pages: Path, tokens: int) -> dict[str, Any]:
    places = ["--home", str(folder), "--pages", str(pages), "--tokens", str(tokens)]
    command = [sys.executable, __file__, "--answer", *places]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ.copy()) as process:
        assert process.stdout is not None
        told: dict[str, Any] = json.loads(process.stdout.readline())
        time.sleep(1.0)
        process.send_signal(signal.SIGKILL)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--pages", type=Path)
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--output", type=Path, default=RESULTS / "disk_cache")
    options = parser.parse_args()
    if options.answer:
        answer(options.home, options.pages, options.tokens)
        return
    from machine import describe
    from peers_leadline import write_random_folder

    folder, pages = options.home / f"slice-{options.layers}", options.home / "pages"
    if not (folder / "leadline.json").is_file():
        write_random_folder(folder, options.layers)
    shutil.rmtree(pages, ignore_errors=True)
    cold, warm = (run_once(folder, pages, options.tokens) for _ in range(2))
    text = TEMPLATE.format(
        **describe(),
        tokens=options.tokens,
        layers=options.layers,
        megabytes=cold["bytes"] / 1e6,
        cold=cold["seconds"],
        warm=warm["seconds"],
        cached=warm["cached"],
        share=warm["seconds"] / cold["seconds"],
        same="yes" if cold["token"] == warm["token"] else "no",
    )
    options.output.with_suffix(".md").write_text(text, encoding="utf-8")
    result = {"machine": describe(), "cold": cold, "warm": warm, "layers": options.layers, "tokens": options.tokens}
    options.output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(pages, ignore_errors=True)


if __name__ == "__main__":
    main()
