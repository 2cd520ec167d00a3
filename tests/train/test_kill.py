"""kill -9 at any moment: what bears a checkpoint's name is whole, and the run goes on as if nothing had happened."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from leadline.train import checkpoints
from tests.source import ROOT
from tests.train.alignment import grpo_recipe, make_init, toy_trainer
from tests.train.runs import newest, recipe, records, same, trainer

STEPS = 60
GRPO_STEPS = 24

# One process that has everything imported forks a run, lets it write some checkpoints (none: it is killed while it
# starts), kills it a moment later, wherever it then is, and forks it again.
KILLER = """
import os, signal, sys, time
from pathlib import Path
import torch
from tests.train.alignment import grpo_recipe, toy_trainer
from tests.train.runs import recipe, trainer
torch.set_num_threads(1)
kind, folder, *inputs = sys.argv[1], *map(Path, sys.argv[2:-2])
make, build = {"pretrain": (recipe, trainer), "grpo": (grpo_recipe, toy_trainer)}[kind]
config = make(folder, *inputs, steps=int(sys.argv[-2]), save_every=2)
build(config)  # imports what building one imports

def newest():
    return max([int(path.name[5:]) for path in (folder / "run/checkpoints").glob("step-*")], default=0)

for kill in sys.argv[-1].split():
    checkpoints, delay = kill.split("+")
    goal = newest() + 2 * int(checkpoints)
    child = os.fork()
    if child == 0:
        build(config).run()
        os._exit(0)
    running = True
    while running and newest() < goal:
        time.sleep(0.001)
        running = os.waitpid(child, os.WNOHANG) == (0, 0)
    time.sleep(float(delay))
    if running:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    print(newest(), flush=True)
"""


def kill(kind: str, folder: Path, inputs: list[Path], steps: int, times: int, seed: int, longest: float) -> None:
    """Start a run and kill it up to `longest` seconds after a checkpoint, `times` times. Every checkpoint is whole."""
    draw = random.Random(seed)
    kills = " ".join(f"{draw.randrange(3)}+{draw.uniform(0.0, longest)}" for _ in range(times))
    args = [kind, str(folder), *map(str, inputs), str(steps), kills]
    done = subprocess.run([sys.executable, "-c", KILLER, *args], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    seen = [int(line) for line in done.stdout.split()]
    assert len(seen) == times
    assert seen == sorted(seen)
    assert len(set(seen)) > 2, "the runs got somewhere between kills"
    for path in checkpoints.complete(folder / "run/checkpoints"):
        checkpoints.load(path)


def check(tmp_path: Path, corpus: Path, tokenizer: Path, times: int, seed: int) -> None:
    kill("pretrain", tmp_path, [corpus, tokenizer], STEPS, times, seed, longest=0.03)
    config = recipe(tmp_path, corpus, tokenizer, steps=STEPS, save_every=2)
    assert trainer(config).run()
    told = [record["step"] for record in records(config) if "loss" in record]
    assert told == list(range(1, STEPS + 1)), "every step once, no line torn"
    straight = recipe(tmp_path / "straight", corpus, tokenizer, steps=STEPS)
    assert trainer(straight).run()
    assert same(newest(config), newest(straight))


def test_runs_killed_ten_times_end_as_one_that_was_not(tmp_path: Path, corpus: Path, tokenizer: Path) -> None:
    check(tmp_path, corpus, tokenizer, times=10, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_runs_killed_often_end_as_one_that_was_not(tmp_path: Path, corpus: Path, tokenizer: Path, seed: int) -> None:
    check(tmp_path, corpus, tokenizer, times=10, seed=100 + seed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_grpo_killed_often_ends_as_one_that_was_not(tmp_path: Path) -> None:
    """While it samples, learns, or writes: rollouts come again as they were."""
    init = make_init(tmp_path / "init")
    kill("grpo", tmp_path, [init], GRPO_STEPS, times=8, seed=7, longest=0.3)
    config = grpo_recipe(tmp_path, init, steps=GRPO_STEPS, save_every=2)
    assert toy_trainer(config).run()
    told = [record["step"] for record in records(config) if "reward" in record]
    assert told == list(range(1, GRPO_STEPS + 1))
    straight = grpo_recipe(tmp_path / "straight", init, steps=GRPO_STEPS)
    torch.set_num_threads(1)
    assert toy_trainer(straight).run()
    assert same(newest(config), newest(straight))


# A process of its own, since compiled ops stay registered: a straight run, or one that stops and goes on.
COMPILED = """
import sys
from pathlib import Path
from leadline.ops import inductor
from tests.train.runs import recipe, stop_at, trainer
folder, corpus, tokenizer = map(Path, sys.argv[1:4])
assert inductor.enable()
wide = {"batch_tokens": 512, "micro_batch_tokens": 512, "tokens": 10 * 512}
config = recipe(folder, corpus, tokenizer, dtype="bfloat16", eval_every=3, **wide)
if sys.argv[4] == "stop":
    stop_at(config, 5)
else:
    assert trainer(config).run()
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_compiled_run_goes_on_to_the_bit_in_another_process(tmp_path: Path, corpus: Path, tokenizer: Path) -> None:
    """Kernels are chosen by the shapes that a process has met, and an evaluation meets others."""
    for name, parts in (("straight", ["run"]), ("resumed", ["stop", "run"])):
        for part in parts:
            args = [str(tmp_path / name), str(corpus), str(tokenizer), part]
            done = subprocess.run([sys.executable, "-c", COMPILED, *args], capture_output=True, text=True, cwd=ROOT)
            assert done.returncode == 0, done.stderr
    straight, resumed = (
        checkpoints.complete(tmp_path / name / "run/checkpoints")[-1] for name in ("straight", "resumed")
    )
    assert straight.name == resumed.name == "step-00000010"
    assert same(checkpoints.load(straight)[1], checkpoints.load(resumed)[1])
