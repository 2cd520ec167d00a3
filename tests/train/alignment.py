"""Reward models and GRPO in small: a random model folder, questions and comparisons about depths, recipes for both."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from leadline.model.config import ModelConfig
from leadline.train.config import OptimizerConfig
from leadline.train.grpo import GrpoConfig, GrpoTrainer, make_trainer
from leadline.train.reward import RewardConfig
from leadline.train.rewards import Pair
from leadline.train.rollout import RolloutConfig
from tests.fixtures import make_model_folder
from tests.train.runs import TINY

FAST = OptimizerConfig(peak_lr=1e-2, warmup_steps=1, decay_at=())


def write_lines(path: Path, records: Iterable[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def write_questions(folder: Path, count: int = 12) -> Path:
    for name in ("train", "valid"):
        write_lines(
            folder / f"{name}.jsonl", [{"messages": user(f"How deep is {n}?"), "answer": str(n)} for n in range(count)]
        )
    return folder


def write_pairs(folder: Path, count: int = 24) -> Path:
    """The chosen answer tells a depth, the rejected one does not."""
    for name, first in (("train", 0), ("valid", count)):
        records = [
            {"messages": user(f"How deep is {n}?"), "chosen": f"It is {n} fathoms.", "rejected": "The line the line."}
            for n in range(first, first + count)
        ]
        write_lines(folder / f"{name}.jsonl", records)
    return folder


def make_init(folder: Path, config: ModelConfig = TINY, std: float = 0.2) -> Path:
    return make_model_folder(folder, config, dtype=torch.float32, shards=1, std=std)


def grpo_recipe(folder: Path, init: Path, **changes: Any) -> GrpoConfig:
    config = GrpoConfig(
        out=folder / "run",
        data=write_questions(folder / "questions"),
        init=init,
        steps=4,
        questions=3,
        group=4,
        max_tokens=12,
        micro_batch_tokens=96,
        optimizer=FAST,
        threads=1,
        eval_every=1000,
        save_every=1000,
        eval_questions=4,
        rollout=RolloutConfig(sequences=16, pass_tokens=64),
    )
    return dataclasses.replace(config, **changes)


def reward_recipe(folder: Path, init: Path, **changes: Any) -> RewardConfig:
    config = RewardConfig(
        out=folder / "reward",
        data=write_pairs(folder / "pairs"),
        init=init,
        steps=12,
        batch=8,
        micro_batch_tokens=128,
        optimizer=FAST,
        threads=1,
        eval_every=1000,
        save_every=1000,
    )
    return dataclasses.replace(config, **changes)


def low_ids(pairs: Sequence[Pair]) -> list[float]:
    """A toy reward: the share of an answer's tokens from the first half of the vocabulary."""
    return [sum(token < 150 for token in answer.ids) / len(answer.ids) for _, answer in pairs]


def toy_trainer(config: GrpoConfig) -> GrpoTrainer:
    trainer = make_trainer(config)
    trainer.rewards.parts = {"toy": (1.0, low_ids)}
    return trainer
