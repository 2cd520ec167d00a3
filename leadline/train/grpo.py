"""GRPO (section 4.2, eq. 32-34): sample a group of answers a question, reward them, move towards the better ones.

A step: G answers to each of its questions from the engine (`rollout.py`) -> rewards (`rewards.py`) -> advantages within
each group -> for each update, passes of packed answers with the experts that the rollout met -> log-probabilities ->
the clipped objective with its distance to the reference (`objective.py`) -> AdamW.

The old policy's log-probabilities are those that the engine recorded while it sampled. What they differ from the
trainer's before the first update is in every record (`logprob_gap`): the same experts are forced, so only the order of
sums differs, the paged absorbed form there and the packed expanded form here.

Shapes: T tokens of a pass, R tokens of answers in it, O answers, Q questions, G answers a question.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from leadline.checkpoint.save import save_model
from leadline.checkpoint.weights import read_network
from leadline.errors import ConfigError
from leadline.model.batch import ForwardBatch
from leadline.model.transformer import DeepseekV2
from leadline.tokenizer import Tokenizer
from leadline.train.data import Batch, check_tokenizer, held_out
from leadline.train.loop import cast, prepare
from leadline.train.loss import cross_entropy
from leadline.train.metrics import warn
from leadline.train.objective import Level, Terms, advantages, terms
from leadline.train.packs import Pack, Sample, logprobs, make_pack, packs, uneven
from leadline.train.questions import Questions
from leadline.train.rewards import Rewards, RewardsConfig
from leadline.train.rollout import Answer, RolloutConfig, Rollouts
from leadline.train.run import Run, RunConfig

EVAL_ROW = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrpoConfig(RunConfig):
    """`group` answers to each of `questions` a step; `updates` optimiser steps go over all of them `passes` times.

    `clip` and `kl` are eq. 32's epsilon and beta; `reference` None is `init`. With `skip_even` a step learns only from
    groups whose answers are not all worth the same: the others push nowhere but back to the reference. With `corpus`, a
    folder that `train data` made, held-out bits per byte are told too.
    """

    questions: int = 16
    group: int = 16
    skip_even: bool = False
    max_tokens: int = 256  # of an answer
    clip: float = 0.2
    kl: float = 0.04
    level: Level = "token"
    updates: int = 1
    passes: int = 1
    reference: Path | None = None
    rewards: RewardsConfig = RewardsConfig()
    rollout: RolloutConfig = RolloutConfig()
    eval_questions: int = 256
    corpus: Path | None = None
    eval_tokens: int = 65536

    def check(self) -> None:
        super().check()
        for name in ("questions", "max_tokens", "updates", "passes", "eval_questions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1")
        if self.group < 2:
            raise ConfigError("group must be at least 2: one answer has no better or worse beside it")
        if self.clip <= 0 or self.kl < 0:
            raise ConfigError("clip must be more than 0, kl not negative")
        if (1 if self.skip_even else self.questions) * self.group < self.updates:
            raise ConfigError("updates is more than the answers that a step is sure to learn from")
        self.rollout.check()
        self.rewards.check()


def grpo(config: GrpoConfig) -> bool:
    """Train; True when complete. The model is written to OUT/model."""
    prepare(config)
    trainer = make_trainer(config)
    complete = trainer.run()
    if complete:
        dtype = getattr(torch, config.dtype)
        save_model(trainer.model, config.out / "model", dtype=dtype, tokenizer_from=config.init)
    return complete


def make_trainer(config: GrpoConfig) -> GrpoTrainer:
    tokenizer = Tokenizer.from_folder(config.init)
    model = language_model(config.init)
    room = model.config.max_position_embeddings - config.max_tokens
    train, valid = (
        Questions(config.data / f"{split}.jsonl", tokenizer, room, config.seed) for split in ("train", "valid")
    )
    if dropped := train.dropped + valid.dropped:
        warn(f"{dropped} questions of over {room} tokens left out")
    reference = None
    if config.kl:
        reference = cast(language_model(config.reference or config.init), getattr(torch, config.dtype))
        reference = reference.to(config.device).requires_grad_(False).eval()
    corpus = None
    if config.corpus is not None:
        check_tokenizer(config.corpus, config.init)
        row = min(EVAL_ROW, model.config.max_position_embeddings)
        corpus = held_out(config.corpus, "valid", row, config.eval_tokens)
    return GrpoTrainer(config, model, tokenizer, train, valid, reference, corpus)


def language_model(folder: Path) -> DeepseekV2:
    return read_network(DeepseekV2, folder, dtype=torch.float32).requires_grad_(True)


class GrpoTrainer(Run):
    """`model` is trained and samples; `reference` None stands for beta = 0."""

    def __init__(
        self,
        config: GrpoConfig,
        model: DeepseekV2,
        tokenizer: Tokenizer,
        train: Questions,
        valid: Questions,
        reference: DeepseekV2 | None = None,
        corpus: tuple[list[Batch], int] | None = None,
    ) -> None:
        self.model = cast(model, getattr(torch, config.dtype)).to(config.device).train()
        super().__init__(config, self.model)
        self.config, self.train, self.valid = config, train, valid
        self.reference, self.corpus = reference, corpus
        longest = max(train.longest, valid.longest) + config.max_tokens
        self.rollouts = Rollouts(self.model, tokenizer, config.rollout, longest)
        self.rewards = Rewards(config.rewards, tokenizer, config.device, [*train.kept, *valid.kept])

    # ---- a step ------------------------------------------------------------------------------------------------

    def train_step(self) -> dict[str, float]:
        lr = self.learning_rate
        samples, told = self.rollout()
        if self.config.skip_even:
            samples = uneven(samples, self.config.group)
        started, norms, history = time.perf_counter(), [], []
        self.ask_reference(samples)
        for update in range(self.config.passes * self.config.updates):
            part = samples[update % self.config.updates :: self.config.updates]
            history.append(self.accumulate(part))
            norm = self.optimizer.gradient_norm()
            self.watch(history[-1]["loss"], float(norm))
            self.optimizer.step(lr, norm)
            norms.append(float(norm))
        tokens = sum(sample.answer.tokens for sample in samples)
        self.tokens += tokens
        pace = tokens * self.config.passes / (time.perf_counter() - started)
        means = {name: sum(each[name] for each in history) / len(history) for name in history[0]}
        gaps = {name: history[0][name] for name in ("logprob_gap", "logprob_gap_max")}  # before any update
        return {"tokens": self.tokens, **told, **means, **gaps, "lr": lr, "grad_norm": sum(norms) / len(norms),
                "tokens_per_second": pace}  # fmt: skip

    def rollout(self) -> tuple[list[Sample], dict[str, float]]:
        """The answers of this step with their advantages, question by question."""
        questions = self.train.step(self.step, self.config.questions)
        seeds = self.train.seeds(self.step, self.config.questions)
        messages = [list(question.messages) for question in questions]
        groups = self.rollouts.sample(messages, self.config.group, self.config.max_tokens, seeds)
        pairs = [(question, answer) for question, group in zip(questions, groups, strict=True) for answer in group]
        totals, parts = self.rewards.of(pairs)
        rewards_QG = torch.tensor(totals).view(len(questions), self.config.group)
        flat = advantages(rewards_QG).flatten().tolist()
        samples = [Sample(answer, advantage) for (_, answer), advantage in zip(pairs, flat, strict=True)]
        return samples, {**self._tell(rewards_QG, parts, [answer for _, answer in pairs])}

    def _tell(self, rewards_QG: Tensor, parts: dict[str, list[float]], answers: Sequence[Answer]) -> dict[str, float]:
        lengths = torch.tensor([float(len(answer.ids)) for answer in answers])
        spread_Q = rewards_QG.std(-1, correction=0)
        return {
            "reward": float(rewards_QG.mean()),
            "reward_std": float(rewards_QG.std(correction=0)),
            "group_std": float(spread_Q.mean()),
            "groups_without_spread": float((spread_Q < 1e-6).float().mean()),
            **({f"reward_{name}": sum(values) / len(values) for name, values in parts.items()} if parts else {}),
            "length": float(lengths.mean()),
            "length_max": float(lengths.max()),
            "ended": sum(answer.ended for answer in answers) / len(answers),
            "rollout_tokens_per_second": self.rollouts.pace.read(),
            "repack_seconds": self.rollouts.repack_seconds,
        }

    @torch.no_grad()
    def ask_reference(self, samples: Sequence[Sample]) -> None:
        """The reference routes by itself: it is a distribution that does not change."""
        if self.reference is None:
            return
        for group in packs(samples, self.config.micro_batch_tokens):
            pack = make_pack(group, self.config.device)
            alone = dataclasses.replace(pack, batch=dataclasses.replace(pack.batch, experts=None))
            logp_R, _ = logprobs(self.reference, alone)
            for sample, values_R in zip(group, logp_R.split(list(pack.lengths)), strict=True):
                sample.reference_R = values_R

    def accumulate(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Gradients of an update, and what it tells: means over its answers or their tokens."""
        totals: dict[str, float] = {}
        for group in packs(samples, self.config.micro_batch_tokens):
            pack = make_pack(group, self.config.device)
            logp_R, entropy_R = logprobs(self.model, pack)
            found = self.objective(pack, group, logp_R)
            loss = -found.objective_O.sum() / len(samples)
            loss.backward()
            for name, value in self._told(pack, found, loss, logp_R, entropy_R).items():
                known = totals.get(name, 0.0)
                totals[name] = max(known, value) if name.endswith("_max") else known + value
        tokens, units = totals.pop("tokens"), totals.pop("units")
        for name in ("entropy", "logprob_gap"):
            totals[name] /= tokens
        for name in ("kl", "clip_fraction", "ratio"):
            totals[name] /= units
        return totals

    def objective(self, pack: Pack, group: Sequence[Sample], logp_R: Tensor) -> Terms:
        """Eq. 32 of the answers of one pass."""
        known = [sample.reference_R for sample in group if sample.reference_R is not None]
        reference_R = torch.cat(known) if known else None
        config = self.config
        return terms(
            logp_R, pack.old_R.to(logp_R.dtype), reference_R, pack.outputs_R, pack.advantages_O.to(logp_R.dtype),
            clip=config.clip, kl=config.kl, level=config.level,
        )  # fmt: skip

    @staticmethod
    def _told(pack: Pack, found: Terms, loss: Tensor, logp_R: Tensor, entropy_R: Tensor) -> dict[str, float]:
        gap_R = (logp_R.detach() - pack.old_R).abs()
        return {
            "loss": float(loss.detach()),
            "kl": float(found.kl.sum()),
            "clip_fraction": float(found.clipped.sum()),
            "ratio": float(found.ratios.sum()),
            "entropy": float(entropy_R.sum()),
            "logprob_gap": float(gap_R.sum()),
            "logprob_gap_max": float(gap_R.max()),
            "tokens": len(logp_R),
            "units": len(found.ratios),
        }

    # ---- held-out ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The mean reward of greedy answers to held-out questions, and bits per byte of held-out text."""
        questions = self.valid.kept[: self.config.eval_questions]
        answers = self.rollouts.greedy([list(each.messages) for each in questions], self.config.max_tokens)
        self.rollouts.pace.read()
        totals, _ = self.rewards.of(list(zip(questions, answers, strict=True)))
        lengths = [len(answer.ids) for answer in answers]
        scores = {"held_out_reward": sum(totals) / len(totals), "held_out_length": sum(lengths) / len(lengths)}
        if self.corpus is not None:
            scores["bits_per_byte"] = bits_per_byte(self.model, *self.corpus)
        return scores


@torch.no_grad()
def bits_per_byte(model: DeepseekV2, batches: Sequence[Batch], size: int) -> float:
    """Of held-out text of `size` bytes."""
    nats = 0.0
    for batch in batches:
        lengths = [end - start for start, end in zip(batch.documents, batch.documents[1:], strict=False)]
        place = ForwardBatch.packed(lengths, device=model.device)
        hidden_TD, _ = model.hidden(batch.tokens_T.to(model.device), place)
        weights_T = batch.weights_T.to(model.device)
        loss = cross_entropy(hidden_TD, model.lm_head.weight, batch.targets_T.to(model.device), weights_T)
        nats += float(loss) * float(weights_T.sum())
    return nats / math.log(2) / size
