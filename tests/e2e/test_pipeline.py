"""From text to an answering server through the commands alone, with transformers absent.

Text -> tokenizer -> corpus -> pre-training -> fine-tuning -> `generate` and `serve` on the model that came out: every
folder that one command writes is what the next one reads. A module called transformers lies in the way and leaves a
mark when anybody imports it, even within a try.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
PATIENCE = 240  # seconds; a machine that does other things too is slow, not wrong

TEXT = "The lead line tells how deep the water is. The captain asks, the sailor answers: four fathoms and a half.\n"
MODEL = """
vocab_size = 320
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 2
kv_lora_rank = 16
qk_nope_head_dim = 8
qk_rope_head_dim = 8
v_head_dim = 8
n_routed_experts = 4
n_shared_experts = 1
num_experts_per_tok = 2
moe_intermediate_size = 16
max_position_embeddings = 256
"""
TRAIN = """
out = "{out}"
data = "{data}"
{start}
tokens = 512
sequence_length = 64
batch_tokens = 256
micro_batch_tokens = 256
dtype = "float32"
compile = false
threads = 1
eval_tokens = 64
log_every = 1
[optimizer]
warmup_steps = 1
{model}
"""
CORPUS = """
tokenizer = "tokenizer"
output = "corpus"
valid_permille = 300
[[source]]
name = "sea"
path = "sea.jsonl"
licence = "CC0-1.0"
"""


class Shell:
    """Runs leadline in `folder`, where nobody may import transformers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        trap = folder / "trap/transformers"
        trap.mkdir(parents=True)
        self.mark = folder / "transformers-was-imported"
        (trap / "__init__.py").write_text(f"open({str(self.mark)!r}, 'w').close()\nraise ImportError('not here')\n")
        self.env = os.environ | {"PYTHONPATH": str(trap.parent), "PYTHONWARNINGS": "error"}

    def start(self, *args: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "leadline", *args]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=self.env, stdout=pipe, stderr=pipe, text=True)

    def run(self, *args: str) -> str:
        process = self.start(*args)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
        return out

    def write(self, name: str, text: str) -> str:
        (self.folder / name).parent.mkdir(exist_ok=True)
        (self.folder / name).write_text(text, encoding="utf-8")
        return name


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A shell in whose folder `sft/model` is a trained model."""
    shell = Shell(tmp_path_factory.mktemp("pipeline"))
    documents = [json.dumps({"text": f"Voyage {number}. {TEXT}"}) for number in range(40)]
    shell.write("sea.jsonl", "\n".join(documents) + "\n")
    shell.write("sea.txt", TEXT * 3)
    chat = {"messages": [{"role": "user", "content": "How deep?"}, {"role": "assistant", "content": "Four fathoms."}]}
    for split in ("train", "valid"):
        shell.write(f"chats/{split}.jsonl", f"{json.dumps(chat)}\n" * 12)
    shell.run("tokenizer", "train", "sea.txt", "--out", "tokenizer", "--vocab-size", "300")
    shell.run("train", "data", shell.write("corpus.toml", CORPUS))
    first = TRAIN.format(out="pretrain", data="corpus", start='tokenizer = "tokenizer"', model=f"[model]{MODEL}")
    shell.run("train", "pretrain", shell.write("pretrain.toml", first))
    second = TRAIN.format(out="sft", data="chats", start='init = "pretrain/model"', model="")
    shell.run("train", "sft", shell.write("sft.toml", second))
    return shell


@pytest.fixture(scope="module", autouse=True)
def _nobody_imports_transformers(shell: Shell) -> Iterator[None]:
    yield
    assert not shell.mark.exists()


def test_training_tells_a_line_a_step_and_a_held_out_loss(shell: Shell) -> None:
    lines = [json.loads(line) for line in (shell.folder / "pretrain/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert lines[-1]["bits_per_byte"] > 0


def test_generate_prints_the_completion_alone(shell: Shell) -> None:
    args = ("--model", "sft/model", "--dtype", "float32", "--temperature", "0", "--max-tokens", "8", "--ignore-eos")
    assert shell.run("generate", *args, "The lead") == shell.run("generate", *args, "The lead")


def test_the_offline_interface_answers_as_the_command_does(shell: Shell) -> None:
    code = (
        "from leadline import LLM, SamplingParams\n"
        "params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)\n"
        "print(LLM('sft/model', dtype='float32').generate(['The lead'], params)[0].text)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=shell.folder, env=shell.env, capture_output=True, text=True)
    args = ("--model", "sft/model", "--dtype", "float32", "--temperature", "0", "--max-tokens", "8", "--ignore-eos")
    assert done.stdout.rstrip("\n") == shell.run("generate", *args, "The lead").rstrip("\n"), done.stderr


def test_serve_answers_and_leaves_quietly(shell: Shell) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = shell.start("serve", "--model", "sft/model", "--port", str(port), "--open")
    base = f"http://127.0.0.1:{port}"
    try:
        wait_for_health(process, base)
        name = httpx2.get(f"{base}/v1/models").json()["data"][0]["id"]
        body = {"model": name, "messages": [{"role": "user", "content": "How deep?"}], "max_tokens": 8}
        answer = httpx2.post(f"{base}/v1/chat/completions", json=body, timeout=PATIENCE)
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] >= 1
    finally:
        process.terminate()
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode in (0, 143), err
    assert "Traceback" not in out + err


def wait_for_health(process: subprocess.Popen[str], base: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx2.get(f"{base}/health").status_code == 200:
                return
        except httpx2.HTTPError:
            time.sleep(0.1)
    process.kill()
    pytest.fail(f"the server did not get ready: {process.communicate()[1]}")
