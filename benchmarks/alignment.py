"""What GRPO and fine-tuning alone make of sums, by what they cost: each checkpoint of a run is asked the held-out sums.

    python benchmarks/alignment.py GRPO.toml [SFT.toml ...] --corpus CORPUS

writes benchmarks/results/alignment.json and docs/pictures/sums-compute.png. A run is named by its recipe; keep all its
checkpoints (`--set keep_checkpoints=99`). Cost, in operations for each parameter: 2 a token that is sampled or shown
to the reference, 6 a token that is trained on. What is left out, the optimiser and evaluations, is small.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from machine import describe
from matplotlib.figure import Figure

from leadline.config import load
from leadline.eval.task import Setup
from leadline.eval.tasks import sums
from leadline.tokenizer import Tokenizer
from leadline.train import checkpoints
from leadline.train.config import OptimizerConfig, TrainConfig
from leadline.train.data import held_out
from leadline.train.grpo import EVAL_ROW, GrpoConfig, bits_per_byte, language_model
from leadline.train.loop import cast
from leadline.train.optim import MasterAdamW
from leadline.train.records import read_records
from leadline.train.rollout import RolloutConfig, Rollouts

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "alignment.json"
PICTURE = HERE.parent / "docs" / "pictures" / "sums-compute.png"
LONGEST = 192  # of a question and its answer, tokens


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """`tensors` None stands for the model that the run started from."""

    run: str
    step: int
    operations: float  # for each parameter
    init: Path
    tensors: Path | None


def runs(recipe: Path) -> Iterator[Checkpoint]:
    """The start and every checkpoint of a run, with what it had cost by then."""
    is_grpo = "group" in tomllib.loads(recipe.read_text())
    config: GrpoConfig | TrainConfig = load(GrpoConfig, recipe) if is_grpo else load(TrainConfig, recipe)
    assert config.init is not None
    yield Checkpoint(recipe.stem, 0, 0.0, config.init, None)
    costs = grpo_costs(config) if isinstance(config, GrpoConfig) else sft_costs(config)
    for path in checkpoints.complete(config.out / "checkpoints"):
        step = int(path.name.removeprefix("step-"))
        yield Checkpoint(recipe.stem, step, costs[step], config.init, path)


def sft_costs(config: TrainConfig) -> dict[int, float]:
    steps = [record for record in read_records(config.out / "metrics.jsonl") if "loss" in record]
    return {record["step"]: 6.0 * record["tokens"] for record in steps}


def grpo_costs(config: GrpoConfig) -> dict[int, float]:
    """`tokens` of a record are those learned from, so far; `length` is what was sampled, an answer."""
    tokenizer = Tokenizer.from_folder(config.init)
    lines = (config.data / "train.jsonl").read_text(encoding="utf-8").splitlines()[:1000]
    prompt = sum(len(tokenizer.render(json.loads(line)["messages"])) for line in lines) / len(lines)
    reference = 2.0 if config.kl else 0.0
    sampled, costs = 0.0, {}
    for record in read_records(config.out / "metrics.jsonl"):
        if "reward" in record:
            sampled += config.questions * config.group * (prompt + record["length"])
            costs[record["step"]] = 2.0 * sampled + (6.0 + reference) * record["tokens"]
    return costs


def measure(each: Checkpoint, corpus: Path, eval_tokens: int) -> dict[str, Any]:
    """Greedy answers by the C++ kernels, in bf16, as the model ships."""
    model = cast(language_model(each.init), torch.bfloat16).eval()
    if each.tensors is not None:
        MasterAdamW(model, OptimizerConfig()).load(checkpoints.load(each.tensors)[1])
    rollouts = Rollouts(model, Tokenizer.from_folder(each.init), RolloutConfig(kernels=True), LONGEST)
    items = sums.TASK.load(Setup(source=None, shots=0))  # type: ignore[arg-type]  # it needs no data
    answers = rollouts.greedy([[{"role": "user", "content": item.prompt}] for item in items], 96)
    marks = defaultdict(list)
    for item, answer in zip(items, answers, strict=True):
        marks[item.group].append(sums.mark(item, answer.text))
    found = held_out(corpus, "valid", EVAL_ROW, eval_tokens)
    return {
        "run": each.run,
        "step": each.step,
        "operations": each.operations,
        "right": sum(map(sum, marks.values())) / len(items),
        **{group: sum(values) / len(values) for group, values in sorted(marks.items())},
        "worked": sum(answer.text.count("=") > 1 for answer in answers) / len(items),
        "bits_per_byte": bits_per_byte(model, *found),
    }


def draw(points: list[dict[str, Any]]) -> None:
    figure = Figure(figsize=(9, 6), layout="constrained")
    scores, prices = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    for name in dict.fromkeys(point["run"] for point in points):
        mine = [point for point in points if point["run"] == name]
        cost = [point["operations"] / 1e6 for point in mine]
        scores.plot(cost, [100 * point["right"] for point in mine], "o-", label=name)
        prices.plot(cost, [point["bits_per_byte"] for point in mine], "o-", label=name)
    scores.set(ylabel="1,000 held-out sums, % right")
    scores.legend()
    prices.set(ylabel="bits per byte", xlabel="million operations a parameter")
    figure.savefig(PICTURE, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", type=Path)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--eval-tokens", type=int, default=10_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    points = []
    for each in (checkpoint for recipe in args.recipes for checkpoint in runs(recipe)):
        points.append(measure(each, args.corpus, args.eval_tokens))
        print(json.dumps(points[-1]), flush=True)
        RESULTS.write_text(json.dumps({"machine": describe(), "results": points}, indent=2) + "\n")
    draw(points)


if __name__ == "__main__":
    main()
