"""Rollouts: groups of answers by leadline's own engine, on the trainer's tensors.

The engine holds the very model that is trained, so there is nothing to copy between a step and the next rollout, and
what samples, what learns and what serves is one network (the C++ kernels, where they are asked for, have the weights in
a layout of their own, made anew each time). Answers are sampled at temperature 1 from all tokens, which is
the policy itself, and come back with what the trainer needs to see them as they were: the log-probability of each token
as it was sampled and the experts that each token met.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from leadline.checkpoint.machine import read_machine
from leadline.engine.engine import Engine, EngineConfig
from leadline.engine.llm import LLM
from leadline.engine.scheduler import SchedulerConfig
from leadline.engine.types import CompletionOutput, SamplingParams
from leadline.errors import ConfigError, ResourceError, TrainingError
from leadline.model.cache import PAGE_SIZE
from leadline.model.cpu import CpuModel
from leadline.model.packed import pack_model
from leadline.model.transformer import DeepseekV2
from leadline.ops.cpu import native
from leadline.tokenizer import Tokenizer

Messages = Sequence[dict[str, str]]


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """`sequences` answers are written at once, with `pass_tokens` tokens in a pass at most. With `kernels` the engine
    runs the C++ kernels, for which the weights are laid out anew before each rollout."""

    sequences: int = 256
    pass_tokens: int = 2048
    kernels: bool = False

    def check(self) -> None:
        """Raise `ConfigError` for an engine that would write nothing."""
        if self.sequences < 1 or self.pass_tokens < 1:
            raise ConfigError("rollout.sequences and rollout.pass_tokens must be at least 1")


@dataclasses.dataclass(frozen=True)
class Answer:
    """One sampled answer: `ids` go on from `prompt_ids`, EOS included when it `ended` by itself.

    logprobs   of each id, as it was sampled
    experts    (tokens, MoE layers, K) int64, or None for a dense model; the last id was never run and met none
    """

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    experts: Tensor | None
    text: str
    ended: bool

    @property
    def tokens(self) -> int:
        """Tokens of a training pass over it."""
        return len(self.prompt_ids) + len(self.ids) - 1


@dataclasses.dataclass
class Pace:
    """Tokens sampled and seconds taken since it was last read."""

    tokens: int = 0
    seconds: float = 0.0

    def read(self) -> float:
        """Tokens a second."""
        pace = self.tokens / self.seconds if self.seconds else 0.0
        self.tokens, self.seconds = 0, 0.0
        return pace


class Rollouts:
    """`model` is shared, not copied; `longest` bounds prompt and answer together."""

    def __init__(self, model: DeepseekV2, tokenizer: Tokenizer, config: RolloutConfig, longest: int) -> None:
        if config.kernels and (native.choose() is None or model.device.type != "cpu" or not model.config.is_mla):
            raise ConfigError("rollout.kernels needs the C++ kernels, the CPU and latent attention")
        self.model, self.kernels = model, config.kernels
        pages = config.sequences * -(-longest // PAGE_SIZE)
        check_memory(model, pages * PAGE_SIZE)
        settings = EngineConfig(
            cache_tokens=pages * PAGE_SIZE,
            max_model_len=longest,
            scheduler=SchedulerConfig(config.sequences, max(config.pass_tokens, config.sequences)),
        )
        self.engine = Engine(model, tokenizer, settings)
        self.llm = LLM.of(self.engine, tokenizer)
        self.pace = Pace()
        self.repack_seconds = 0.0  # of the last rollout

    def sample(
        self, questions: Sequence[Messages], group: int, max_tokens: int, seeds: Sequence[int]
    ) -> list[list[Answer]]:
        """A group of answers to each question; the same for the same weights, seeds and questions."""
        params = [
            SamplingParams(n=group, max_tokens=max_tokens, seed=seed, logprobs=0, return_routed_experts=True)
            for seed in seeds
        ]
        return self._ask(questions, params)

    def greedy(self, questions: Sequence[Messages], max_tokens: int) -> list[Answer]:
        params = [SamplingParams(temperature=0.0, max_tokens=max_tokens)] * len(questions)
        return [answers[0] for answers in self._ask(questions, params)]

    def _ask(self, questions: Sequence[Messages], params: Sequence[SamplingParams]) -> list[list[Answer]]:
        self._renew()
        started = time.perf_counter()
        outputs = self.llm.chat(questions, params)
        answers = [[_answer(output.prompt_ids, each) for each in output.outputs] for output in outputs]
        self.pace.seconds += time.perf_counter() - started
        self.pace.tokens += sum(len(answer.ids) for group in answers for answer in group)
        return answers

    def _renew(self) -> None:
        """The weights have moved: the prefix cache holds what others computed, packed weights are those of before."""
        self.engine.reset_prefix_cache()
        if self.kernels:
            started = time.perf_counter()
            packed = CpuModel(self.model.config, pack_model(self.model), dtype=self.model.dtype)
            self.engine.model_runner.model = packed
            self.repack_seconds = time.perf_counter() - started


def _answer(prompt_ids: tuple[int, ...], output: CompletionOutput) -> Answer:
    if output.finish_reason == "error":
        raise TrainingError(f"a rollout failed: {output.error}")
    experts = torch.tensor(output.routed_experts, dtype=torch.int64) if output.routed_experts else None
    logprobs = tuple(entry.logprob for entry in output.logprobs)
    return Answer(prompt_ids, output.token_ids, logprobs, experts, output.text, output.finish_reason == "stop")


def check_memory(model: DeepseekV2, cache_tokens: int) -> None:
    """Refuse a cache that the machine has no room for, before it is taken."""
    needed = cache_tokens * model.config.cache_bytes_per_token(str(model.dtype).removeprefix("torch."))
    free = torch.cuda.mem_get_info(model.device)[0] if model.device.type == "cuda" else read_machine().memory
    if needed > free:
        raise ResourceError(
            f"the rollouts' cache of {cache_tokens:,} tokens needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are "
            f"free; fewer rollout.sequences or a smaller max_tokens need less"
        )
