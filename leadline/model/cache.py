"""The paged cache: what attention keeps of each token (sections 2.1.2, 2.1.4, 3.2.3).

For MLA a row is (c_KV ; k_R): the normed latent, 512 wide, and the roped shared key, 64 wide, its pairs interleaved as
in the published weights. 31,104 bytes a token for V2-Lite and 69,120 for V2 in bf16. Nothing per head is ever stored.

Invariants: a page holds `page_size` rows of one sequence in ascending order; which pages belong to whom is the block
manager's business, not the cache's. Every row is finite, whatever is written: attention may run over whole pages, rows
of an earlier owner included, and gives them no weight; zero times NaN would still poison the new one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leadline.model.config import ModelConfig

PAGE_SIZE = 64


class PagedCache:
    """`pages` pages of `page_size` rows for every layer, allocated at once: (layers, pages * page_size, row)."""

    def __init__(
        self,
        config: ModelConfig,
        pages: int,
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        page_size: int = PAGE_SIZE,
    ) -> None:
        self.page_size = page_size
        self.pages = pages
        self.row = config.cache_row
        self.storage = torch.zeros(config.num_hidden_layers, pages * page_size, self.row, dtype=dtype, device=device)

    @property
    def device(self) -> torch.device:
        return self.storage.device

    @property
    def bytes(self) -> int:
        return self.storage.nbytes

    @property
    def bytes_per_token(self) -> int:
        return self.bytes // (self.pages * self.page_size)

    def write(self, layer: int, slots_T: Tensor, *parts: Tensor) -> None:
        """Store the rows of this pass; `parts` are laid side by side, (T, width) each."""
        rows, column = self.storage[layer], 0
        for part in parts:
            finite = part.to(rows.dtype).nan_to_num()
            rows[:, column : column + part.shape[1]].index_copy_(0, slots_T, finite)
            column += part.shape[1]
        assert column == self.row

    def read_page(self, page: int) -> memoryview:
        """A copy of one page's rows of every layer."""
        rows = self.storage[:, page * self.page_size : (page + 1) * self.page_size].cpu()
        return rows.clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8).numpy().data

    def write_page(self, page: int, data: memoryview) -> bool:
        """Give a page what `read_page` gave; False and no change when it is of another size."""
        rows = self.storage[:, page * self.page_size : (page + 1) * self.page_size]
        if len(data) != rows.nbytes:
            return False
        values = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(rows.dtype)
        rows.copy_(values.view(rows.shape))
        return True

    def layer(self, layer: int) -> Tensor:
        """(pages, page_size, row) of one layer, a view."""
        return self.storage[layer].view(self.pages, self.page_size, self.row)
