"""ModelRunner: one scheduled batch through the model.

Builds the `ForwardBatch` (where each token sits, where its row of the cache goes), runs the model in inference mode and
hands back the logits of the rows that sample. What requests ask beyond that, the log-probabilities of their prompts and
the experts their tokens met, is collected here, while the states are at hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Items
from typing import Protocol

import torch
from torch import Tensor

from leadline.engine.sampler import Sampler
from leadline.engine.scheduler import Chunk, ScheduledBatch
from leadline.engine.sequence import Sequence
from leadline.model.batch import ForwardBatch
from leadline.model.cache import PagedCache
from leadline.model.cpu import CpuModel
from leadline.model.moe import Routing
from leadline.model.transformer import DeepseekV2

PROMPT_LOGPROB_ROWS = 128
"""Prompt rows whose logits are made at a time: 102,400 float32 logits a row are 50 MiB for 128 of them."""


@dataclasses.dataclass(frozen=True)
class RunnerOutput:
    """`logits` (R, V) in the model's dtype; row r continues `sequences[r]`."""

    logits: Tensor
    sequences: tuple[Sequence, ...]


class Runner(Protocol):
    """What the engine asks of whatever runs the model."""

    def run(self, batch: ScheduledBatch) -> RunnerOutput: ...


class ModelRunner:
    """Runs `model` over the pages of `cache`."""

    def __init__(self, model: DeepseekV2 | CpuModel, cache: PagedCache, sampler: Sampler) -> None:
        self.model = model
        self.cache = cache
        self.sampler = sampler
        self._tables: tuple[list[list[int]], Tensor] = ([], torch.zeros(0, 0, dtype=torch.int64))

    @torch.inference_mode()
    def run(self, batch: ScheduledBatch) -> RunnerOutput:
        """The logits of the chunks that reach the end of their sequences."""
        tokens_T, forward = self.forward_batch(batch)
        hidden_TD, routings = self.model.hidden(tokens_T, forward)
        for chunk, start in zip(batch.chunks, forward.starts, strict=False):
            self._collect(chunk, start, hidden_TD, routings)
        assert forward.logit_rows is not None
        logits_RV = self.model.lm_head(hidden_TD[forward.logit_rows])
        return RunnerOutput(logits_RV, tuple(chunk.sequence for chunk in batch.chunks if chunk.samples))

    def warm_up(self) -> None:
        """One token through page 0, which nobody holds yet: what is made on first use is made before serving."""
        forward = ForwardBatch.paged(self.cache, [0], [1], [[0]])
        with torch.inference_mode():
            self.model(torch.zeros(1, dtype=torch.int64, device=self.cache.device), forward)
        self.cache.clear_page(0)

    # ---- the pass ----------------------------------------------------------------------------------------------

    def forward_batch(self, batch: ScheduledBatch) -> tuple[Tensor, ForwardBatch]:
        """The tokens of the pass and where they sit. Built from plain lists: one tensor a field, whatever the batch."""
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts, rows, contexts = [0], [], []
        for chunk in batch.chunks:
            tokens += chunk.sequence.ids[chunk.start : chunk.end]
            positions += range(chunk.start, chunk.end)
            slots += self._slots(chunk)
            starts.append(len(tokens))
            contexts.append(chunk.end)
            if chunk.samples:
                rows.append(len(tokens) - 1)
        forward = ForwardBatch(
            positions=self._tensor(positions),
            starts=tuple(starts),
            cache=self.cache,
            slots=self._tensor(slots),
            page_tables=self._page_tables([chunk.sequence.pages for chunk in batch.chunks]),
            context_lens=tuple(contexts),
            logit_rows=self._tensor(rows),
        )
        return self._tensor(tokens), forward

    def _slots(self, chunk: Chunk) -> list[int]:
        """The cache's row of each token of the chunk."""
        size, pages = self.cache.page_size, chunk.sequence.pages
        slots: list[int] = []
        position = chunk.start
        while position < chunk.end:
            page, offset = divmod(position, size)
            count = min(size - offset, chunk.end - position)
            first = pages[page] * size + offset
            slots += range(first, first + count)
            position += count
        return slots

    def _page_tables(self, tables: list[list[int]]) -> Tensor:
        """(S, P), kept from one pass to the next: decoding changes it once in 64 tokens."""
        known, tensor = self._tables
        if tables != known:
            width = max(map(len, tables))
            tensor = self._tensor([[*pages, *[0] * (width - len(pages))] for pages in tables])
            self._tables = ([list(pages) for pages in tables], tensor)
        return tensor

    def _tensor(self, values: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.cache.device)

    # ---- what requests ask beyond the next token -----------------------------------------------------------------

    def _collect(self, chunk: Chunk, start: int, hidden_TD: Tensor, routings: Items[Routing]) -> None:
        params = chunk.sequence.params
        if params.return_routed_experts:
            self._collect_routing(chunk, start, routings)
        if params.prompt_logprobs is not None and chunk.start < chunk.sequence.prompt_tokens:
            self._collect_prompt_logprobs(chunk, start, hidden_TD, params.prompt_logprobs)

    def _collect_routing(self, chunk: Chunk, start: int, routings: Items[Routing]) -> None:
        """The experts of each token, once: a recomputation finds them there already."""
        known = chunk.sequence.routed_experts
        first = max(len(known) - chunk.start, 0)
        if not routings or first >= chunk.length:
            return
        rows = slice(start + first, start + chunk.length)
        experts_TLK = torch.stack([routing.expert_ids_TK[rows] for routing in routings], dim=1)
        known.extend(tuple(map(tuple, token)) for token in experts_TLK.tolist())

    def _collect_prompt_logprobs(self, chunk: Chunk, start: int, hidden_TD: Tensor, top: int) -> None:
        """Row p gives the log-probability of prompt token p + 1; token 0 has none, nor those nobody asked about."""
        sequence = chunk.sequence
        known = sequence.prompt_logprobs
        if not known:
            known += [None] * min(max(sequence.params.prompt_logprobs_from, 1), sequence.prompt_tokens)
        first, last = max(len(known) - 1, chunk.start), min(chunk.end, sequence.prompt_tokens - 1)
        for begin in range(first, last, PROMPT_LOGPROB_ROWS):
            end = min(begin + PROMPT_LOGPROB_ROWS, last)
            rows = slice(start + begin - chunk.start, start + end - chunk.start)
            logprobs_RV = self.model.lm_head(hidden_TD[rows]).float().log_softmax(-1)
            known.extend(
                self.sampler.logprob(logprobs_V, sequence.ids[position + 1], top)
                for position, logprobs_V in enumerate(logprobs_RV, begin)
            )
