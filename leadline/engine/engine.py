"""Engine: schedule, run, sample, commit.

One `step` is one pass of the model. A request's own fault (numbers that are not finite, an exception while it runs)
ends that request with an error that names it; the others go on.

Invariant: between steps every unfinished sequence is the scheduler's and every page is held by one of them, idle or
blank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import torch

from leadline import __version__
from leadline.checkpoint.plan import choose_cache_dtype
from leadline.engine.blocks import BlockManager
from leadline.engine.checks import check_request
from leadline.engine.disk import DiskCache
from leadline.engine.grammar import ConstraintProvider
from leadline.engine.runner import ModelRunner, Runner
from leadline.engine.sampler import Choice, Sampler
from leadline.engine.scheduler import ScheduledBatch, Scheduler, SchedulerConfig
from leadline.engine.sequence import Sequence, Vocabulary, make_sequences
from leadline.engine.store import PageStore, namespace_of
from leadline.engine.types import EngineInfo, EngineOutput, EngineRequest, EngineStats, FinishReason
from leadline.errors import ConfigError, InvalidRequest
from leadline.model.cache import PAGE_SIZE, PagedCache, latent_format
from leadline.model.cpu import CpuModel
from leadline.model.transformer import DeepseekV2


@dataclasses.dataclass(frozen=True, slots=True)
class EngineConfig:
    """`cache_tokens` rows of cache, in whole pages; `max_model_len` None is what the model was made for."""

    name: str = "leadline"
    max_model_len: int | None = None
    cache_tokens: int = 8192
    cache_dtype: str = "auto"  # auto: the model's; bf16, int8, 6bit
    prefix_cache: bool = True
    weights: str = ""  # their fingerprint: pages on a disk outlive the process; "": the name stands for them
    scheduler: SchedulerConfig = SchedulerConfig()


class Engine:
    """Not thread-safe: one thread steps it. `AsyncEngine` gives it one."""

    def __init__(
        self,
        model: DeepseekV2 | CpuModel,
        tokenizer: Vocabulary,
        config: EngineConfig = EngineConfig(),
        *,
        eos_ids: Iterable[int] | None = None,
        constraints: ConstraintProvider | None = None,
        adapters: frozenset[str] = frozenset(),
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.eos_ids = frozenset({tokenizer.eos_id} if eos_ids is None else eos_ids)
        self.constraints = constraints
        self.adapters = adapters
        self.cache = make_cache(model, config)
        self.sampler = make_sampler(model, tokenizer)
        self.model_runner = ModelRunner(model, self.cache, self.sampler)
        self.runner: Runner = self.model_runner
        self.blocks = BlockManager(self.cache.pages, page_size=self.cache.page_size, prefix_cache=config.prefix_cache)
        self.layout = cache_layout(model, self.cache)
        names = config.weights or config.name
        self.scheduler = Scheduler(config.scheduler, self.blocks, model=names, cache_format=self.layout)
        self.disk: DiskCache | None = None
        self.info = make_info(model, self.cache, config, self.sampler.vocab_size)
        self.limit = min(self.info.context_length, self.info.cache_tokens)
        self._requests: dict[str, list[Sequence]] = {}
        self._ended: list[EngineOutput] = []  # ends that did not come out of a pass
        self._counts = dict.fromkeys(("finished", "cancelled", "prompt", "cached", "generated", "steps"), 0)

    # ---- requests ----------------------------------------------------------------------------------------------

    def check(self, request: EngineRequest) -> None:
        """Raise what is wrong with a request before any work; changes nothing, so any thread may call it."""
        adapters = request.params.adapter in self.adapters
        check_request(request, self.info, grammars=self.constraints is not None, adapters=adapters)

    def prepare(self, request: EngineRequest) -> None:
        """What `add` would take long for: compiling a grammar. Changes no request, so any thread may call it."""
        if self.constraints is not None and request.params.grammar is not None:
            self.constraints.prepare(request.params.grammar)

    def add(self, request: EngineRequest) -> None:
        """Queue a request; raises `InvalidRequest` or `EngineOverloaded`, and then nothing has changed."""
        self.check(request)
        if request.request_id in self._requests:
            raise InvalidRequest(f"request id {request.request_id!r} is in use")
        sequences = make_sequences(request, self.tokenizer, limit=self.limit, eos_ids=self.eos_ids)
        if self.constraints is not None and request.params.grammar is not None:
            for sequence in sequences:
                sequence.constraint = self.constraints.start(request.params.grammar)
        self.scheduler.add(sequences)
        self._requests[request.request_id] = sequences
        self._counts["prompt"] += len(request.prompt_ids)

    def cancel(self, request_id: str) -> None:
        """End a request now; its pages are free when this returns. Unknown and finished ids are no matter."""
        for sequence in list(self._requests.get(request_id, ())):
            if not sequence.finished:
                self._ended.append(self._end(sequence, "cancelled"))

    def warm_up(self) -> None:
        """Make what is made on first use, before the first request; only while there is none."""
        self.model_runner.warm_up()

    def cancel_all(self) -> None:
        """End every request now, without a word about it: for a caller that was interrupted."""
        for request_id in list(self._requests):
            self.cancel(request_id)
        self._ended.clear()

    def keep_pages(self, root: Path, *, limit: int, ttl: float) -> DiskCache:
        """Keep full pages in a folder too, from now on, and meet those that an earlier run kept there."""
        if not self.config.weights:
            raise ConfigError("pages are only kept on the disk for weights whose fingerprint is known")
        about = {"model": self.config.name, "format": self.layout}
        name = namespace_of(self.config.weights, self.layout)
        store = PageStore(root, name, about=about, limit=limit, ttl=ttl)
        self.disk = self.scheduler.disk = DiskCache(store, self.cache)
        return self.disk

    def reset_prefix_cache(self) -> None:
        """Forget cached prefixes: the weights have changed, and are no longer those whose pages the disk has."""
        self.blocks.clear()
        if self.disk is not None:
            self.disk.close()
        self.disk = self.scheduler.disk = None

    def knows(self, request_id: str) -> bool:
        """Whether the request has not ended."""
        return request_id in self._requests

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._ended)

    def stats(self) -> EngineStats:
        counts = self._counts
        return EngineStats(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            pages_total=self.blocks.pages,
            pages_free=self.blocks.free,
            pages_cached=self.blocks.cached,
            requests_finished=counts["finished"],
            requests_cancelled=counts["cancelled"],
            prompt_tokens=counts["prompt"],
            cached_tokens=counts["cached"],
            generated_tokens=counts["generated"],
            preemptions=self.scheduler.preemptions,
            steps=counts["steps"],
        )

    # ---- one step ----------------------------------------------------------------------------------------------

    def step(self) -> list[EngineOutput]:
        """One pass, and what it added to each answer."""
        outputs, self._ended = self._ended, []
        outputs += [self._end(sequence, "length") for sequence in self.scheduler.expired()]
        batch = self.scheduler.schedule()
        if batch:
            self._counts["steps"] += 1
            outputs += self._run(batch)
        return outputs

    @torch.inference_mode()
    def _run(self, batch: ScheduledBatch) -> list[EngineOutput]:
        """Run the batch; when that fails, each of its sequences alone, so that only the guilty one ends."""
        try:
            result = self.runner.run(batch)
            choices = self.sampler(result.logits, result.sequences)
        except Exception as error:
            if len(batch.chunks) == 1:
                return [self._fail(batch.chunks[0].sequence, f"{type(error).__name__}: {error}")]
            return [output for chunk in batch.chunks for output in self._run(ScheduledBatch((chunk,)))]
        failed = [
            self._fail(sequence, choice.error)
            for sequence, choice in zip(result.sequences, choices, strict=True)
            if choice.error is not None
        ]
        self.scheduler.commit(batch)
        pairs = zip(result.sequences, choices, strict=True)
        return failed + [self._append(sequence, choice) for sequence, choice in pairs if choice.error is None]

    def _append(self, sequence: Sequence, choice: Choice) -> EngineOutput:
        """Add the token; finish and free when it was the last."""
        if sequence.generated == 0:
            self._counts["cached"] += sequence.cached_tokens if sequence.index == 0 else 0
        try:
            if sequence.constraint is not None:
                sequence.constraint.accept(choice.token_id)
            text = sequence.append(choice.token_id)
        except Exception as error:
            return self._fail(sequence, f"{type(error).__name__}: {error}")
        self._counts["generated"] += 1
        if sequence.finished:
            self._leave(sequence)
        return sequence.output(text, (choice.token_id,), () if choice.logprob is None else (choice.logprob,))

    def _fail(self, sequence: Sequence, error: str) -> EngineOutput:
        return self._end(sequence, "error", f"request {sequence.request_id}: {error}")

    def _end(self, sequence: Sequence, reason: FinishReason, error: str | None = None) -> EngineOutput:
        text = sequence.finish(reason, error=error)
        self._leave(sequence)
        return sequence.output(text)

    def _leave(self, sequence: Sequence) -> None:
        """Give its pages back; with the last of its siblings the request is over."""
        self.scheduler.finish(sequence)
        siblings = self._requests[sequence.request_id]
        if all(sibling.finished for sibling in siblings):
            del self._requests[sequence.request_id]
            cancelled = any(sibling.finish_reason == "cancelled" for sibling in siblings)
            self._counts["cancelled" if cancelled else "finished"] += 1


def make_cache(model: DeepseekV2 | CpuModel, config: EngineConfig) -> PagedCache:
    """Whole pages for `cache_tokens`, on the model's device."""
    pages = max(-(-config.cache_tokens // PAGE_SIZE), 1)
    kind = choose_cache_dtype(model.config, str(model.dtype).removeprefix("torch."), config.cache_dtype)
    packed = latent_format(model.config, kind)
    dtype = torch.uint8 if packed is not None else getattr(torch, kind)
    return PagedCache(model.config, pages, dtype=dtype, format=packed, device=model.device)


def make_sampler(model: DeepseekV2 | CpuModel, tokenizer: Vocabulary) -> Sampler:
    """Over the rows that the tokenizer names; the kernels find the likeliest of their own logits."""
    rows = min(tokenizer.vocab_size, model.config.vocab_size)
    if isinstance(model, CpuModel):
        return Sampler(rows, tokenizer.token_bytes, model.likeliest)
    return Sampler(rows, tokenizer.token_bytes)


def cache_layout(model: DeepseekV2 | CpuModel, cache: PagedCache) -> str:
    """What a page's bytes depend on besides the weights: how they are stored, and what computed them."""
    maker = (
        model.maker
        if isinstance(model, CpuModel)
        else f"torch {torch.__version__}, {model.dtype} on {model.device.type}"
    )
    maker = f"leadline {__version__}, {maker}"
    return f"{cache.layout} by {maker}"


def make_info(model: DeepseekV2 | CpuModel, cache: PagedCache, config: EngineConfig, vocab_size: int) -> EngineInfo:
    advertised = model.config.max_position_embeddings
    return EngineInfo(
        model=config.name,
        context_length=min(config.max_model_len or advertised, advertised),
        vocab_size=vocab_size,
        cache_bytes_per_token=cache.bytes_per_token,
        cache_tokens=cache.pages * cache.page_size,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        parameters=model.config.parameters(),
        active_parameters=model.config.parameters(active=True),
    )
