"""Pre-training, its extension to long contexts and supervised fine-tuning: one loop (sections 3.1, 3.1.4, 4.1)."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch

from leadline.checkpoint.save import save_model
from leadline.checkpoint.weights import read_network
from leadline.errors import CheckpointError, ConfigError, DataError
from leadline.model.config import ModelConfig
from leadline.model.transformer import DeepseekV2
from leadline.parallel.world import World, processes
from leadline.tokenizer import Tokenizer
from leadline.train import checkpoints
from leadline.train.config import TrainConfig
from leadline.train.conversations import Conversations
from leadline.train.data import PackedCorpus, check_tokenizer, held_out
from leadline.train.loop import HeldOut, Trainer, cast, prepare
from leadline.train.metrics import warn
from leadline.train.optim import MasterAdamW

GENERATION = {"temperature": 0.7, "top_p": 0.95}


def pretrain(config: TrainConfig) -> bool:
    """Next-token prediction over a packed corpus; True when complete. The model is exported to OUT/model."""
    _refuse_yarn(config)
    return _on_corpus(config)


def extend(config: TrainConfig) -> bool:
    """A longer reach by YaRN (section 3.1.4): pre-training goes on from `init`, with new frequencies and longer
    rows."""
    if config.init is None:
        raise ConfigError("extend starts from a trained model: set `init`, a model folder")
    if config.yarn is None:
        raise ConfigError("extend needs to know how far: set yarn.factor")
    return _on_corpus(config)


def _refuse_yarn(config: TrainConfig) -> None:
    if config.yarn is not None:
        raise ConfigError("yarn belongs to `extend`; other stages keep the reach that the model has")


def _on_corpus(config: TrainConfig) -> bool:
    if config.epochs:
        raise ConfigError("epochs belongs to `sft`; a corpus is counted in tokens")
    with processes(config.device) as world:
        prepare(config)
        model = starting_model(config)
        check_tokenizer(config.data, tokenizer_folder(config))
        rows = config.micro_batch_tokens // config.sequence_length
        data = PackedCorpus(config.data, "train", config.sequence_length, rows, config.seed)
        batches, size = held_out(config.data, "valid", config.sequence_length, config.eval_tokens)
        return _run(config, model, data, HeldOut(batches, size), world)


def sft(config: TrainConfig) -> bool:
    """Loss on the answers of conversations only, from the model in `init`."""
    if config.init is None:
        raise ConfigError("sft starts from a trained model: set `init`, a model folder")
    _refuse_yarn(config)
    with processes(config.device) as world:
        prepare(config)
        model = starting_model(config)
        tokenizer = Tokenizer.from_folder(tokenizer_folder(config))
        length, tokens = config.sequence_length, config.micro_batch_tokens
        train, valid = (
            Conversations(config.data / f"{split}.jsonl", tokenizer, length, tokens, config.seed)
            for split in ("train", "valid")
        )
        for split, data in (("train", train), ("valid", valid)):
            if data.dropped and world.is_first:
                warn(f"{split}.jsonl: {data.dropped} conversations of over {length} tokens left out")
        return _run(_in_tokens(config, train), model, train, HeldOut(valid.all()), world)


def _in_tokens(config: TrainConfig, train: Conversations) -> TrainConfig:
    """The recipe with its epochs counted in tokens: whole passes, each of about `micro_batch_tokens`."""
    if not config.epochs:
        return config
    passes = round(config.epochs * train.batches_per_epoch)
    return dataclasses.replace(config, tokens=max(1, passes) * config.micro_batch_tokens, epochs=0.0)


def _run(
    config: TrainConfig, model: DeepseekV2, data: PackedCorpus | Conversations, held: HeldOut, world: World
) -> bool:
    trainer = Trainer(config, model, data, held, world)
    if world.is_first:
        print(f"{data.describe()}; {config.steps:,} steps of {config.batch_tokens:,} tokens", file=sys.stderr)
    complete = trainer.run()
    if complete and world.is_first:
        if world.size == 1:
            export(trainer.model, config, config.out / "model")
        else:  # this process has a part of the model; the checkpoint has all of it
            export_newest(config, config.out / "model")
    return complete


def export_newest(config: TrainConfig, folder: Path) -> int:
    """Write the newest checkpoint of a run, finished or not, as a model folder; the step it is from."""
    config.check()
    found = checkpoints.complete(config.out / "checkpoints")
    if not found:
        raise DataError(f"{config.out} holds no checkpoint")
    state, tensors = checkpoints.load(found[-1])
    model = cast(starting_model(config), getattr(torch, config.dtype))
    MasterAdamW(model, config.optimizer).load(tensors)
    export(model, config, folder)
    return state.step


def tokenizer_folder(config: TrainConfig) -> Path:
    folder = config.tokenizer or config.init
    assert folder is not None  # TrainConfig.check
    return folder


def starting_model(config: TrainConfig) -> DeepseekV2:
    """Random weights, or those of `init`, in float32."""
    tokenizer = Tokenizer.from_folder(tokenizer_folder(config))
    shape = config.model if config.init is None else ModelConfig.from_folder(config.init)
    if config.yarn is not None:
        shape = config.yarn.extended(shape)
    _check_shape(config, shape, tokenizer.vocab_size)
    if config.init is not None:
        return read_network(DeepseekV2, config.init, shape=shape, dtype=torch.float32).requires_grad_(True)
    special = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "dtype": config.dtype}
    model = DeepseekV2(dataclasses.replace(shape, **special))  # type: ignore[arg-type]
    model.initialise(torch.Generator().manual_seed(config.seed))
    return model


def _check_shape(config: TrainConfig, shape: ModelConfig, vocab_size: int) -> None:
    try:
        shape.validate()
    except CheckpointError as error:
        raise ConfigError(f"model: {error.message}") from None
    if vocab_size > shape.vocab_size:
        raise ConfigError(f"the tokenizer has {vocab_size} tokens, the model {shape.vocab_size} rows")
    if config.sequence_length > shape.max_position_embeddings:
        raise ConfigError(
            f"sequence_length {config.sequence_length} is more than the model's max_position_embeddings "
            f"{shape.max_position_embeddings}"
        )


def export(model: DeepseekV2, config: TrainConfig, folder: Path) -> None:
    """An official-format folder in the training dtype."""
    dtype = getattr(torch, config.dtype)
    save_model(model, folder, dtype=dtype, tokenizer_from=tokenizer_folder(config), generation=GENERATION)
