"""From what a user typed to a model that runs, and every way in which that is refused in one line."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from leadline.checkpoint import source
from leadline.checkpoint.load import find_model, load_model
from leadline.checkpoint.source import find_source
from leadline.errors import CheckpointError, ConfigError, LeadlineError, ModelNotFound, ResourceError, TokenizerError
from leadline.model.batch import ForwardBatch
from leadline.model.config import V2, V2_LITE
from tests.fixtures import TINY_LITE, TINY_TOKENS, make_model_folder


def test_a_folder(tiny_v2_folder: Path) -> None:
    loaded = load_model(tiny_v2_folder)
    assert (loaded.name, loaded.folder, loaded.config.n_group) == ("tiny-v2", tiny_v2_folder, 4)
    assert (loaded.dtype, loaded.device.type) == (torch.float32, "cpu")  # small, on a CPU
    assert loaded.plan.context_length == 2048
    assert loaded.generation.sampling_defaults() == {"temperature": 0.3, "top_p": 0.95}
    assert loaded.generation.eos_token_ids == (1,)
    assert loaded.tokenizer.vocab_size == TINY_TOKENS
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    logits = loaded.model(torch.arange(9), ForwardBatch.packed([9])).logits
    assert logits.isfinite().all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_the_type_asked_for(tiny_lite_folder: Path, dtype: str) -> None:
    loaded = load_model(str(tiny_lite_folder), dtype=dtype, max_model_len=128, max_num_seqs=3)
    assert loaded.dtype == getattr(torch, dtype)
    assert (loaded.plan.context_length, loaded.plan.cache_tokens) == (128, 3 * 128)
    assert loaded.plan.cache_dtype == dtype


def test_the_embedded_model_is_the_default(
    tiny_lite_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "EMBEDDED", tiny_lite_folder)
    assert load_model().name == source.EMBEDDED_NAME
    monkeypatch.setattr(source, "EMBEDDED", tmp_path)
    with pytest.raises(ModelNotFound, match="no embedded model"):
        load_model()


@pytest.mark.parametrize(
    "name", ["", "nothing", "a/b/c", "~/x/y", "/no/such/folder", "../up", "org/na me", "modelscope:x"]
)
def test_neither_folder_nor_hub_id(name: str) -> None:
    with pytest.raises(ModelNotFound, match="neither a folder nor a hub id"):
        find_source(name)


def test_a_path_is_never_looked_for_on_a_hub() -> None:
    with pytest.raises(ModelNotFound):
        find_source(Path("org/name"))


def test_hub_ids() -> None:
    assert type(find_source("deepseek-ai/DeepSeek-V2-Lite")).__name__ == "HuggingFace"
    assert type(find_source("modelscope:deepseek-ai/DeepSeek-V2-Lite")).__name__ == "ModelScope"


def test_a_folder_comes_before_a_hub_id(tiny_v2_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_v2_folder, tmp_path / "org" / "name")
    assert find_source("org/name").download_folder is None


@pytest.fixture
def folder(tiny_lite_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_lite_folder, tmp_path / "model")


def refusal(folder: Path, error: type[LeadlineError]) -> str:
    with pytest.raises(error) as caught:
        load_model(folder)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_file_is_no_model(folder: Path) -> None:
    assert "is a file" in refusal(folder / "config.json", ModelNotFound)
    gguf = folder / "lite.gguf"
    gguf.touch()
    assert "leadline pull org/name --quantize int4" in refusal(gguf, ModelNotFound)


def test_an_empty_folder_is_no_model(tmp_path: Path) -> None:
    assert "has no config.json" in refusal(tmp_path, CheckpointError)


def test_another_architecture(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "architectures": ["MambaForCausalLM"]}))
    message = refusal(folder, CheckpointError)
    assert "config.json: architecture MambaForCausalLM is not one of DeepseekV2ForCausalLM" in message


def test_a_missing_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json" in refusal(folder, TokenizerError)


def test_another_models_tokenizer(folder: Path) -> None:
    small = dataclasses.replace(TINY_LITE, vocab_size=TINY_TOKENS - 1)
    make_model_folder(folder, small, shards=1, tokenizer=False)
    assert "300 tokens, the model 299 rows" in refusal(folder, CheckpointError)


def test_a_damaged_shard_is_found_before_anything_is_loaded(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert f"{path} is truncated" in refusal(folder, CheckpointError)


def test_a_limit_that_fewer_bits_would_keep_says_so() -> None:
    with pytest.raises(
        ResourceError, match=r"330,000,000 bytes are usable.*; --quantize int4 fits: a context of 4,096"
    ):
        find_model(max_memory="330MB", in_kernel_layout=True)
    with pytest.raises(ResourceError) as caught:  # off the kernels they are dequantised
        find_model(max_memory="330MB")
    assert "quantize" not in caught.value.message


def test_a_limit_that_is_too_small(folder: Path) -> None:
    with pytest.raises(ResourceError, match="--max-memory"):
        load_model(folder, max_memory="1MB")
    with pytest.raises(ConfigError, match="is not a size"):
        load_model(folder, max_memory="lots")
    with pytest.raises(ConfigError, match="2,048 positions"):
        load_model(folder, max_model_len=2049)


def run_limited(arguments: list[str], limit: int = 4 << 30) -> subprocess.CompletedProcess[str]:
    """A child whose address space ends at `limit` bytes: more is refused by the system, at any moment."""
    code = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))\n{arguments[0]}"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code, *arguments[1:]]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


PLAN = "import sys; from leadline.cli import run; sys.exit(run(['plan', sys.argv[1]]))"

LOAD = """
import resource, sys
from leadline.checkpoint.load import load_model
from leadline.errors import LeadlineError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    loaded = load_model(sys.argv[1])
except LeadlineError as error:
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(grown << 10)
    print(error.message, file=sys.stderr)
    sys.exit(error.exit_code)
print(loaded.plan.context_length)
"""


def test_v2_lite_under_4_gib_ends_with_the_numbers_and_nothing_allocated(tmp_path: Path) -> None:
    """Only config.json is there: what is refused is refused before a weight is looked for."""
    folder = make_model_folder(tmp_path / "DeepSeek-V2-Lite", V2_LITE, shards=0, tokenizer=False)
    planned = run_limited([PLAN, str(folder)])
    loaded = run_limited([LOAD, str(folder)])
    assert (planned.returncode, loaded.returncode) == (2, 2)
    for result in (planned, loaded):
        assert result.stderr.count("\n") == 1
        for number in ("31,412,968,448 bytes", "31,104 bytes a token", "address-space limit of 4,294,967,296 bytes"):
            assert number in result.stderr
    assert int(loaded.stdout) < 64 << 20
    assert "weights       31,412,968,448 bytes in bfloat16" in planned.stdout


def test_the_vllm_command_names_the_folder(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "DeepSeek-V2", V2, shards=0, tokenizer=False)
    with pytest.raises(ResourceError, match=f"vllm serve {folder} --tensor-parallel-size 8"):
        load_model(folder, max_memory="8GiB")


def test_a_small_model_loads_under_4_gib(tiny_v2_folder: Path) -> None:
    result = run_limited([LOAD, str(tiny_v2_folder)])
    assert (result.returncode, result.stdout) == (0, "2048\n"), result.stderr
