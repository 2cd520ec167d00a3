"""ForwardBatch: where each token of one pass sits.

Tokens are flat, (T,): the chunks of S sequences laid end to end, no padding. Everything a layer needs to know about
them is here and is passed explicitly. Two kinds:

* `ForwardBatch.packed`: training and scoring. The whole context is in this pass; attention stays within a document.
* `ForwardBatch.paged`: the engine. Each sequence's earlier tokens are in the cache's pages, and this pass's rows are
  written there before they are read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from leadline.ops.transfer import to_device

if TYPE_CHECKING:
    from leadline.model.cache import PagedCache
    from leadline.model.dropping import Dropping


@dataclasses.dataclass(frozen=True)
class ForwardBatch:
    """One pass over T tokens of S sequences.

    positions      (T,) int64   place of each token in its own sequence: what RoPE sees
    starts         (S + 1,) int64 on the host: sequence s holds tokens starts[s]:starts[s + 1] of this pass
    cache          None, or the pages that hold the context
    slots          (T,) int64   row of the cache each token's latent goes to: page * page_size + offset
    page_tables    (S, P) int64 pages of each sequence, ascending; unused entries are 0
    context_lens   S ints on the host: tokens of sequence s after this pass, this pass's included
    logit_rows     (R,) int64, or None for all: the tokens whose logits are wanted
    dropping       None, or how a training pass drops tokens
    experts        None, or (T, M, K) int64: the experts each token met in a rollout in each of the M MoE layers, taken
                   instead of the gates' own choices
    """

    positions: Tensor
    starts: tuple[int, ...]
    cache: PagedCache | None = None
    slots: Tensor | None = None
    page_tables: Tensor | None = None
    context_lens: tuple[int, ...] = ()
    logit_rows: Tensor | None = None
    dropping: Dropping | None = None
    experts: Tensor | None = None

    @property
    def num_sequences(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens each sequence has in this pass."""
        return tuple(end - start for start, end in zip(self.starts, self.starts[1:], strict=False))

    def replayed(self, place: int) -> Tensor | None:
        """(T, K): the experts of a rollout in the MoE layer at `place` among the MoE layers."""
        return None if self.experts is None else self.experts[:, place]

    @staticmethod
    def packed(
        lengths: Sequence[int],
        *,
        offset: int = 0,
        device: torch.device | str = "cpu",
        logit_rows: Tensor | None = None,
        experts: Tensor | None = None,
    ) -> ForwardBatch:
        """Documents of these lengths laid end to end, each beginning at position `offset`."""
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + length)
        positions = torch.cat([torch.arange(offset, offset + n) for n in lengths]) if lengths else torch.zeros(0).long()
        return ForwardBatch(to_device(positions, device), tuple(starts), logit_rows=logit_rows, experts=experts)

    @staticmethod
    def paged(
        cache: PagedCache,
        computed: Sequence[int],
        lengths: Sequence[int],
        page_tables: Sequence[Sequence[int]],
        *,
        logit_rows: Tensor | None = None,
    ) -> ForwardBatch:
        """Sequence s has `computed[s]` tokens in its pages already and brings `lengths[s]` more."""
        batch = ForwardBatch.packed(lengths)
        base = torch.repeat_interleave(torch.tensor(computed), torch.tensor(lengths))
        positions = batch.positions + base
        width = max((len(pages) for pages in page_tables), default=0)
        tables = torch.tensor([[*pages, *[0] * (width - len(pages))] for pages in page_tables]).reshape(-1, width)
        sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        slots = tables[sequence, positions // cache.page_size] * cache.page_size + positions % cache.page_size
        return ForwardBatch(
            positions=positions.to(cache.device),
            starts=batch.starts,
            cache=cache,
            slots=slots.to(cache.device),
            page_tables=tables.to(cache.device),
            context_lens=tuple(c + n for c, n in zip(computed, lengths, strict=True)),
            logit_rows=logit_rows,
        )
