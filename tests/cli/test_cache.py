"""`leadline cache` as a user types it, and which verbs keep pages on the disk without being asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leadline.cli import run
from leadline.cli.options import ModelOptions
from leadline.engine.store import PageStore, default_root
from tests.fixtures import SAMPLE_TEXT


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def listing(capsys: pytest.CaptureFixture[str]) -> dict:
    capsys.readouterr()
    assert run(["cache", "list", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_context_is_pinned_listed_unpinned_and_cleared(
    tiny_lite_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "course.txt"
    text.write_text(SAMPLE_TEXT, encoding="utf-8")
    pin = ["cache", "pin", "course", "--file", str(text), "--model", str(tiny_lite_folder), "--dtype", "float32"]
    assert run(pin) == 0
    assert "'course' is pinned" in capsys.readouterr().out
    listed = listing(capsys)
    assert listed["pinned"] == [{"name": "course", "model": "tiny-v2-lite", "tokens": 128}]
    assert [(each["model"], each["pages"]) for each in listed["models"]] == [("tiny-v2-lite", 2)]
    assert run(["cache", "list"]) == 0
    assert "pinned 'course': 128 tokens for tiny-v2-lite" in capsys.readouterr().out
    assert run(pin) == 2
    assert "pinned already" in capsys.readouterr().err
    assert run(["cache", "unpin", "course"]) == 0
    assert run(["cache", "unpin", "course"]) == 2
    assert run(["cache", "clear"]) == 0
    assert "2 pages were removed" in capsys.readouterr().out
    assert listing(capsys)["models"] == []


def test_what_cannot_be_pinned_is_one_line(
    tiny_lite_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short.txt").write_text("The lead", encoding="utf-8")
    (tmp_path / "bytes.txt").write_bytes(b"\xff")
    for name, message in (("short.txt", "64 at least"), ("bytes.txt", "UTF-8"), ("none.txt", "cannot be read")):
        arguments = ["cache", "pin", "x", "--file", str(tmp_path / name), "--model", str(tiny_lite_folder)]
        assert run(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_generate_keeps_pages_unless_told_not_to(tiny_lite_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", "--model", str(tiny_lite_folder), "--temperature", "0", "--max-tokens", "2", SAMPLE_TEXT]
    assert run([*arguments, "--disk-cache", "off"]) == 0
    assert not default_root().exists()
    assert run(arguments) == 0
    first = capsys.readouterr().out
    assert sum(each.pages for each in PageStore(default_root()).holdings()) > 0
    assert run(arguments) == 0
    assert first.endswith(capsys.readouterr().out)
    assert run([*arguments, "--disk-cache-size", "much"]) == 2
    assert "not a size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "single_owner", "kept"),
    [("auto", True, True), ("auto", False, False), ("on", False, True), ("off", True, False)],
)
def test_only_a_single_owner_has_it_by_default(
    word: str, single_owner: bool, kept: bool, tiny_lite_folder: Path
) -> None:
    options = ModelOptions(str(tiny_lite_folder), max_model_len=256, disk_cache=word)  # type: ignore[arg-type]
    assert (options.load(single_owner=single_owner).engine.disk is not None) is kept
