"""`leadline train` as a user types it: overrides, mistakes in one line, a signal that saves."""

from __future__ import annotations

import dataclasses
import errno
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors.torch import save_file

from leadline.cli import run
from leadline.train import checkpoints
from leadline.train.config import TrainConfig
from tests.source import ROOT
from tests.train.runs import newest, recipe, records, same, trainer, write_chats


def as_toml(config: TrainConfig) -> str:
    """The recipe in a file, every field of it written out."""
    return "\n".join(_lines(dataclasses.asdict(config))) + "\n"


def _lines(table: dict, prefix: str = "") -> list[str]:
    given = {name: value for name, value in table.items() if value is not None}
    plain = [f"{name} = {_value(value)}" for name, value in given.items() if not isinstance(value, dict)]
    for name, value in given.items():
        if isinstance(value, dict):
            plain += [f"[{prefix}{name}]", *_lines(value, f"{prefix}{name}.")]
    return plain


def _value(value: object) -> str:
    return json.dumps(str(value) if isinstance(value, Path) else value)


LONG_ROWS = "sequence_length=4096 micro_batch_tokens=4096 batch_tokens=4096"


@pytest.fixture
def config(tmp_path: Path, corpus: Path, tokenizer: Path) -> TrainConfig:
    return recipe(tmp_path, corpus, tokenizer, steps=4)


@pytest.fixture
def file(config: TrainConfig, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(as_toml(config))
    return path


def fails(capsys: pytest.CaptureFixture[str], args: Sequence[object]) -> str:
    """The one line that a mistake is answered with; exit code 2."""
    assert run(["train", *map(str, args)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("leadline: ")
    assert err.count("\n") == 1
    return err.removeprefix("leadline: ").strip()


def test_pretrain_then_sft(file: Path, config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "pretrain", str(file)]) == 0
    assert capsys.readouterr().out == f"complete: {config.out}/model\n"
    for split in ("train", "valid"):
        write_chats(tmp_path / f"chats/{split}.jsonl", [[("user", "?"), ("assistant", "ten")]] * 4)
    changes = {"out": tmp_path / "sft", "data": tmp_path / "chats", "init": config.out / "model"}
    overrides = [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
    assert run(["train", "sft", str(file), *overrides]) == 0
    assert capsys.readouterr().out == f"complete: {tmp_path}/sft/model\n"


def test_overrides_win_over_the_environment_and_that_over_the_file(
    file: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEADLINE_TRAIN_SEED", "5")
    monkeypatch.setenv("LEADLINE_TRAIN_BALANCE__EXPERT", "0.25")
    assert run(["train", "pretrain", str(file), "--set", "balance.expert=0.5", "--set", f"tokens={2 * 128}"]) == 0
    start, *rest = records(config)
    assert start["balance_expert"] == 0.5
    assert [record["step"] for record in rest if "loss" in record] == [1, 2]


def test_export_writes_the_newest_checkpoint(
    file: Path, config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trainer(config).run()
    assert run(["train", "export", str(file), str(tmp_path / "early")]) == 0
    assert capsys.readouterr().out == f"step 4: {tmp_path}/early\n"
    assert (tmp_path / "early/config.json").is_file()


def test_a_missing_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(capsys, ["pretrain", "none.toml"]) == "cannot read none.toml: No such file or directory"


def test_an_unknown_key_is_named_with_its_neighbour(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(capsys, ["pretrain", file, "--set", "optimizer.peak_rl=1"])
    assert "peak_rl" in line
    assert "did you mean 'optimizer.peak_lr'?" in line


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("tokens", "--set takes NAME=VALUE, not 'tokens'"),
        ("tokens=many", "tokens must be a whole number"),
        ("dtype=float16", "dtype must be one of 'float32', 'bfloat16'"),
        ("data=nowhere", "nowhere is not a corpus folder"),
        ("tokenizer=nowhere", "nowhere"),
        ("init=nowhere", "nowhere is not a model folder"),
        ("model.vocab_size=299", "the tokenizer has 300 tokens, the model 299 rows"),
        (f"{LONG_ROWS} model.max_position_embeddings=4096", "less than one row"),
        (LONG_ROWS, "sequence_length 4096 is more than the model's max_position_embeddings 256"),
        ("batch_tokens=100", "batch_tokens is not a multiple of micro_batch_tokens"),
        ("device=warp", "device 'warp' cannot be used here"),
        ("out=/dev/null/run", "out: cannot make the folder /dev/null/run"),
    ],
)
def test_a_mistake_is_one_line(file: Path, capsys: pytest.CaptureFixture[str], overrides: str, said: str) -> None:
    sets = [part for item in overrides.split() for part in ("--set", item)]
    assert said in fails(capsys, ["pretrain", file, *sets])


def test_another_recipe_in_the_same_folder(file: Path, config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert trainer(config).run()
    capsys.readouterr()
    assert run(["train", "pretrain", str(file), "--set", "optimizer.clip=2"]) == 2
    assert "was written under another recipe" in capsys.readouterr().err.splitlines()[-1]


def test_numbers_that_are_none_are_one_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "pretrain", str(file), "--set", "optimizer.peak_lr=1e38"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("leadline: step 2: loss nan")


def test_a_full_disk_is_one_line_and_the_older_checkpoint_goes_on(
    file: Path, config: TrainConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: dict, path: Path) -> None:
        if "00000004" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", full)
    args = ["train", "pretrain", str(file), "--set", "save_every=2"]
    assert run(args) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("leadline: ")
    assert "step-00000004 was not written (the disk is full: No space left on device)" in last
    assert last.endswith("the newest complete checkpoint is step-00000002")
    monkeypatch.undo()
    assert run(["train", "pretrain", str(file)]) == 0
    assert [record["step"] for record in records(config) if "loss" in record] == [1, 2, 3, 4]


@pytest.mark.parametrize("verb", ["pretrain", "sft", "export", "data"])
def test_help_says_what_a_verb_takes(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert "RECIPE" in text
    assert "TOML" in text


@pytest.mark.e2e
def test_a_signal_saves_and_the_same_command_goes_on(config: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, tokens=100 * 128, log_every=1)
    file = tmp_path / "recipe.toml"
    file.write_text(as_toml(config))
    command = [sys.executable, "-m", "leadline", "train", "pretrain", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("step 3/"):
            process.send_signal(signal.SIGTERM)
    out = process.communicate()[0]
    assert process.returncode == 130, said
    assert out == "stopped and saved; the same command goes on from here\n"
    assert not any("Traceback" in line for line in said)
    stopped = len([record for record in records(config) if "loss" in record])
    assert 3 <= stopped < 100
    assert run(["train", "pretrain", str(file)]) == 0
    assert [record["step"] for record in records(config) if "loss" in record] == list(range(1, 101))
    straight = dataclasses.replace(config, out=tmp_path / "straight")
    assert trainer(straight).run()
    assert same(newest(config), newest(straight))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_torchrun_starts_two_processes_that_export_one_model(config: TrainConfig, file: Path, tmp_path: Path) -> None:
    alone = dataclasses.replace(config, out=tmp_path / "alone")
    assert trainer(alone).run()
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "leadline"]
    layout = ["--set", "parallel.data=shard", "--set", "parallel.experts=2"]
    done = subprocess.run(
        [*start, "train", "pretrain", str(file), *layout], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"complete: {config.out}/model\n"
    losses = [[record["loss"] for record in records(each) if "loss" in record] for each in (alone, config)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert (config.out / "model/config.json").is_file()
