"""The weights of two models of one shape, mixed: what fine-tuning learned by heart fades, what it learned stays.

    python recipes/embedded/average.py FROM TO SHARE OUT      (1 - SHARE) x FROM + SHARE x TO, with TO's configuration

FROM is the pre-trained model, TO the fine-tuned one. Measured on held-out conversations and on held-out text, both are
better in the middle than at the fine-tuned end (leadline/embedded/README.md names the numbers).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from leadline.checkpoint.save import save_model
from leadline.checkpoint.weights import load_weights
from leadline.model.config import ModelConfig
from leadline.model.transformer import DeepseekV2
from leadline.train.stages import GENERATION


def load(folder: Path, shape: ModelConfig) -> DeepseekV2:
    with torch.device("meta"):
        model = DeepseekV2(shape)
    return load_weights(model, folder, dtype=torch.float32)


@torch.no_grad()
def average(start: Path, end: Path, share: float, out: Path) -> None:
    shape = ModelConfig.from_folder(end)
    model, other = load(end, shape), load(start, shape)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        mine.lerp_(theirs, 1 - share)
    save_model(model, out, dtype=torch.bfloat16, tokenizer_from=end, generation=GENERATION)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    average(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]))
