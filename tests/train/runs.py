"""A run in small: a corpus that a tiny model learns within seconds, recipes for it, and what a run left behind."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leadline.model.config import ModelConfig
from leadline.model.moe import Routing
from leadline.model.transformer import DeepseekV2
from leadline.tokenizer import Tokenizer
from leadline.train import checkpoints
from leadline.train.config import OptimizerConfig, TrainConfig
from leadline.train.corpus import sha256_of
from leadline.train.data import Batch, DataSource, PackedCorpus, held_out
from leadline.train.loop import HeldOut, Trainer
from leadline.train.run import RunConfig

TINY = ModelConfig(
    vocab_size=320,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=8,
    n_routed_experts=4,
    n_shared_experts=1,
    num_experts_per_tok=2,
    moe_intermediate_size=16,
    max_position_embeddings=256,
    initializer_range=0.05,
)
FAST = OptimizerConfig(peak_lr=1e-2, warmup_steps=2, decay_at=(0.8,))
LENGTH = 32


def sentences(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    marks = ["two", "five", "seven", "ten"]
    return [f"The lead line shows {draw.choice(marks)} fathoms, and {draw.choice(marks)} more." for _ in range(count)]


def encoded(tokenizer: Path, texts: Sequence[str]) -> list[list[int]]:
    reader = Tokenizer.from_folder(tokenizer)
    return [[reader.bos_id, *reader.encode(text), reader.eos_id] for text in texts]


def write_corpus(folder: Path, tokenizer: Path, **splits: list[list[int]]) -> Path:
    """The corpus builder's format from documents of ids; each counts as three bytes a token."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest: dict[str, Any] = {"splits": {}, "tokenizer": {"sha256": sha256_of([tokenizer / "tokenizer.json"])}}
    for split, documents in splits.items():
        ids = np.concatenate([np.array(document, dtype="<u2") for document in documents])
        ids.tofile(folder / f"{split}.bin")
        starts = np.cumsum([0, *map(len, documents)]).astype("<i8")
        np.save(folder / f"{split}.idx.npy", starts)
        manifest["splits"][split] = {"documents": len(documents), "tokens": len(ids), "bytes": 3 * len(ids)}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def write_chats(path: Path, chats: Sequence[Sequence[tuple[str, str]]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [{"messages": [{"role": role, "content": content} for role, content in chat]} for chat in chats]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def recipe(folder: Path, corpus: Path, tokenizer: Path, steps: int = 8, **changes: Any) -> TrainConfig:
    """`steps` steps of four rows in float32 on one thread, looked at and saved rarely."""
    config = TrainConfig(
        out=folder / "run",
        data=corpus,
        tokens=steps * 4 * LENGTH,
        tokenizer=tokenizer,
        model=TINY,
        sequence_length=LENGTH,
        batch_tokens=4 * LENGTH,
        micro_batch_tokens=4 * LENGTH,
        optimizer=FAST,
        dtype="float32",
        compile=False,
        threads=1,
        eval_every=1000,
        save_every=1000,
        peak_tflops=1.0,
    )
    return dataclasses.replace(config, **changes)


def source(config: TrainConfig) -> PackedCorpus:
    rows = config.micro_batch_tokens // config.sequence_length
    return PackedCorpus(config.data, "train", config.sequence_length, rows, config.seed)


def trainer(config: TrainConfig, data: DataSource | None = None) -> Trainer:
    """A trainer from random weights, measured on the first documents of the held-out split."""
    torch.set_num_threads(config.threads or torch.get_num_threads())  # as `prepare` does; the same bits need it
    model = DeepseekV2(config.model)
    model.initialise(torch.Generator().manual_seed(config.seed))
    batches, size = held_out(config.data, "valid", config.sequence_length, limit=200)
    return Trainer(config, model, data or source(config), HeldOut(batches, size))


class Interrupted:
    """A data source that asks the trainer to stop, as a signal does, while step `at` is being made."""

    def __init__(self, inner: DataSource, at: int) -> None:
        self.inner, self.at = inner, at
        self.trainer: Trainer | None = None

    def batch(self, index: int) -> Batch:
        if index == self.at:
            assert self.trainer is not None
            self.trainer.stopping.asked = True
        return self.inner.batch(index)


class Without(torch.nn.Module):
    """A gate that never chooses the last expert."""

    def __init__(self, gate: torch.nn.Module, experts: int) -> None:
        super().__init__()
        self.gate, self.last = gate, experts - 1

    def forward(self, x_TD: torch.Tensor) -> Routing:
        routing: Routing = self.gate(x_TD)
        others = routing.scores_TE[:, : self.last].topk(routing.expert_ids_TK.shape[1], dim=-1)
        return Routing(others.indices, others.values, routing.scores_TE)


def stop_at(config: TrainConfig, step: int) -> Trainer:
    """A run that was told to stop during step `step` (counted from 1) and saved after it."""
    data = Interrupted(source(config), step - 1)
    stopped = data.trainer = trainer(config, data)
    assert not stopped.run()
    assert stopped.step == step
    return stopped


def newest(config: TrainConfig | RunConfig) -> dict[str, torch.Tensor]:
    """The tensors of the newest checkpoint."""
    return checkpoints.load(checkpoints.complete(config.out / "checkpoints")[-1])[1]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def records(config: TrainConfig | RunConfig) -> list[dict[str, Any]]:
    lines = (config.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
