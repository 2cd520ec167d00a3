"""Loading: every tensor in its place, of the type asked for, within the memory promised; saving gives them back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from leadline.checkpoint.save import save_model
from leadline.checkpoint.weights import load_weights
from leadline.errors import CheckpointError
from leadline.model.batch import ForwardBatch
from leadline.model.config import ModelConfig
from leadline.model.transformer import DeepseekV2
from tests.fixtures import TINY_LITE, TINY_V2, make_model_folder, random_tensors, write_weights


def empty_model(config: ModelConfig) -> DeepseekV2:
    with torch.device("meta"):
        return DeepseekV2(config)


def read_folder(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def digests(tensors: dict[str, Tensor]) -> dict[str, str]:
    data = {name: tensor.contiguous().view(-1).view(torch.uint8).numpy() for name, tensor in tensors.items()}
    return {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in data.items()}


def test_every_tensor_is_in_its_place(tiny_v2_folder: Path) -> None:
    model = load_weights(empty_model(TINY_V2), tiny_v2_folder)
    files = read_folder(tiny_v2_folder)
    state = model.state_dict()
    for name, parameter in state.items():
        if "experts.gate_up_proj" not in name and "experts.down_proj" not in name:
            assert torch.equal(parameter, files[name]), name
    prefix = "model.layers.2.mlp.experts"
    gate_up = torch.cat([files[f"{prefix}.5.{kind}_proj.weight"] for kind in ("gate", "up")])
    assert torch.equal(state[f"{prefix}.gate_up_proj"][5], gate_up)
    assert torch.equal(state[f"{prefix}.down_proj"][5], files[f"{prefix}.5.down_proj.weight"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_type_on_load(tiny_lite_folder: Path, dtype: torch.dtype) -> None:
    model = load_weights(empty_model(TINY_LITE), tiny_lite_folder, dtype=dtype)
    files = read_folder(tiny_lite_folder)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert torch.equal(model.lm_head.weight, files["lm_head.weight"].to(dtype))


def test_tensors_larger_than_a_block(tiny_v2_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_weights(empty_model(TINY_V2), tiny_v2_folder, dtype=torch.float32).state_dict()
    monkeypatch.setattr("leadline.checkpoint.weights.BLOCK_BYTES", 1000)
    for dtype in (torch.float32, torch.bfloat16):
        parts = load_weights(empty_model(TINY_V2), tiny_v2_folder, dtype=dtype).state_dict()
        assert all(torch.equal(tensor, whole[name].to(dtype)) for name, tensor in parts.items())


def test_a_weight_that_float16_cannot_hold_is_refused(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "m", TINY_LITE, shards=0)
    tensors = random_tensors(TINY_LITE)
    tensors["model.layers.1.mlp.gate.weight"][3, 4] = 1e5
    write_weights(folder, tensors)
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.gate\.weight holds values that float16 cannot"):
        load_weights(empty_model(TINY_LITE), folder, dtype=torch.float16)
    load_weights(empty_model(TINY_LITE), folder, dtype=torch.float32)


@pytest.mark.parametrize("copied", [False, True], ids=["left out", "stored too"])
def test_tied_embeddings_stay_one_tensor(tmp_path: Path, copied: bool) -> None:
    config = dataclasses.replace(TINY_LITE, tie_word_embeddings=True)
    folder = make_model_folder(tmp_path / "m", config, shards=0)
    tensors = random_tensors(config)
    if copied:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    write_weights(folder, tensors)
    model = load_weights(empty_model(config), folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, tensors["model.embed_tokens.weight"])
    save_model(model, tmp_path / "saved")
    assert "lm_head.weight" not in read_folder(tmp_path / "saved")


def test_a_model_that_has_memory_is_filled_where_it_is(tiny_v2_folder: Path) -> None:
    model = DeepseekV2(TINY_V2)
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    load_weights(model, tiny_v2_folder)
    assert before == {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    assert model.dtype == torch.float32


def test_nothing_is_allocated_for_a_folder_that_is_wrong(tiny_v2_folder: Path) -> None:
    model = empty_model(TINY_LITE)
    with pytest.raises(CheckpointError):
        load_weights(model, tiny_v2_folder)
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("max_shard_bytes", [1 << 30, 50_000], ids=["one file", "shards"])
@pytest.mark.parametrize("config", [TINY_V2, TINY_LITE], ids=["v2", "lite"])
def test_saving_gives_back_every_tensor_bit_for_bit(tmp_path: Path, config: ModelConfig, max_shard_bytes: int) -> None:
    folder = make_model_folder(tmp_path / "m", config)
    model = load_weights(empty_model(config), folder)
    save_model(model, tmp_path / "saved", max_shard_bytes=max_shard_bytes, tokenizer_from=folder)
    assert digests(read_folder(tmp_path / "saved")) == digests(read_folder(folder))
    assert ModelConfig.from_folder(tmp_path / "saved") == ModelConfig.from_folder(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "saved" / name).read_bytes() == (folder / name).read_bytes()
    again = load_weights(empty_model(config), tmp_path / "saved")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    shards = list((tmp_path / "saved").glob("*.safetensors"))
    assert (len(shards) > 1) == (max_shard_bytes == 50_000)
    if len(shards) > 1:
        index = json.loads((tmp_path / "saved" / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"].values()) == {path.name for path in shards}


def test_transformers_reads_what_we_save_and_we_read_what_it_saves(tiny_v2_folder: Path, tmp_path: Path) -> None:
    """The hub's other reader as oracle: the same logits from either folder."""
    from transformers import DeepseekV2ForCausalLM

    ours = load_weights(empty_model(TINY_V2), tiny_v2_folder, dtype=torch.float32)
    save_model(ours, tmp_path / "ours")
    theirs = DeepseekV2ForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    tokens = torch.arange(40) * 7 % 300
    with torch.no_grad():
        expected = theirs(tokens[None]).logits[0]
        torch.testing.assert_close(ours(tokens, ForwardBatch.packed([40])).logits, expected, rtol=1e-4, atol=1e-4)
        theirs.save_pretrained(tmp_path / "theirs")
        config = ModelConfig.from_folder(tmp_path / "theirs")
        again = load_weights(empty_model(config), tmp_path / "theirs", dtype=torch.float32)
        torch.testing.assert_close(again(tokens, ForwardBatch.packed([40])).logits, expected, rtol=1e-4, atol=1e-4)


