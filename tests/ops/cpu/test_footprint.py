"""What an engine over a quantised folder takes: weights, cache, and buffers that do not grow with the weights.

The bound that is told is a tenth over weights and cache; at V2-Lite's size these buffers are less than a hundredth.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from leadline.checkpoint.quantise import Options, Report, quantise_folder, write_folder
from leadline.checkpoint.quantised import FILE, checksums, create_file
from leadline.checkpoint.regions import regions
from leadline.model.config import V2_LITE, ModelConfig

PROGRAM = """
import json, re, sys
from pathlib import Path
from leadline.checkpoint import quantised
from leadline.engine.load import load_engine
from leadline.engine.types import EngineRequest, SamplingParams
from leadline.ops.cpu.mapped import settle

quantised.COPIED_AT_ONCE_BYTES = 0

def resident():  # kB of this process's own: pages of a mapped file can be dropped
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def run(folder, length):
    engine = load_engine(folder, placement=sys.argv[3], max_num_seqs=1, max_model_len=length + 8).engine
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    engine.add(EngineRequest("one", tuple(range(2, length + 2)), params))
    while engine.has_work:
        engine.step()
    settle()
    return engine

small = run(sys.argv[1], 20)  # what is imported and set up once
before = resident()
large = run(sys.argv[2], 200)
cache = large.model_runner.cache.storage.nbytes
print(json.dumps({"taken": resident() - before, "cache": cache}))
"""

BUFFERS = 64 << 20
"""Bytes: a pass of 200 tokens and its attention in segments, tokenizer, threads."""

WIDE = dataclasses.replace(V2_LITE, num_hidden_layers=3, n_routed_experts=16, intermediate_size=2816)


@pytest.fixture(scope="module")
def wide_folder(tiny_lite_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers of V2-Lite's width in int4, every code and scale zero."""
    folder = tmp_path_factory.mktemp("memory") / "wide"
    folder.mkdir()
    vocabulary = ModelConfig.from_folder(tiny_lite_folder).vocab_size
    config = dataclasses.replace(WIDE, vocab_size=vocabulary)
    found = regions(config, "int4")
    block = create_file(folder / FILE, found)
    report = Report("int4", len(block), 0.0, 0.0, {})
    write_folder(tiny_lite_folder, folder, config, report, checksums(block, found))
    return folder


@pytest.mark.parametrize("placement", ["auto", "copy", "map"])
def test_an_engine_takes_weights_and_cache_and_little_more(
    placement: str, wide_folder: Path, tiny_lite_folder: Path, tmp_path: Path
) -> None:
    quantise_folder(tiny_lite_folder, tmp_path / "small", Options("int4", check=False))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "small"), str(wide_folder), placement]
    shown = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    weights = (wide_folder / FILE).stat().st_size
    own = weights + shown["cache"] if placement != "map" else shown["cache"]
    assert own < shown["taken"] < 1.01 * own + BUFFERS
