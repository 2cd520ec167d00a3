"""The bound model against the PyTorch model: exact weights give its logits, quantised ones those of the dequantised
weights within the rounding of the activations."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from leadline.checkpoint.recipes import RECIPES, Recipe
from leadline.errors import ConfigError
from leadline.model.batch import ForwardBatch
from leadline.model.cpu import CpuModel
from leadline.model.moe import MoE
from leadline.model.packed import MODEL, PackedWeights, exact, pack_model
from leadline.ops.cpu import native
from tests.engine.models import random_model
from tests.fixtures import TINY_LITE, TINY_V2
from tests.ops.cpu.models import CONFIGS, everywhere, exact_pair, new_cache, quantised_pair, run, tokens_of

SETS = native.instruction_sets()
CACHES = ("float32", "bfloat16", "int8", "6bit")
LENGTHS, TABLES = [150, 1, 40], [[3, 0, 5], [1], [7]]


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("name", CONFIGS)
def test_exact_weights_give_pytorchs_logits_and_routing(name: str, isa: str) -> None:
    config = CONFIGS[name]
    bound, reference = exact_pair(config, isa=isa)
    ids = tokens_of(config, sum(LENGTHS))
    for kind in CACHES if isa == SETS[0] else CACHES[:1]:
        caches = new_cache(config, kind=kind), new_cache(config, kind=kind)
        actual = run(bound, caches[0], ids, [0, 0, 0], LENGTHS, TABLES)
        expected = run(reference, caches[1], ids, [0, 0, 0], LENGTHS, TABLES)
        tolerance = (
            1e-4 if kind == "float32" else 0.1
        )  # a row's last bit may be rounded otherwise, and choose otherwise
        error = (actual - expected).abs() / expected.abs().max()
        assert error.max() <= tolerance or (kind != "float32" and error.median() < 1e-3), kind


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("kind", ["int8", "6bit"])
@pytest.mark.parametrize("latent", [16, 128])
def test_packed_rows_are_the_references_bytes(isa: str, kind: str, latent: int) -> None:
    """The first layer's rows, whose floats are the same on both sides but for their last bits."""
    config = dataclasses.replace(TINY_LITE, num_hidden_layers=1, kv_lora_rank=latent)
    bound, reference = exact_pair(config, isa=isa)
    ids = tokens_of(config, 90)
    caches = new_cache(config, kind=kind), new_cache(config, kind=kind)
    actual, expected = (
        run(bound, caches[0], ids, [0], [90], [[2, 1]]),
        run(reference, caches[1], ids, [0], [90], [[2, 1]]),
    )
    assert (caches[0].storage != caches[1].storage).float().mean() < 0.01
    torch.testing.assert_close(actual, expected, rtol=0, atol=0.02 * float(expected.abs().max()))


