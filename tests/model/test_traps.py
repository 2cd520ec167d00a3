"""The traps that other implementations of this model fell into, one named test each.

The numbers are the field's own list; those about tokenizers, templates, formats and the API are tested where they live.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from leadline.errors import CheckpointError
from leadline.model.balance import BalanceConfig, balance_losses, sequence_ids
from leadline.model.batch import ForwardBatch
from leadline.model.cache import PagedCache
from leadline.model.config import V2, V2_5, V2_LITE, ModelConfig, yarn_mscale
from leadline.model.mla import MLA
from leadline.model.moe import MLP, Gate, MoE, Routing
from leadline.model.norm import RMSNorm
from leadline.model.rope import RotaryEmbedding, correction_range, inverse_frequencies, magnitude
from leadline.model.transformer import DeepseekV2
from leadline.ops.attention import expanded_attention
from leadline.ops.dispatch import force
from leadline.ops.experts import route
from leadline.ops.norm import rms_norm
from leadline.ops.rotary import rotate_halves, rotate_interleaved
from tests.fixtures import TINY_LITE, TINY_V2
from tests.model import formula
from tests.model.oracle import NARROW_V2, build, expanded, paged, relative_error, sample_tokens


def roped_pair(position_q: int, position_k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A query and a key of V2's rope width, and the cosines and sines of their positions."""
    generator = torch.Generator().manual_seed(0)
    q_k = torch.randn(2, 1, 64, generator=generator, dtype=torch.float64)
    rope = RotaryEmbedding(V2)(torch.tensor([position_q, position_k]))
    return q_k[0], q_k[1], rope.cos_TP.double(), rope.sin_TP.double()


def published_rotation(x: Tensor, cos_P: Tensor, sin_P: Tensor) -> Tensor:
    """As the published code does it: de-interleave, then rotate halves."""
    parted = torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)
    first, second = parted.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return parted * torch.cat((cos_P, cos_P)) + turned * torch.cat((sin_P, sin_P))


@pytest.mark.parametrize("positions", [(0, 0), (5, 3), (4097, 12), (100000, 1)])
def test_t01_rope_turns_interleaved_pairs(positions: tuple[int, int]) -> None:
    q, k, cos, sin = roped_pair(*positions)
    expected = (published_rotation(q, cos[0], sin[0]) * published_rotation(k, cos[1], sin[1])).sum()
    ours = (rotate_interleaved(q[None], cos[:1], sin[:1]) * rotate_interleaved(k[None], cos[1:], sin[1:])).sum()
    halves = (rotate_halves(q[None], cos[:1], sin[:1]) * rotate_halves(k[None], cos[1:], sin[1:])).sum()
    assert ours.item() == pytest.approx(expected.item(), abs=1e-10)
    if positions != (0, 0):
        assert abs(halves.item() - expected.item()) > 0.1, "rotating halves agrees at position 0 only"


def test_t02_the_cached_key_keeps_its_pairs_interleaved() -> None:
    """The other layout, de-interleaved, is as good alone but cannot be mixed with this one."""
    model, tokens = build(NARROW_V2, torch.float64), sample_tokens(NARROW_V2, 9)
    cache = filled_cache(model, tokens)
    _, key = compressed(model, tokens)
    cos, sin = formula.angles(NARROW_V2, range(9))
    stored = cache.storage[0, :9, NARROW_V2.kv_lora_rank :]
    assert relative_error(stored, formula.rotate_pairs(key, cos, sin)) < 1e-12


def filled_cache(model: DeepseekV2, tokens: Tensor) -> PagedCache:
    cache = PagedCache(model.config, 1, dtype=model.dtype)
    with torch.no_grad():
        model(tokens, ForwardBatch.paged(cache, [0], [len(tokens)], [[0]]))
    return cache


