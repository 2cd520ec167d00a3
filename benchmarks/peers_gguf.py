"""A GGUF file of the V2-Lite shape with random weights, written tensor by tensor: no model is ever in memory.

    python benchmarks/peers_gguf.py OUT.gguf [--experts 64] [--bits 4]

Run it where the `gguf` package is installed. Architecture `deepseek2` with latent attention: attn_k_b and attn_v_b as
llama.cpp reads them, and attn_kv_b too for engines that still ask for it. Everything is Q4_0 but what the published
quantisations keep larger as well: attn_k_b, whose rows of 128 llama.cpp's matrix units take as Q5_0, and the float32
gate and norms. With 8 bits all that is quantised is Q8_0. Blocks repeat after an odd number of bytes: nobody reads
them for their sense.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np

LAYERS, D, HEADS, NOPE, ROPE, VALUE, RANK = 27, 2048, 16, 128, 64, 128, 512
DENSE, CHOSEN, SHARED, INNER, VOCABULARY = 10944, 6, 2, 1408, 102400
DEVIATION = {"Q4_0": 4.32, "Q5_0": 9.23, "Q8_0": 73.6}  # of uniform codes, in steps
BLOCK_BYTES = {"Q4_0": 18, "Q5_0": 22, "Q8_0": 34, "F32": 4}
CHUNK = 1 << 20  # blocks made at a time


def blocks(kind: str, count: int, chance: np.random.Generator) -> np.ndarray:
    """`count` blocks of 32 weights: a scale, then codes. Of Q4_0 none is 0: with a mean of half a step under zero all
    tokens would look alike a few layers on, and choose the same experts."""
    shape = (min(count, CHUNK - 3), BLOCK_BYTES[kind])
    if kind == "Q4_0":
        made = chance.integers(1, 16, shape, dtype=np.uint8) | chance.integers(1, 16, shape, dtype=np.uint8) << 4
    elif kind == "Q8_0":
        made = chance.integers(-127, 128, shape, dtype=np.int8).view(np.uint8)
    else:
        made = chance.integers(0, 256, shape, dtype=np.uint8)
    made[:, :2] = np.frombuffer(np.float16(0.02 / DEVIATION[kind]).tobytes(), dtype=np.uint8)
    return np.resize(made, (count, BLOCK_BYTES[kind]))


def tensor(shape: tuple[int, ...], kind: str, chance: np.random.Generator) -> np.ndarray:
    """Rows of bytes for a quantised tensor, numbers for float32; the last axis is the one that is contracted."""
    if kind == "F32":
        return np.ones(shape, np.float32) if len(shape) == 1 else chance.normal(0, 0.02, shape).astype(np.float32)
    per_row = shape[-1] // 32
    rows = int(np.prod(shape[:-1]))
    return blocks(kind, rows * per_row, chance).reshape(*shape[:-1], per_row * BLOCK_BYTES[kind])


def shapes(experts: int) -> dict[str, tuple[tuple[int, ...], str]]:
    found: dict[str, tuple[tuple[int, ...], str]] = {
        "token_embd.weight": ((VOCABULARY, D), "Q4_0"),
        "output_norm.weight": ((D,), "F32"),
        "output.weight": ((VOCABULARY, D), "Q4_0"),
    }
    for layer in range(LAYERS):
        inner = {
            "attn_norm": ((D,), "F32"),
            "attn_q": ((HEADS * (NOPE + ROPE), D), "Q4_0"),
            "attn_kv_a_mqa": ((RANK + ROPE, D), "Q4_0"),
            "attn_kv_a_norm": ((RANK,), "F32"),
            "attn_k_b": ((HEADS, RANK, NOPE), "Q5_0"),
            "attn_v_b": ((HEADS, VALUE, RANK), "Q4_0"),
            "attn_output": ((D, HEADS * VALUE), "Q4_0"),
            "ffn_norm": ((D,), "F32"),
            **(ffn(experts) if layer else dense()),
        }
        found |= {f"blk.{layer}.{name}.weight": value for name, value in inner.items()}
    return found


def dense() -> dict[str, tuple[tuple[int, ...], str]]:
    return {
        "ffn_gate": ((DENSE, D), "Q4_0"),
        "ffn_up": ((DENSE, D), "Q4_0"),
        "ffn_down": ((D, DENSE), "Q4_0"),
    }


def ffn(experts: int) -> dict[str, tuple[tuple[int, ...], str]]:
    shared = SHARED * INNER
    return {
        "ffn_gate_inp": ((experts, D), "F32"),
        "ffn_gate_exps": ((experts, INNER, D), "Q4_0"),
        "ffn_up_exps": ((experts, INNER, D), "Q4_0"),
        "ffn_down_exps": ((experts, D, INNER), "Q4_0"),
        "ffn_gate_shexp": ((shared, D), "Q4_0"),
        "ffn_up_shexp": ((shared, D), "Q4_0"),
        "ffn_down_shexp": ((D, shared), "Q4_0"),
    }


def describe(writer: gguf.GGUFWriter, experts: int, bits: int, *, legacy: bool) -> None:
    writer.add_context_length(163840)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(DENSE)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS if legacy else 1)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(VOCABULARY)
    writer.add_kv_lora_rank(RANK)
    if legacy:
        writer.add_key_length(NOPE + ROPE)
        writer.add_value_length(VALUE)
    else:
        writer.add_key_length(RANK + ROPE)
        writer.add_value_length(RANK)
        writer.add_key_length_mla(NOPE + ROPE)
        writer.add_value_length_mla(VALUE)
    writer.add_rope_dimension_count(ROPE)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(40.0)
    writer.add_rope_scaling_orig_ctx_len(4096)
    writer.add_rope_scaling_yarn_log_mul(0.1 * 0.707)
    writer.add_leading_dense_block_count(1)
    writer.add_expert_count(experts)
    writer.add_expert_used_count(CHOSEN)
    writer.add_expert_shared_count(SHARED)
    writer.add_expert_feed_forward_length(INNER)
    writer.add_expert_weights_scale(1.0)
    writer.add_expert_weights_norm(False)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0 if bits == 4 else gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_tokenizer_model("no_vocab")


def write(path: Path, experts: int, bits: int, *, legacy: bool) -> None:
    """`legacy`: attn_kv_b instead of its two parts, for engines that split it themselves."""
    writer = gguf.GGUFWriter(path, "deepseek2")
    describe(writer, experts, bits, legacy=legacy)
    chance = np.random.default_rng(0)
    wanted = shapes(experts)
    if legacy:
        for layer in range(LAYERS):
            for name in ("attn_k_b", "attn_v_b"):
                del wanted[f"blk.{layer}.{name}.weight"]
            wanted[f"blk.{layer}.attn_kv_b.weight"] = ((HEADS * (NOPE + VALUE), RANK), "Q4_0")
    if bits == 8:
        wanted = {name: (shape, kind if kind == "F32" else "Q8_0") for name, (shape, kind) in wanted.items()}
    for name, (shape, kind) in wanted.items():
        rows = (*shape[:-1], shape[-1] // 32 * BLOCK_BYTES[kind]) if kind != "F32" else shape
        size = int(np.prod(rows)) * (4 if kind == "F32" else 1)
        dtype = np.dtype(np.float32 if kind == "F32" else np.uint8)
        writer.add_tensor_info(name, rows, dtype, size, gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for shape, kind in wanted.values():
        writer.write_tensor_data(tensor(shape, kind, chance))
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--bits", type=int, choices=[4, 8], default=4)
    parser.add_argument("--legacy", action="store_true", help="attn_kv_b in one piece")
    options = parser.parse_args()
    write(options.output, options.experts, options.bits, legacy=options.legacy)


if __name__ == "__main__":
    main()
