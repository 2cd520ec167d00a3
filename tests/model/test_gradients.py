"""Gradients: transformers' in float32, the reference kernels' in float64, and none lost on the way."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from leadline.model.batch import ForwardBatch
from leadline.model.config import ModelConfig
from leadline.model.transformer import DeepseekV2
from leadline.ops.dispatch import force
from tests.fixtures import TINY_LITE, TINY_V2
from tests.model.dense import TINY_GQA, TINY_MOE_16B
from tests.model.oracle import build, relative_error, sample_tokens, transformers_of

CONFIGS = {"v2": TINY_V2, "v2-lite": TINY_LITE, "gqa": TINY_GQA, "moe-16b": TINY_MOE_16B}


def gradients(model: DeepseekV2, documents: list[int]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    tokens = sample_tokens(model.config, sum(documents) + 1)
    logits = model(tokens[:-1], ForwardBatch.packed(documents)).logits
    cross_entropy(logits, tokens[1:]).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("config", [TINY_V2, TINY_LITE, TINY_GQA], ids=["v2", "v2-lite", "gqa"])
def test_float32_gradients_are_transformers(config: ModelConfig) -> None:
    model = build(config)
    ours = gradients(model, [32])
    oracle = transformers_of(model)
    tokens = sample_tokens(config, 33)
    model.zero_grad()  # the oracle's parameters are the model's own
    cross_entropy(oracle(input_ids=tokens[None, :-1]).logits[0], tokens[1:]).backward()
    theirs = {name: parameter.grad for name, parameter in oracle.named_parameters()}
    assert ours.keys() == theirs.keys() == dict(model.named_parameters()).keys()
    assert {name: error for name in ours if (error := relative_error(ours[name], theirs[name])) > 1e-4} == {}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_float64_gradients_are_the_references(config: ModelConfig) -> None:
    model = build(config, torch.float64)
    fast = gradients(model, [20, 1, 11])
    with force("reference"):
        slow = gradients(model, [20, 1, 11])
    assert fast.keys() == slow.keys() == dict(model.named_parameters()).keys()
    assert {name: error for name in fast if (error := relative_error(fast[name], slow[name])) > 1e-12} == {}


def test_an_expert_without_tokens_takes_part_with_a_zero_gradient() -> None:
    model = build(TINY_V2)
    grads = gradients(model, [1])
    experts = grads["model.layers.1.mlp.experts.gate_up_proj"].flatten(1).norm(dim=1)
    assert (experts > 0).sum() == TINY_V2.num_experts_per_tok
    assert experts.shape == (TINY_V2.n_routed_experts,)
    assert torch.isfinite(experts).all()