def test_routing_is_given_when_asked_for() -> None:
    bound, reference = exact_pair(TINY_V2)
    ids = tokens_of(TINY_V2, 30)
    with torch.inference_mode():
        both = [
            model.hidden(ids, ForwardBatch.paged(new_cache(TINY_V2), [0], [30], [[0]]))[1]
            for model in (bound, reference)
        ]
    assert len(both[0]) == len(both[1]) == 2
    for actual, expected in zip(*both, strict=True):
        assert torch.equal(actual.expert_ids_TK, expected.expert_ids_TK)
        torch.testing.assert_close(actual.weights_TK, expected.weights_TK, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(actual.scores_TE, expected.scores_TE, rtol=1e-4, atol=1e-5)
    assert torch.equal(both[0][-1].expert_ids_TK, both[1][1].expert_ids_TK)
    with pytest.raises(IndexError):
        both[0][2]


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_layers_experts_alone_are_pytorchs_and_no_row_minds_the_others(name: str, isa: str) -> None:
    bound, reference = exact_pair(CONFIGS[name], isa=isa)
    layer = CONFIGS[name].first_k_dense_replace
    moe = reference.model.layers[layer].mlp
    assert isinstance(moe, MoE)
    x_TD = torch.randn(37, CONFIGS[name].hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected_TD, routing = moe(x_TD)
    actual_TD = bound.experts(layer, x_TD, routing.expert_ids_TK, routing.weights_TK)
    torch.testing.assert_close(actual_TD, expected_TD, rtol=1e-4, atol=1e-4)
    one_TD = bound.experts(layer, x_TD[5:6], routing.expert_ids_TK[5:6], routing.weights_TK[5:6])
    assert torch.equal(one_TD, actual_TD[5:6])


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_quantised_weights_give_the_dequantised_models_logits(name: str, recipe: Recipe) -> None:
    """An activation's code is at most half a step, 1/254 of its group's peak, from its value."""
    config = everywhere(CONFIGS[name])
    bound, reference = quantised_pair(config, recipe)
    ids = tokens_of(config, sum(LENGTHS))
    actual, expected = (run(model, new_cache(config), ids, [0, 0, 0], LENGTHS, TABLES) for model in (bound, reference))
    error = (actual - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < 0.04


@pytest.mark.parametrize("recipe", ["int8", "int4"])
def test_every_set_and_any_number_of_threads_give_the_same_bits(recipe: Recipe) -> None:
    ids = tokens_of(TINY_LITE, sum(LENGTHS))
    results = [
        run(
            quantised_pair(TINY_LITE, recipe, isa=isa, threads=threads)[0],
            new_cache(TINY_LITE),
            ids,
            [0] * 3,
            LENGTHS,
            TABLES,
        )
        for isa, threads in [(SETS[0], 1), (SETS[0], 2), (SETS[0], 5), *((isa, 2) for isa in SETS[1:])]
    ]
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize(
    "changes",
    [
        {"n_shared_experts": 0},
        {"n_routed_experts": None},
        {"norm_topk_prob": True, "routed_scaling_factor": 2.5},
        {"attention_bias": True},
        {"tie_word_embeddings": True},
        {"vocab_size": 301, "hidden_size": 40, "moe_intermediate_size": 20, "v_head_dim": 10},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", CONFIGS)
def test_other_shapes(name: str, changes: dict[str, int]) -> None:
    config = dataclasses.replace(CONFIGS[name], **changes)  # type: ignore[arg-type]
    bound, reference = exact_pair(config)
    ids = tokens_of(config, 20)
    actual, expected = (run(model, new_cache(config), ids, [0], [20], [[2]]) for model in (bound, reference))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_cached_rows_are_finite_whatever_is_written() -> None:
    model = random_model(TINY_LITE)
    model.model.embed_tokens.weight[7] = float("inf")
    bound = CpuModel(TINY_LITE, pack_model(model), dtype=torch.float32)
    for kind in CACHES:
        cache = new_cache(TINY_LITE, kind=kind)
        logits = run(bound, cache, torch.tensor([5, 7]), [0, 0], [1, 1], [[0], [1]])
        assert cache.storage.float().isfinite().all()
        assert logits[0].isfinite().all()
        assert not logits[1].isfinite().any()


def test_packing_releases_what_it_has_packed() -> None:
    model = random_model(TINY_V2)
    before = pack_model(model)
    weights = pack_model(model, release=True)
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1) == 0
    assert weights.nbytes == before.nbytes
    assert torch.equal(weights.matrices[MODEL, "head"].data, before.matrices[MODEL, "head"].data)


def test_bfloat16_is_kept_where_it_is_exact() -> None:
    weight = torch.randn(4, 4)
    assert exact(weight).dtype == torch.float32
    assert exact(weight.bfloat16().float()).dtype == torch.bfloat16
    bound = CpuModel(TINY_LITE, pack_model(random_model(TINY_LITE).bfloat16().float()))
    formats = {packed.layout.format for packed in bound.weights.matrices.values()}
    assert formats == {"bf16"}


def test_weights_of_another_model_are_refused() -> None:
    weights = pack_model(random_model(TINY_LITE))
    with pytest.raises(ConfigError, match="another model's shape"):
        CpuModel(dataclasses.replace(TINY_LITE, vocab_size=100), weights)
    without = {key: value for key, value in weights.matrices.items() if key[1] != "kv_a"}
    with pytest.raises(ConfigError, match="kv_a is missing"):
        CpuModel(TINY_LITE, PackedWeights(weights.embedding, without, weights.vectors))
    with pytest.raises(ConfigError, match="latent attention"):
        CpuModel(dataclasses.replace(TINY_LITE, kv_lora_rank=None), weights)
    with pytest.raises(ConfigError, match="avx9"):
        CpuModel(TINY_LITE, weights, isa="avx9")


def test_the_first_pass_may_want_no_logits() -> None:
    """As the first chunk of a long prompt does, in an engine that was not warmed up."""
    bound, _ = exact_pair(TINY_LITE)
    assert bound.lm_head(torch.zeros(0, TINY_LITE.hidden_size)).shape == (0, TINY_LITE.vocab_size)


@pytest.mark.parametrize("isa", SETS)
def test_the_likeliest_of_some_rows_and_columns(isa: str) -> None:
    """As the sampler asks: the tokenizer's columns of the logits' rows."""
    model, _ = exact_pair(TINY_LITE, isa=isa)
    logits_RV = torch.randn(3, 100, generator=torch.Generator().manual_seed(3))
    logits_RV[0, 95] = 9.0  # past the tokenizer's
    logits_RV[1, 7] = logits_RV[1, 70] = 8.0
    logits_RV[2, 50] = float("nan")
    peaks_R, ids_R = model.likeliest(logits_RV[:, :90])
    assert ids_R[:2].tolist() == [int(logits_RV[0, :90].argmax()), 7]
    assert peaks_R[:2].tolist() == [float(logits_RV[0, :90].max()), 8.0]
    assert peaks_R[2].isnan()
