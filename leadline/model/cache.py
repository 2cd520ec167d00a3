"""The paged cache: what attention keeps of each token (sections 2.1.2, 2.1.4, 3.2.3).

For MLA a row is (c_KV ; k_R): the normed latent, 512 wide, and the roped shared key, 64 wide, its pairs interleaved as
in the published weights. 31,104 bytes a token for V2-Lite and 69,120 for V2 in bf16; with the latent in 6 bits (see
`leadline.ops.latent`) 12,636 and 28,080. Nothing per head is ever stored.

Invariants: a page holds `page_size` rows of one sequence in ascending order; which pages belong to whom is the block
manager's business, not the cache's. Every row is finite, whatever is written: attention may run over whole pages, rows
of an earlier owner included, and gives them no weight; zero times NaN would still poison the new one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from leadline.errors import ConfigError
from leadline.model.config import PACKED_CACHES, ModelConfig
from leadline.ops.attention import Rows
from leadline.ops.cpu.memory import allocate
from leadline.ops.latent import LatentFormat, PackedLatents

PAGE_SIZE = 64


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return allocate(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)


class PagedCache:
    """`pages` pages of `page_size` rows for every layer, allocated at once; on a CPU the machine gives them as they are
    written to, so that a server which could hold a hundred conversations takes the memory of those it has.

    `storage` is (layers, pages * page_size, row) of `dtype`; with a `format` (layers, pages, bytes of a page) uint8.
    """

    def __init__(
        self,
        config: ModelConfig,
        pages: int,
        *,
        dtype: torch.dtype = torch.bfloat16,
        format: LatentFormat | None = None,
        device: torch.device | str = "cpu",
        page_size: int = PAGE_SIZE,
    ) -> None:
        self.page_size = page_size
        self.pages = pages
        self.row = config.cache_row
        self.format = format
        layers = config.num_hidden_layers
        if format is None:
            self.storage = _zeros((layers, pages * page_size, self.row), dtype, device)
        else:
            self.storage = _zeros((layers, pages, page_size * format.row_bytes), torch.uint8, device)

    @property
    def device(self) -> torch.device:
        return self.storage.device

    @property
    def bytes(self) -> int:
        return self.storage.nbytes

    @property
    def bytes_per_token(self) -> int:
        return self.bytes // (self.pages * self.page_size)

    @property
    def layout(self) -> str:
        """How a row is stored, as a name: what was stored otherwise cannot be read."""
        return f"{self.storage.dtype if self.format is None else self.format.name}:{self.row}"

    def write(self, layer: int, slots_T: Tensor, *parts: Tensor) -> None:
        """Store the rows of this pass; `parts` are laid side by side, (T, width) each."""
        if self.format is not None:
            self._packed(layer, self.format).write(slots_T, torch.cat([part.float() for part in parts], dim=-1))
            return
        rows, column = self.storage[layer], 0
        for part in parts:
            finite = part.to(rows.dtype).nan_to_num()
            rows[:, column : column + part.shape[1]].index_copy_(0, slots_T, finite)
            column += part.shape[1]
        assert column == self.row

    def layer(self, layer: int) -> Rows:
        """One layer's pages as attention takes them, a view: (pages, page_size, row), or packed."""
        return self.rows(layer) if self.format is None else self._packed(layer, self.format)

    def rows(self, layer: int) -> Tensor:
        """(pages, page_size, row) of a layer that is not packed, a view."""
        return self.storage[layer].view(self.pages, self.page_size, self.row)

    def _packed(self, layer: int, format: LatentFormat) -> PackedLatents:
        return PackedLatents(self.storage[layer], self.page_size, format)

    # ---- whole pages ---------------------------------------------------------------------------------------------

    def read_page(self, page: int) -> memoryview:
        """A copy of one page of every layer."""
        content = self._page(page).cpu().clone(memory_format=torch.contiguous_format)
        return content.flatten().view(torch.uint8).numpy().data

    def write_page(self, page: int, data: memoryview) -> bool:
        """Give a page what `read_page` gave; False and no change when it is of another size."""
        content = self._page(page)
        if len(data) != content.nbytes:
            return False
        values = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(content.dtype)
        content.copy_(values.view(content.shape))
        return True

    def clear_page(self, page: int) -> None:
        self._page(page).zero_()

    def _page(self, page: int) -> Tensor:
        """(layers, ...), a view."""
        return self.storage.view(self.storage.shape[0], self.pages, -1)[:, page]


def latent_format(config: ModelConfig, name: str) -> LatentFormat | None:
    """The packed format of that name for this model's rows; None for a plain element type."""
    if name not in PACKED_CACHES:
        return None
    if not config.is_mla or config.kv_lora_rank is None:
        raise ConfigError(
            f"a cache in {name} holds latents: this model has keys and values of heads", param="kv_cache_dtype"
        )
    if config.kv_lora_rank % 4:
        raise ConfigError(f"a latent of {config.kv_lora_rank} elements is not stored in {name}", param="kv_cache_dtype")
    return LatentFormat("6bit" if name == "6bit" else "int8", config.kv_lora_rank, config.qk_rope_head_dim)
