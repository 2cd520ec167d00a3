"""Pulling a model in fewer bits from a hub on loopback: one shard at a time, continued after any end, checked."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from leadline.checkpoint import pull as pulling
from leadline.checkpoint.hub import HuggingFace, ModelScope
from leadline.checkpoint.load import load_model
from leadline.checkpoint.names import tensor_shapes
from leadline.checkpoint.pull import pull, quantised_folder
from leadline.checkpoint.quantise import Options, quantise_folder
from leadline.checkpoint.quantised import FILE
from leadline.checkpoint.regions import regions, total_bytes
from leadline.cli import run
from leadline.errors import CheckpointError, Conflict, ConnectionFailed, ResourceError
from leadline.model.config import V2_LITE, ModelConfig
from tests.checkpoint.fake_hub import FakeHub, serving
from tests.fixtures import TINY_LITE, make_model_folder, write_json

SHARDS = 5


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    folder = make_model_folder(tmp_path / "repository", TINY_LITE, shards=SHARDS)
    (folder / "LICENSE").write_text("do what you like")
    (folder / "modeling_deepseek.py").write_text("print('never fetched')")
    with serving(folder) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.endpoint)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        yield server


both = pytest.mark.parametrize("source", [HuggingFace, ModelScope])


def shards_requested(hub: FakeHub) -> list[str]:
    return [name for name, _ in hub.requested if name.endswith(".safetensors")]


@both
def test_the_result_is_that_of_quantising_the_whole_folder(hub: FakeHub, source: Any, tmp_path: Path) -> None:
    config = ModelConfig.from_folder(hub.folder)
    target = pull(source("org/model"), config, "int4", tmp_path / "pulled")
    quantise_folder(hub.folder, tmp_path / "whole", Options("int4", check=False))
    assert {path.name for path in target.iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}
    assert (target / FILE).read_bytes() == (tmp_path / "whole" / FILE).read_bytes()
    assert (target / "leadline.json").read_text() == (tmp_path / "whole" / "leadline.json").read_text()
    assert load_model(target, dtype="float32").config == config
    assert len(shards_requested(hub)) == SHARDS
    hub.requested.clear()
    assert pull(source("org/model"), config, "int4", tmp_path / "pulled") == target
    assert hub.requested == []


def test_the_disk_never_holds_two_shards(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at whenever a shard has come or has been quantised."""
    most = 0
    pack = pulling._pack_shard

    def watched(path: Path, *rest: Any) -> None:
        nonlocal most
        files = [each for each in path.parent.iterdir() if each.suffix in (".safetensors", ".part")]
        held = [each for each in files if each.name != FILE]
        most = max(most, len(held))
        pack(path, *rest)

    monkeypatch.setattr(pulling, "_pack_shard", watched)
    target = pull(HuggingFace("org/model"), TINY_LITE, "int8", tmp_path / "pulled")
    assert most == 1
    assert [path.name for path in target.glob("*.safetensors")] == [FILE]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("dies_at", [0, 2, SHARDS - 1])
