"""Runs of several gloo processes: `python -m tests.train.processes FOLDER CORPUS TOKENIZER SCENARIO...`.

One process imports everything and forks each scenario's processes, since imports are most of what a tiny run costs. A
scenario is JSON: a name, the number of processes, and changes to the recipe. Its run is in FOLDER/NAME.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from leadline.model.balance import BalanceConfig
from leadline.model.dropping import DroppingConfig
from leadline.model.moe import MoE
from leadline.model.transformer import DeepseekV2
from leadline.parallel.layout import ParallelConfig
from leadline.parallel.world import processes
from leadline.train.config import TrainConfig
from leadline.train.data import PackedCorpus, held_out
from leadline.train.loop import HeldOut, Trainer
from tests.source import ROOT
from tests.train.runs import LENGTH, TINY, Without, recipe

MODEL = dataclasses.replace(
    TINY, n_routed_experts=8, topk_method="group_limited_greedy", n_group=4, topk_group=2, first_k_dense_replace=1
)
STEPS = 5
PASSES = 5  # of one row each: more than any number of processes divides


@dataclasses.dataclass(frozen=True)
class Scenario:
    name: str
    size: int
    data: str = "replicate"
    experts: int = 1
    steps: int = STEPS
    starve: bool = False  # the last expert gets no token
    dtype: str = "float32"
    recompute: str = "none"
    kill_at: int = 0  # a checkpoint after which all processes are killed


def config_of(scenario: Scenario, folder: Path, corpus: Path, tokenizer: Path) -> TrainConfig:
    changes: dict[str, Any] = {"dtype": scenario.dtype, "recompute": scenario.recompute}
    return recipe(
        folder / scenario.name,
        corpus,
        tokenizer,
        tokens=scenario.steps * PASSES * LENGTH,
        batch_tokens=PASSES * LENGTH,
        micro_batch_tokens=LENGTH,
        model=MODEL,
        balance=BalanceConfig(0.01, 0.05, 0.02),
        dropping=DroppingConfig(1.0, 0.2),
        parallel=ParallelConfig(scenario.data, scenario.experts),  # type: ignore[arg-type]
        save_every=1 if scenario.kill_at else 1000,
        eval_every=2,
        **changes,
    )


def train(scenario: Scenario, config: TrainConfig) -> None:
    """What one process does."""
    torch.set_num_threads(1)
    with processes() as world:
        model = DeepseekV2(config.model)
        model.initialise(torch.Generator().manual_seed(0))
        if scenario.starve:
            for module in model.modules():
                if isinstance(module, MoE):
                    module.gate = Without(module.gate, MODEL.n_routed_experts or 0)  # type: ignore[assignment]
        data = PackedCorpus(config.data, "train", LENGTH, 1, config.seed)
        batches, size = held_out(config.data, "valid", LENGTH, limit=200)
        assert Trainer(config, model, data, HeldOut(batches, size), world).run()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fork(scenario: Scenario, config: TrainConfig) -> bool:
    """The scenario in processes of its own; True when all ended well, or were killed as asked."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(scenario.size)}
    children = []
    for rank in range(scenario.size):
        child = os.fork()
        if child == 0:
            os.environ["RANK"] = str(rank)
            train(scenario, config)
            os._exit(0)  # a child that raises falls through to its traceback and status 1
        children.append(child)
    if scenario.kill_at:
        while not (config.out / f"checkpoints/step-{scenario.kill_at:08d}").exists():
            time.sleep(0.002)
        for child in children:
            os.kill(child, signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return bool(scenario.kill_at) or not any(codes)


def run(folder: Path, corpus: Path, tokenizer: Path, *scenarios: Scenario) -> dict[str, TrainConfig]:
    """Run the scenarios in order and give each one's recipe."""
    told = [json.dumps(dataclasses.asdict(scenario)) for scenario in scenarios]
    args = [sys.executable, "-m", "tests.train.processes", str(folder), str(corpus), str(tokenizer), *told]
    done = subprocess.run(args, capture_output=True, text=True, cwd=ROOT, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    return {scenario.name: config_of(scenario, folder, corpus, tokenizer) for scenario in scenarios}


def main() -> None:
    folder, corpus, tokenizer = map(Path, sys.argv[1:4])
    for told in sys.argv[4:]:
        scenario = Scenario(**json.loads(told))
        if not fork(scenario, config_of(scenario, folder, corpus, tokenizer)):
            sys.exit(f"scenario {scenario.name} failed")


if __name__ == "__main__":
    main()
