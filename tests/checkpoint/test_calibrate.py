"""What calibration finds: the gradients of the whole model layer by layer, and every matrix's moments."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, one_hot

from leadline.checkpoint.calibrate import Calibration, output_gradients, trusted
from leadline.checkpoint.folder import weight_entries
from leadline.checkpoint.load import load_model
from leadline.checkpoint.quality import Source, Walk, folder_source, sequences_of
from leadline.model.batch import ForwardBatch
from leadline.model.config import ModelConfig
from leadline.model.moe import MoE
from leadline.model.transformer import DecoderLayer, DeepseekV2
from leadline.ops.experts import swiglu
from leadline.tokenizer import Tokenizer
from tests.fixtures import SAMPLE_TEXT


@pytest.fixture
def parts(tiny_lite_folder: Path) -> tuple[ModelConfig, Source, list[list[int]], DeepseekV2]:
    config = ModelConfig.from_folder(tiny_lite_folder)
    source = folder_source(weight_entries(tiny_lite_folder, config))
    sequences = sequences_of(Tokenizer.from_folder(tiny_lite_folder), SAMPLE_TEXT * 3)
    model = load_model(tiny_lite_folder, dtype="float32", device="cpu").model
    return config, source, sequences, model.requires_grad_(False)


def test_gradients_layer_by_layer_are_those_of_the_whole(
    parts: tuple[ModelConfig, Source, list[list[int]], DeepseekV2],
) -> None:
    config, source, sequences, model = parts
    found = output_gradients(Walk(config, source, sequences, torch.float32))
    kept: list[Tensor] = []

    def keep(module: torch.nn.Module, given: object, output: tuple[Tensor, object]) -> None:
        kept.append(output[0])

    for layer in model.model.layers:
        layer.register_forward_hook(keep)
    tokens = torch.tensor([token for ids in sequences for token in ids])
    model.model.embed_tokens.weight.requires_grad_()
    logits = model(tokens, ForwardBatch.packed([len(ids) for ids in sequences])).logits
    generator = torch.Generator().manual_seed(0)
    blocks = logits.detach().softmax(-1).split(256)
    drawn = torch.cat([torch.multinomial(p, 1, generator=generator)[:, 0] for p in blocks])
    loss = -(logits.log_softmax(-1) * one_hot(drawn, config.vocab_size)).sum()
    for mine, whole in zip(found, torch.autograd.grad(loss, kept), strict=True):
        torch.testing.assert_close(mine, whole, rtol=1e-3, atol=1e-6)


def test_an_experts_moments_are_its_own_tokens(parts: tuple[ModelConfig, Source, list[list[int]], DeepseekV2]) -> None:
    config, source, sequences, _ = parts
    calibration = Calibration(config, source, sequences, torch.float32, ["layers.1.experts_down"])
    calibration.step(0, source)
    walk = calibration.exact
    layer = walk.load(1)
    assert isinstance(layer, DecoderLayer)
    assert isinstance(layer.mlp, MoE)
    seen: list[Tensor] = []
    layer.mlp.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    assert calibration._gradients is not None
    gradient_TD = calibration._gradients[1]
    moments = calibration.layer(1)
    with torch.no_grad():
        routings = [layer(walk.states_TD[part.rows], part.rope, part.batch)[1] for part in walk.parts]
    x_TD = torch.cat(seen)
    ids_TK = torch.cat([routing.expert_ids_TK for routing in routings if routing is not None])
    gates_TK = torch.cat([routing.weights_TK for routing in routings if routing is not None])
    index = int(ids_TK.flatten().bincount().argmax())
    rows, slots = (ids_TK == index).nonzero(as_tuple=True)
    gates_n = gates_TK[rows, slots].sqrt()[:, None]
    hidden_nF = swiglu(linear(x_TD[rows], layer.mlp.experts.gate_up_proj[index])).detach()
    for name, x_nX in (("experts_gate_up", x_TD[rows]), ("experts_down", hidden_nF)):
        moment = moments[f"layers.1.{name}"](index)
        wanted_XX = trusted((x_nX * gates_n).T @ (x_nX * gates_n) / len(rows), len(rows))
        torch.testing.assert_close(moment.inputs_KK, wanted_XX)
    g_nD = gradient_TD[rows] * gates_n
    torch.testing.assert_close(moment.outputs_NN[0], trusted(g_nD.T @ g_nD / len(rows), len(rows)))
    assert moments["layers.1.experts_gate_up"](index).outputs_NN == (None, None)


def test_few_tokens_are_believed_little() -> None:
    few = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    plain = few.T @ few / 8
    moment = trusted(plain, 8)
    torch.testing.assert_close(moment.diagonal(), plain.diagonal())
    torch.testing.assert_close(moment[0, 1], plain[0, 1] / 3)


def test_without_four_bits_nothing_goes_back(
    parts: tuple[ModelConfig, Source, list[list[int]], DeepseekV2], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, source, sequences, _ = parts
    monkeypatch.setattr("leadline.checkpoint.calibrate.output_gradients", None)
    moments = Calibration(config, source, sequences, torch.float32, []).layer(0)
    assert {moment(0).outputs_NN for moment in moments.values()} == {(None, None)}
    assert {"layers.0.q", "layers.0.kv_a", "layers.0.v_b", "layers.0.o", "layers.0.down"} <= set(moments)