def test_a_run_that_ended_anywhere_is_continued(
    dies_at: int, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack, count = pulling._pack_shard, 0

    def dying(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == dies_at + 1:
            raise KeyboardInterrupt
        pack(*arguments)

    monkeypatch.setattr(pulling, "_pack_shard", dying)
    with pytest.raises(KeyboardInterrupt):
        pull(HuggingFace("org/model"), TINY_LITE, "int4", tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()
    before = shards_requested(hub)
    monkeypatch.setattr(pulling, "_pack_shard", pack)
    target = pull(HuggingFace("org/model"), TINY_LITE, "int4", tmp_path / "pulled")
    assert len(before) == dies_at + 1
    assert len(shards_requested(hub)) == SHARDS, "no shard was fetched twice"
    quantise_folder(hub.folder, tmp_path / "whole", Options("int4", check=False))
    assert (target / FILE).read_bytes() == (tmp_path / "whole" / FILE).read_bytes()
    assert (target / "leadline.json").read_text() == (tmp_path / "whole" / "leadline.json").read_text()


def test_a_broken_download_goes_on_where_it_was(hub: FakeHub, tmp_path: Path) -> None:
    hub.breaks = [3000, 5000]
    pull(HuggingFace("org/model"), TINY_LITE, "int8", tmp_path / "pulled")
    assert [span for _, span in hub.requested if span]


def test_another_recipe_or_revision_starts_anew(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pulling, "checksums", dying)
        with pytest.raises(KeyboardInterrupt):
            pull(HuggingFace("org/model"), TINY_LITE, "int4", tmp_path / "pulled")
    hub.requested.clear()
    target = pull(HuggingFace("org/model"), TINY_LITE, "int8", tmp_path / "pulled")
    assert len(shards_requested(hub)) == SHARDS
    assert json.loads((target / "leadline.json").read_text())["recipe"] == "int8"


def test_what_is_wrong_is_one_error_and_nothing_under_the_name(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "pulled"
    hub.lies["model-00003-of-00005.safetensors"] = "0" * 64
    with pytest.raises(CheckpointError, match="arrived damaged"):
        pull(HuggingFace("org/model"), TINY_LITE, "int4", target)
    hub.lies.clear()
    missing = hub.folder / "model-00003-of-00005.safetensors"
    missing.rename(tmp_path / "away")
    with pytest.raises(CheckpointError, match="lacks model"):
        pull(HuggingFace("org/model"), TINY_LITE, "int4", target)
    (tmp_path / "away").rename(missing)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
        hub.requested.clear()
        with pytest.raises(ResourceError, match="1,000 are free"):
            pull(HuggingFace("org/model"), TINY_LITE, "int4", target)
        assert shards_requested(hub) == []
    hub.breaks = [10] * 20
    with pytest.raises(ConnectionFailed, match="broke off"):
        pull(HuggingFace("org/model"), TINY_LITE, "int4", target)
    hub.breaks = []
    assert not target.exists()
    assert pull(HuggingFace("org/model"), TINY_LITE, "int4", target) == target
    (tmp_path / "mine").mkdir()
    with pytest.raises(CheckpointError, match="is there already"):
        pull(HuggingFace("org/model"), TINY_LITE, "int4", tmp_path / "mine")


def test_two_at_once_do_not_write_one_file(hub: FakeHub, tmp_path: Path) -> None:
    work = tmp_path / ".pulled.partial"
    work.mkdir()
    with (work / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match="another process"):
            pull(HuggingFace("org/model"), TINY_LITE, "int4", tmp_path / "pulled")


def test_the_verb_says_first_what_it_takes(hub: FakeHub, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["pull", "org/model", "--quantize", "int4", "--dry-run", "--json"]) == 0
    needs = json.loads(capsys.readouterr().out)
    size = total_bytes(regions(ModelConfig.from_folder(hub.folder), "int4"))
    largest = max(path.stat().st_size for path in hub.folder.glob("*.safetensors"))
    assert needs["disk"] == size + largest
    assert needs["memory"] > size
    assert needs["licence"] == "not stated"
    assert needs["tokens_per_second"] > 0
    assert shards_requested(hub) == []
    assert run(["pull", "org/model", "--quantize", "int4"]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == str(quantised_folder("org/model", "int4"))
    for word in ("licence", "disk", "memory", "tokens/s"):
        assert word in captured.err
    assert run(["pull", str(hub.folder)]) == 2
    assert run(["pull", "org/model", "--output", str(tmp_path / "x")]) == 2
    assert "--output goes with --quantize" in capsys.readouterr().err


def test_a_hub_id_with_quantize_is_pulled_and_found_again(hub: FakeHub) -> None:
    loaded = load_model("org/model", quantize="int4", dtype="float32")
    assert loaded.folder == quantised_folder("org/model", "int4")
    assert loaded.name == "org/model"
    hub.requested.clear()
    hub.shutdown()
    assert load_model("org/model", quantize="int4", dtype="float32").folder == loaded.folder


PROGRAM = """
import json, re, sys, threading, time
from pathlib import Path
from leadline.checkpoint.hub import ModelScope
from leadline.checkpoint.pull import pull
from leadline.model.config import V2_LITE, ModelConfig
def read(word):
    return int(re.search(word + r":\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) << 10
import torch
torch.zeros(1)
config = ModelConfig.from_folder(Path(sys.argv[1]))
before, peak, most = read("RssAnon"), 0, 0
def watch():
    global peak, most
    while True:
        peak = max(peak, read("RssAnon") - before)
        held = [p.stat().st_blocks * 512 for p in Path(sys.argv[2]).glob(".pulled.partial/*") if p.is_file()]
        most = max(most, sum(held))
        time.sleep(0.02)
threading.Thread(target=watch, daemon=True).start()
pull(ModelScope("org/model"), config, "int4", Path(sys.argv[2]) / "pulled")
print(json.dumps([peak, most]))
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_full_width_model_takes_no_more_than_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers of V2-Lite, 2.3 GB in five shards: memory is a tensor's, disk is the result and one shard."""
    config = dataclasses.replace(V2_LITE, num_hidden_layers=2)
    folder = tmp_path / "repository"
    make_model_folder(folder, config, shards=0)
    names = list(tensor_shapes(config))
    weight_map: dict[str, str] = {}
    for shard in range(5):
        file = f"model-{shard + 1:05}-of-00005.safetensors"
        part = names[shard * len(names) // 5 : (shard + 1) * len(names) // 5]
        shapes = tensor_shapes(config)
        save_file({name: torch.randn(shapes[name]).mul_(0.02).bfloat16() for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    largest_shard = max(path.stat().st_size for path in folder.glob("*.safetensors"))
    with serving(folder) as server:
        environment = {**os.environ, "MODELSCOPE_ENDPOINT": server.endpoint, "OMP_NUM_THREADS": "2"}
        command = [sys.executable, "-c", PROGRAM, str(folder), str(tmp_path)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    memory, disk = json.loads(done.stdout)
    size = total_bytes(regions(config, "int4"))
    layer = max(config.parameters() // 2, config.vocab_size * config.hidden_size) * 4
    assert memory < layer * 1.2
    assert disk < (size + largest_shard) * 1.02
    assert (tmp_path / "pulled" / FILE).stat().st_size < size + 8192