def compressed(model: DeepseekV2, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The first layer's latent before its norm and key before its rotation, by the formula."""
    weights = model.state_dict()
    x_TD = weights["model.embed_tokens.weight"][tokens].double()
    normed_TD = formula.norm(x_TD, weights["model.layers.0.input_layernorm.weight"], model.config)
    both = formula.project(weights, "model.layers.0.self_attn.kv_a_proj_with_mqa", normed_TD)
    latent, key = both.split((model.config.kv_lora_rank or 0, model.config.qk_rope_head_dim), dim=-1)
    return latent, key


def test_t03_angles_are_float32_in_a_bf16_model() -> None:
    model = build(NARROW_V2, torch.bfloat16)
    rope = model.model.rotary(torch.tensor([30000]))
    cos, sin = formula.angles(NARROW_V2, range(30000, 30001))
    assert rope.cos_TP.dtype == rope.sin_TP.dtype == torch.float32
    assert torch.allclose(rope.cos_TP.double(), cos, atol=1e-6)
    assert torch.allclose(rope.sin_TP.double(), sin, atol=1e-6)
    rounded = (inverse_frequencies(NARROW_V2).bfloat16() * torch.tensor(30000.0).bfloat16()).cos()
    assert (rounded.double() - cos).abs().max() > 0.5, "bf16 angles know nothing at 30,000"


def test_t03_the_rotation_of_bf16_queries_is_done_in_float32() -> None:
    x = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    rope = RotaryEmbedding(V2)(torch.tensor([30000]))
    exact = rotate_interleaved(x.double(), rope.cos_TP, rope.sin_TP)
    assert torch.equal(rotate_interleaved(x, rope.cos_TP, rope.sin_TP), exact.float().bfloat16())


@pytest.mark.parametrize("config", [V2, V2_LITE, V2_5], ids=["v2", "v2-lite", "v2.5"])
def test_t04_yarn_frequencies_are_the_golden_ones_at_every_position(config: ModelConfig) -> None:
    golden = {
        0: 1.0,
        9: 7.498942e-2,
        10: 5.623413e-2,
        11: 3.900693e-2,
        16: 5.5e-3,
        22: 1.778279e-4,
        23: 3.333804e-5,
        31: 3.333804e-6,
    }
    frequencies = inverse_frequencies(config)
    assert config.yarn is not None
    assert frequencies.shape == (32,)
    assert correction_range(config.yarn, 64, config.rope_theta) == (10, 23)
    assert {i: frequencies[i].item() for i in golden} == pytest.approx(golden, rel=1e-6)
    rotary = RotaryEmbedding(config)
    for position in (1, 4095, 4096, 4097):  # no switch at the original length
        expected = (torch.tensor(float(position)) * frequencies).sin()
        assert torch.equal(rotary(torch.tensor([position])).sin_TP[0], expected)


def test_t04_frequencies_are_transformers_to_the_bit() -> None:
    from transformers import AutoConfig, DeepseekV2Model

    with torch.device("meta"):
        oracle = DeepseekV2Model(AutoConfig.for_model(**dataclasses.replace(V2_LITE, num_hidden_layers=1).to_dict()))
    with torch.device("cpu"):
        rotary = type(oracle.rotary_emb)(oracle.config)
    assert torch.equal(inverse_frequencies(V2_LITE), rotary.inv_freq)


@pytest.mark.parametrize("config", [V2, V2_LITE, V2_5], ids=["v2", "v2-lite", "v2.5"])
def test_t05_cosines_and_sines_are_multiplied_by_exactly_one(config: ModelConfig) -> None:
    assert magnitude(config) == 1.0
    assert RotaryEmbedding(config)(torch.tensor([0])).cos_TP.unique().item() == 1.0


def test_t05_unequal_mscales_go_on_the_cosines_and_sines() -> None:
    assert V2.yarn is not None
    config = dataclasses.replace(V2, yarn=dataclasses.replace(V2.yarn, mscale=1.0, mscale_all_dim=0.0))
    assert magnitude(config) == pytest.approx(0.1 * math.log(40) + 1)
    assert RotaryEmbedding(config)(torch.tensor([0])).cos_TP[0, 0].item() == pytest.approx(magnitude(config))
    assert config.softmax_scale == 192**-0.5


def test_t06_the_softmax_scale_holds_mscale_squared() -> None:
    assert V2.softmax_scale == pytest.approx(0.1147213868, abs=5e-11)
    assert V2_LITE.softmax_scale == V2.softmax_scale
    assert yarn_mscale(40.0, 0.707) == pytest.approx(1.2608037774, abs=5e-11)
    assert yarn_mscale(40.0, 0.707) ** 2 == pytest.approx(1.5896261651, abs=5e-11)


def test_t06_without_mscale_the_result_is_wrong_from_the_second_token_on() -> None:
    model, tokens = build(NARROW_V2, torch.float64), sample_tokens(NARROW_V2, 4)
    right = expanded(model, tokens)
    set_scale(model, NARROW_V2.qk_head_dim**-0.5)
    wrong = expanded(model, tokens)
    assert relative_error(wrong[0], right[0]) < 1e-12
    assert relative_error(wrong[1:], right[1:]) > 1e-3


def set_scale(model: DeepseekV2, scale: float) -> None:
    for module in model.modules():
        if isinstance(module, MLA):
            module.scale = scale


def test_t07_the_absorbed_form_has_the_same_scale() -> None:
    model, tokens = build(NARROW_V2, torch.float64), sample_tokens(NARROW_V2, 40)
    right = expanded(model, tokens)
    assert relative_error(paged(model, tokens, [40]), right) < 1e-12
    set_scale(model, NARROW_V2.cache_row**-0.5)
    assert relative_error(paged(model, tokens, [40]), right) > 1e-3


def test_t08_heads_are_laid_out_as_published() -> None:
    """Query heads are (nope, rope); a head of kv_b is (its key, its value), not all keys and then all values."""
    config = dataclasses.replace(TINY_LITE, num_attention_heads=2, num_key_value_heads=2, yarn=None)
    attention = MLA(config, 0)
    marks = torch.arange(2 * config.qk_head_dim).float()
    with torch.no_grad():
        attention.q_proj.weight.copy_(marks[:, None].expand(-1, config.hidden_size))
    one = torch.zeros(1, config.hidden_size)
    one[0, 0] = 1.0
    rope = RotaryEmbedding(config)(torch.tensor([0]))
    nope, roped = attention.query(one, rope)
    assert nope[0, 0].tolist() == [float(i) for i in range(16)]
    assert roped[0, 0].tolist() == [float(i) for i in range(16, 24)]
    assert nope[0, 1].tolist() == [float(i) for i in range(24, 40)]
    with torch.no_grad():
        attention.kv_b_proj.weight.fill_(0)
        attention.kv_b_proj.weight.view(2, 32, -1)[1, 16:] = 1.0  # head 1's value rows
        attention.o_proj.weight.copy_(torch.eye(config.hidden_size)[:, : 2 * config.v_head_dim])
        output = attention(one, rope, ForwardBatch.packed([1]))[0]
    assert (output[:16] == 0).all()
    assert (output[16:32] != 0).all()


def test_t09_the_latent_is_normed_and_the_key_is_not() -> None:
    model, tokens = build(NARROW_V2, torch.float64), sample_tokens(NARROW_V2, 9)
    latent, key = compressed(model, tokens)
    stored = filled_cache(model, tokens).storage[0, :9]
    gain = model.state_dict()["model.layers.0.self_attn.kv_a_layernorm.weight"]
    assert relative_error(stored[:, :16], formula.norm(latent, gain, NARROW_V2)) < 1e-12
    assert torch.allclose(stored[:, 16:].norm(dim=-1), key.norm(dim=-1), rtol=1e-6), "turned, but not rescaled"


def test_t10_queries_are_compressed_in_v2_only() -> None:
    with torch.device("meta"):
        compressing, plain = MLA(V2, 0), MLA(V2_LITE, 0)
    assert compressing.q_a_proj.weight.shape == (1536, 5120)
    assert compressing.q_a_layernorm.weight.shape == (1536,)
    assert compressing.q_b_proj.weight.shape == (128 * 192, 1536)
    assert not hasattr(compressing, "q_proj")
    assert plain.q_proj.weight.shape == (16 * 192, 2048)
    assert not hasattr(plain, "q_a_proj")


@pytest.mark.parametrize(
    ("config", "dense", "expert", "shared", "kv_b"),
    [(V2, 12288, 1536, 3072, (128 * 256, 512)), (V2_LITE, 10944, 1408, 2816, (16 * 256, 512))],
    ids=["v2", "v2-lite"],
)
def test_t11_layer_sizes(config: ModelConfig, dense: int, expert: int, shared: int, kv_b: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = DeepseekV2(dataclasses.replace(config, num_hidden_layers=2))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    width, experts = config.hidden_size, config.n_routed_experts
    assert shapes["model.layers.0.mlp.gate_proj.weight"] == (dense, width)
    assert shapes["model.layers.1.mlp.experts.gate_up_proj"] == (experts, 2 * expert, width)
    assert shapes["model.layers.1.mlp.experts.down_proj"] == (experts, width, expert)
    assert shapes["model.layers.1.mlp.shared_experts.up_proj.weight"] == (shared, width)
    assert shapes["model.layers.1.mlp.gate.weight"] == (experts, width)
    assert shapes["model.layers.1.self_attn.kv_b_proj.weight"] == kv_b
    assert shapes["model.layers.1.self_attn.kv_a_proj_with_mqa.weight"] == (576, width)


def test_t12_the_gate_works_in_float32() -> None:
    """Two experts whose affinities differ by less than bf16 can tell."""
    gate = Gate(dataclasses.replace(V2_LITE, hidden_size=256, num_experts_per_tok=1)).bfloat16()
    with torch.no_grad():
        gate.weight.fill_(0.0)
        gate.weight[7] = 1.0
        gate.weight[9] = 1.0
        gate.weight[9, 0] = 1.0078125  # one step of bf16: 256 + 1/128 against 256
        routing = gate(torch.ones(1, 256, dtype=torch.bfloat16))
        rounded = linear(torch.ones(1, 256, dtype=torch.bfloat16), gate.weight)
    assert rounded[0, 7] == rounded[0, 9]
    assert routing.expert_ids_TK.tolist() == [[9]]
    assert routing.weights_TK.dtype == routing.scores_TE.dtype == torch.float32
    assert routing.scores_TE.sum(-1).item() == pytest.approx(1.0, abs=1e-6)


def test_t12_affinities_are_a_softmax_over_all_experts_before_the_choice() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    ids, gates, scores = route(logits, 2, 1, 1, False, 1.0)
    assert ids.tolist() == [[0, 1]]
    assert torch.equal(scores, logits.softmax(-1))
    assert torch.equal(gates, scores[:, :2])


def test_t12_experts_are_combined_in_float32_and_cast_once() -> None:
    moe = build(TINY_V2, torch.bfloat16).model.layers[1].mlp
    assert isinstance(moe, MoE)
    x = torch.randn(32, TINY_V2.hidden_size, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad():
        routing = moe.gate(x)
        parts = torch.stack([expert_output(moe, x, routing, slot) for slot in range(TINY_V2.num_experts_per_tok)], 1)
        exact = torch.einsum("tkd,tk->td", parts.double(), routing.weights_TK.double())
        routed = moe.dispatcher(x, routing, moe.experts, None)
    assert relative_error(routed, exact) < 2**-8, "within the rounding of one cast"


def expert_output(moe: MoE, x: Tensor, routing: Routing, slot: int) -> Tensor:
    """Each token's expert of this slot, alone, in the model's own type."""
    rows = []
    for token, expert in enumerate(routing.expert_ids_TK[:, slot].tolist()):
        gate, up = linear(x[token], moe.experts.gate_up_proj[expert]).chunk(2)
        rows.append(linear(torch.nn.functional.silu(gate) * up, moe.experts.down_proj[expert]))
    return torch.stack(rows)


def test_t13_a_groups_score_is_its_best_expert_not_the_sum_of_two() -> None:
    """Groups (0,1), (2,3), (4,5), (6,7); one is kept. The last has the single best expert, the first the best pair."""
    scores = torch.tensor([[0.20, 0.19, 0.05, 0.04, 0.03, 0.02, 0.001, 0.25]])
    ids, _, _ = route(scores.log(), 2, 4, 1, False, 1.0)
    assert ids.tolist() == [[7, 6]]


def test_t13_group_limited_and_greedy_choices_differ_and_ids_stay_global() -> None:
    scores = torch.tensor([[0.30, 0.01, 0.20, 0.19, 0.18, 0.01, 0.10, 0.01]])
    greedy, _, _ = route(scores.log(), 4, 1, 1, False, 1.0)
    limited, gates, affinities = route(scores.log(), 4, 4, 2, False, 16.0)
    assert greedy.tolist() == [[0, 2, 3, 4]]
    assert sorted(limited[0].tolist()) == [0, 1, 2, 3]
    assert torch.allclose(gates, affinities.gather(1, limited) * 16)


def test_t13_v2_reaches_at_most_three_groups_a_token() -> None:
    logits = torch.randn(200, 160, generator=torch.Generator().manual_seed(0))
    ids, _, _ = route(logits, 6, V2.n_group, V2.topk_group, V2.norm_topk_prob, V2.routed_scaling_factor)
    assert max(len(set(row)) for row in (ids // 20).tolist()) == 3
    assert all(len(set(row)) == 6 for row in ids.tolist())


def test_t14_the_grouped_path_runs() -> None:
    assert TINY_V2.topk_method == "group_limited_greedy"
    output = build(TINY_V2)(sample_tokens(TINY_V2, 5), ForwardBatch.packed([5]))
    assert torch.isfinite(output.logits).all()
    assert len(output.routings) == 2


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("factor", [1.0, 16.0])
def test_t15_a_normalised_gate_is_not_scaled(normalise: bool, factor: float) -> None:
    scores = torch.tensor([[0.4, 0.1, 0.3, 0.2]])
    _, gates, _ = route(scores.log(), 2, 1, 1, normalise, factor)
    expected = [0.4 / 0.7, 0.3 / 0.7] if normalise else [0.4 * factor, 0.3 * factor]
    assert gates[0].tolist() == pytest.approx(expected)


def test_t15_replayed_gates_are_the_same() -> None:
    for normalise in (False, True):
        config = dataclasses.replace(TINY_V2, norm_topk_prob=normalise)
        gate = Gate(config)
        torch.nn.init.normal_(gate.weight, generator=torch.Generator().manual_seed(0))
        x = torch.randn(9, config.hidden_size, generator=torch.Generator().manual_seed(1))
        routing = gate(x)
        replayed = gate.replay(x, routing.expert_ids_TK)
        assert torch.equal(replayed.weights_TK, routing.weights_TK)
        assert torch.equal(replayed.scores_TE, routing.scores_TE)


def test_t16_the_scaling_factor_is_the_routed_experts_alone() -> None:
    parts = {}
    for factor in (1.0, 16.0):
        moe = build(dataclasses.replace(TINY_V2, routed_scaling_factor=factor), torch.float64).model.layers[1].mlp
        assert isinstance(moe, MoE)
        assert moe.shared_experts is not None
        x = torch.randn(6, TINY_V2.hidden_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            parts[factor] = moe(x)[0] - moe.shared_experts(x), moe.shared_experts(x)
    assert relative_error(parts[16.0][0], parts[1.0][0] * 16) < 1e-12
    assert torch.equal(parts[16.0][1], parts[1.0][1])


def test_t17_the_scoring_function_is_never_guessed() -> None:
    with pytest.raises(CheckpointError, match="sigmoid"):
        ModelConfig.from_dict({**V2_LITE.to_dict(), "scoring_func": "sigmoid"})


def test_t18_the_balance_loss_reads_the_full_softmax_per_sequence() -> None:
    """f_i P_i by hand over two sequences of unlike length; nothing is padded, so nothing but tokens is counted."""
    logits = torch.randn(9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    routing = Routing(*route(logits, 3, 4, 2, False, 16.0))
    by_hand = []
    for start, end in ((0, 7), (7, 9)):
        chosen, scores = routing.expert_ids_TK[start:end], routing.scores_TE[start:end]
        length = end - start
        by_hand.append(
            sum(8 / (3 * length) * (chosen == e).sum().item() * sum(scores[:, e].tolist()) / length for e in range(8))
        )
    loss = balance_losses(routing, sequence_ids((0, 7, 9)), 2, TINY_V2, BalanceConfig(expert=0.003)).sum()
    assert loss.item() == pytest.approx(0.003 * sum(by_hand) / 2, rel=1e-6)


def test_t19_the_balance_loss_is_part_of_the_loss_and_scales_with_it() -> None:
    """Two micro-batches of halved loss give the gradient of both sequences in one."""
    gate = Gate(TINY_V2).double()
    torch.nn.init.normal_(gate.weight, generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 6, TINY_V2.hidden_size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    config = BalanceConfig(expert=0.003)
    balance_losses(gate(x.flatten(0, 1)), sequence_ids((0, 6, 12)), 2, TINY_V2, config).sum().backward()
    whole = take_gradient(gate)
    for part in x:
        (balance_losses(gate(part), sequence_ids((0, 6)), 1, TINY_V2, config).sum() / 2).backward()
    assert relative_error(take_gradient(gate), whole) < 1e-12
    balance_losses(gate(x[0]), sequence_ids((0, 6)), 1, TINY_V2, BalanceConfig(expert=0.0)).sum().backward()
    assert (take_gradient(gate) == 0).all()


def take_gradient(gate: Gate) -> Tensor:
    assert gate.weight.grad is not None
    gradient, gate.weight.grad = gate.weight.grad, None
    return gradient


def test_t20_gradients_flow_in_eval_mode() -> None:
    model = build(TINY_V2).eval()
    tokens = sample_tokens(TINY_V2, 40)
    model(tokens, ForwardBatch.packed([40])).logits.square().mean().backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert [name for name, grad in grads.items() if grad is None or not grad.abs().sum() > 0] == []


def test_t21_weights_begin_with_the_papers_spread() -> None:
    model = DeepseekV2(dataclasses.replace(TINY_V2, hidden_size=128))
    model.initialise(torch.Generator().manual_seed(0))
    matrices = torch.cat([p.flatten() for p in model.parameters() if p.dim() > 1])
    assert V2.initializer_range == 0.006
    assert matrices.std().item() == pytest.approx(0.006, rel=0.02)
    assert all((p == 1).all() for name, p in model.named_parameters() if name.endswith("norm.weight"))


def test_t21_no_token_is_dropped_outside_training() -> None:
    """The model itself never drops: every choice is a real expert, and train and eval mode agree to the bit."""
    model, tokens = build(TINY_V2), sample_tokens(TINY_V2, 50)
    with torch.no_grad():
        batch = ForwardBatch.packed([50])
        outputs = [model.train(mode)(tokens, batch) for mode in (True, False)]
    assert all((routing.expert_ids_TK < 8).all() for output in outputs for routing in output.routings)
    assert torch.equal(outputs[0].logits, outputs[1].logits)


def test_t29_float16_holds_a_residual_beyond_its_own_range() -> None:
    """The stream passes 65,504 in the first layer, and the scaled sum over experts does in the second."""
    model, tokens = build(TINY_V2, std=0.08), sample_tokens(TINY_V2, 20)
    embedding, first, second = model.model.embed_tokens, model.model.layers[0].mlp, model.model.layers[1].mlp
    assert isinstance(first, MLP)
    assert isinstance(second, MoE)
    peaks = []
    with torch.no_grad():
        embedding.weight.mul_(60000 / embedding.weight.abs().max())
        x_TD = torch.randn(50, TINY_V2.hidden_size, generator=torch.Generator().manual_seed(0))
        first.down_proj.weight.mul_(20000 / first(x_TD).abs().max())
        second.experts.down_proj.mul_(20000 / expert_output(second, x_TD, second.gate(x_TD), 0).abs().max())
        right = expanded(model, tokens)
        second.register_forward_hook(lambda _, args, output: peaks.append(output[0].abs().max().item()))
        expanded(model, tokens)
        assert min(peaks) > 65504
        half = model.to(torch.float16)
        assert relative_error(expanded(half, tokens), right) < 0.02
        assert relative_error(paged(half, tokens, [19, 1]), right) < 0.02


@pytest.mark.parametrize("width", [12, 16, 24, 32])
def test_t30_padded_values_are_exact(width: int) -> None:
    """192 wide keys with 128 wide values have no fast kernel: values are padded and cut again."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 20, 4, 24, generator=generator).unbind(0)
    v = torch.randn(20, 4, width, generator=generator)
    fast = expanded_attention(q, k, v, (0, 5, 20), 0.2)
    with force("reference"):
        slow = expanded_attention(q, k, v, (0, 5, 20), 0.2)
    assert fast.shape == (20, 4, width)
    assert relative_error(fast, slow) < 1e-6


def test_t31_prefix_and_suffix_are_one_shot_at_every_split() -> None:
    model, tokens = build(NARROW_V2), sample_tokens(NARROW_V2, 20)
    whole = expanded(model, tokens)
    for split in range(1, 20):
        assert relative_error(paged(model, tokens, [split, 20 - split]), whole) < 1e-4


def test_t36_the_norms_weight_multiplies_after_the_cast() -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(64, 128, generator=generator) * 5).bfloat16()
    norm = RMSNorm(128, 1e-6).bfloat16()
    with torch.no_grad():
        norm.weight.copy_(torch.randn(128, generator=generator))
        cast_first = (
            norm.weight * (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)).bfloat16()
        )
        cast_last = (
            norm.weight.float() * x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)
        ).bfloat16()
        assert torch.equal(norm(x), cast_first)
    assert not torch.equal(cast_first, cast_last)


def test_t36_statistics_are_float32() -> None:
    x = torch.full((1, 4), 300.0, dtype=torch.float16)  # its square is past float16's range
    assert torch.equal(rms_norm(x, torch.ones(4, dtype=torch.float16), 1e-6), torch.ones(1, 4, dtype=torch.float16))


def test_t40_absorption_changes_bf16_rounding_and_nothing_else() -> None:
    tokens = sample_tokens(NARROW_V2, 40)
    for dtype, least, most in ((torch.float64, 0.0, 1e-12), (torch.float32, 0.0, 1e-4), (torch.bfloat16, 1e-6, 0.1)):
        model = build(NARROW_V2, dtype, std=0.08)
        with torch.no_grad():
            drift = (paged(model, tokens, [40]) - expanded(model, tokens)).norm(dim=-1) / expanded(model, tokens).norm(
                dim=-1
            )
        assert least <= drift.median().item() <= most
