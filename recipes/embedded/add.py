"""What one stage changed, added to another model that started from the same: BASE + (TO - FROM), weight by weight.

    python recipes/embedded/add.py BASE TO FROM OUT      with BASE's configuration, in bf16

GRPO's step from FROM is small, and BASE is not far from FROM: the sum has what both learned (docs/training.md has numbers).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from average import load

from leadline.checkpoint.save import save_model
from leadline.model.config import ModelConfig
from leadline.train.stages import GENERATION


@torch.no_grad()
def add(base: Path, end: Path, start: Path, out: Path) -> None:
    shape = ModelConfig.from_folder(base)
    model, to, since = (load(folder, shape) for folder in (base, end, start))
    for mine, theirs, before in zip(model.parameters(), to.parameters(), since.parameters(), strict=True):
        mine.add_(theirs - before)
    save_model(model, out, dtype=torch.bfloat16, tokenizer_from=base, generation=GENERATION)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    add(*map(Path, sys.argv[1:]))
