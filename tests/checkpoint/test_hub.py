"""Downloads against a hub on loopback: only what is needed, resumed, checked, and refused in one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from leadline.checkpoint import hub as hubs
from leadline.checkpoint.fewer_bits import packed_bytes
from leadline.checkpoint.hub import HuggingFace, ModelScope, is_wanted
from leadline.checkpoint.load import load_model
from leadline.checkpoint.machine import show_bytes
from leadline.checkpoint.source import Source
from leadline.cli import run
from leadline.errors import CheckpointError, ConnectionFailed, ModelNotFound, ResourceError
from tests.checkpoint.fake_hub import FakeHub, serving
from tests.fixtures import TINY_LITE, make_model_folder

FILES = {
    "LICENSE",
    "config.json",
    "generation_config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
SHARD = "model-00002-of-00002.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    from huggingface_hub import constants

    folder = make_model_folder(tmp_path / "repository", TINY_LITE)
    for name in ("modeling_deepseek.py", "pytorch_model.bin", "LICENSE", "README.md"):
        (folder / name).write_text("print('never fetched')")
    with serving(folder) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.endpoint)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        yield server


both = pytest.mark.parametrize("source", [HuggingFace, ModelScope])


@both
def test_only_what_a_model_is_made_of_is_fetched(hub: FakeHub, source: Callable[[str], Source]) -> None:
    folder = source("org/model").fetch()
    assert {path.name for path in folder.iterdir()} == FILES
    assert {name for name, _ in hub.requested} == FILES
    for name in FILES:
        assert (folder / name).read_bytes() == (hub.folder / name).read_bytes()
    hub.requested.clear()
    assert source("org/model").fetch() == folder
    assert hub.requested == []  # everything is there


@both
def test_the_configuration_alone(hub: FakeHub, source: Callable[[str], Source]) -> None:
    assert source("org/model").read_config().hidden_size == TINY_LITE.hidden_size
    assert {name for name, _ in hub.requested} == {"config.json"}


@pytest.mark.parametrize("name", ["org/model", "modelscope:org/model"])
def test_a_hub_id_loads(hub: FakeHub, name: str) -> None:
    loaded = load_model(name)
    assert loaded.name == "org/model"
    assert loaded.model.lm_head.weight.isfinite().all()


@both
def test_a_broken_connection_is_tried_again(hub: FakeHub, source: Callable[[str], Source]) -> None:
    source("org/model").read_config()
    hub.breaks = [20_000]
    folder = source("org/model").fetch()
    assert hub.breaks == []
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: (hub.folder / name).read_bytes() for name in FILES
    }


def test_a_later_run_continues_an_earlier_one(hub: FakeHub) -> None:
    ModelScope("org/model").read_config()
    hub.breaks = [1000] * hubs.ATTEMPTS  # each attempt brings a little more of the first shard
    with pytest.raises(ConnectionFailed, match="run the same again"):
        ModelScope("org/model").fetch()
    assert not list(ModelScope("org/model").folder.glob("*.safetensors"))
    broken = hub.requested[-1][0]
    hub.requested.clear()
    folder = ModelScope("org/model").fetch()
    assert hub.requested[0] == (broken, f"bytes={1000 * hubs.ATTEMPTS}-")
    assert {path.name for path in folder.iterdir()} == FILES


@both
def test_a_file_with_the_wrong_digest_is_removed(hub: FakeHub, source: Callable[[str], Source]) -> None:
    hub.lies[SHARD] = "0" * 64
    with pytest.raises(CheckpointError, match=f"{SHARD} arrived damaged, with the wrong sha256"):
        source("org/model").fetch()
    hub.lies.clear()
    hub.requested.clear()
    source("org/model").fetch()
    assert {name for name, _ in hub.requested} >= {SHARD}  # it did not stay in the cache


@both
def test_an_unknown_model(hub: FakeHub, source: Callable[[str], Source]) -> None:
    with pytest.raises(ModelNotFound, match="org/other"):
        source("org/other").read_config()


def no_waiting(seconds: float) -> None:
    raise AssertionError(f"waits {seconds} s for a hub that is not there")


@both
def test_a_hub_that_cannot_be_reached(
    hub: FakeHub, source: Callable[[str], Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    source("org/model").read_config()
    folder = source("org/model").fetch()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", no_waiting)
    assert source("org/model").fetch() == folder  # what is in the cache still works
    assert source("org/model").read_config() == load_model(folder).config
    with pytest.raises(ConnectionFailed, match="cannot be reached"):
        source("org/fresh").read_config()


@both
def test_a_disk_that_is_too_small_is_known_before_the_download(
    hub: FakeHub, source: Callable[[str], Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    source("org/model").read_config()
    usage = shutil.disk_usage(hub.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=50_000))
    hub.requested.clear()
    with pytest.raises(ResourceError, match="bytes of disk, 50,000 are free"):
        source("org/model").fetch()
    assert hub.requested == []


@pytest.mark.parametrize("isa", ["auto", "none"])
def test_planning_a_hub_model_fetches_its_configuration_only(
    hub: FakeHub, isa: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEADLINE_ISA", isa)
    assert run(["plan", "org/model", "--bandwidth", "20"]) == 0
    assert " to " in capsys.readouterr().out.rpartition("download")[2]
    assert run(["plan", "org/model", "--bandwidth", "20", "--quantize", "int4"]) == 0
    stays = show_bytes(packed_bytes(TINY_LITE, "int4")[0])
    assert f"shard by shard; {stays} stay in" in capsys.readouterr().out
    assert {name for name, _ in hub.requested} == {"config.json"}


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "model-00001-of-00055.safetensors", "LICENSE-MODEL"]
)
def test_wanted(name: str) -> None:
    assert is_wanted(name)


@pytest.mark.parametrize(
    "name",
    [
        "modeling_deepseek.py",
        "model.py",
        "LICENSE.py",
        "../config.json",
        "sub/model.safetensors",
        "pytorch_model.bin",
        "x.pkl",
    ],
)
def test_unwanted(name: str) -> None:
    assert not is_wanted(name)
