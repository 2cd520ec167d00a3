"""A reward model (section 4.2): the network of the language model with a value head in its head's place.

The value of a conversation is read at its last token, the end of its last answer. Names are the hub's: `model.` and
`score.weight`, as in its sequence classifiers with one label.

Shapes: T tokens, S sequences, D hidden.
"""

from __future__ import annotations

import dataclasses
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from leadline.model.batch import ForwardBatch
from leadline.model.config import ModelConfig
from leadline.model.moe import Routing
from leadline.model.transformer import Backbone, DeepseekV2
from leadline.ops.norm import accumulate_dtype


class RewardModel(nn.Module):
    """Scores are float32 or wider, whatever the model's dtype."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = dataclasses.replace(config, num_labels=1)
        self.model = Backbone(config)
        self.score = nn.Linear(config.hidden_size, 1, bias=False)

    @classmethod
    def of(cls, language: DeepseekV2) -> Self:
        """On the network of a language model, which is shared; the head begins at zero, so every score does."""
        with torch.device("meta"):
            reward = cls(language.config)
        reward.model = language.model
        weight = torch.zeros(1, language.config.hidden_size, dtype=language.dtype, device=language.device)
        reward.score.weight = nn.Parameter(weight)
        return reward

    def forward(self, tokens_T: Tensor, batch: ForwardBatch) -> tuple[Tensor, tuple[Routing, ...]]:
        """(S,) scores, and the routing of every MoE layer."""
        hidden_TD, routings = self.model(tokens_T, batch)
        last_SD = hidden_TD[torch.tensor(batch.starts[1:], device=hidden_TD.device) - 1]
        wide = accumulate_dtype(last_SD)
        scores_S1 = linear(last_SD.to(wide), self.score.weight.to(wide))
        return scores_S1.squeeze(1), routings

    @property
    def dtype(self) -> torch.dtype:
        return self.score.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.score.weight.device