MEASURE = """
import resource, sys
from pathlib import Path
import torch
from leadline.checkpoint.weights import load_weights
from leadline.model.config import ModelConfig
from leadline.model.transformer import DeepseekV2

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))

folder, dtype = Path(sys.argv[1]), getattr(torch, sys.argv[2])
torch.zeros(1000).to(torch.bfloat16).to(dtype).isfinite().all()  # PyTorch's own first-use allocations
with torch.device("meta"):
    model = DeepseekV2(ModelConfig.from_folder(folder))
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew here
before = resident("VmRSS")
load_weights(model, folder, dtype=dtype)
weights = sum(parameter.nbytes for parameter in model.parameters())
print((resident("VmHWM") - before) / weights, weights)
"""

HEAVY = dataclasses.replace(
    TINY_LITE, vocab_size=16384, hidden_size=512, moe_intermediate_size=512, n_routed_experts=32, num_hidden_layers=5
)


@pytest.fixture(scope="module")
def heavy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("heavy"), HEAVY, tokenizer=False)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_peak_memory_is_at_most_1_15_times_the_weights(heavy_folder: Path, dtype: str) -> None:
    command = [sys.executable, "-c", MEASURE, str(heavy_folder), dtype]
    root = Path(__file__).parents[2]
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(root)}
    )
    ratio, weights = map(float, result.stdout.split())
    assert weights > 200e6
    assert ratio <= 1.15
    if dtype == "float32":  # the last to need it
        shutil.rmtree(heavy_folder)
