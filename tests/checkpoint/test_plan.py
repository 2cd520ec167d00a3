"""The plan: exact where it says exact, within its budget where it says that something fits."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from leadline.checkpoint.machine import GIB, Gpu, Machine
from leadline.checkpoint.pack import read_bytes
from leadline.checkpoint.plan import Plan, advertised_context, choose_dtype, make_plan, require
from leadline.checkpoint.regions import regions, total_bytes
from leadline.errors import ConfigError, ResourceError
from leadline.model.config import SMALL, V2, V2_5, V2_LITE
from tests.fixtures import TINY_V2

LAPTOP = Machine(64 * GIB, "free memory")
H100 = Gpu("NVIDIA H100 80GB HBM3", 80 * GIB, 79 * GIB)


def on_gpus(count: int, gpu: Gpu = H100) -> Machine:
    return dataclasses.replace(LAPTOP, gpus=(gpu,) * count)


def test_exact_bytes_of_the_published_models() -> None:
    lite = make_plan(V2_LITE, LAPTOP, name="deepseek-ai/DeepSeek-V2-Lite-Chat")
    assert (lite.dtype, lite.weight_bytes, lite.cache_bytes_per_token) == ("bfloat16", 31_412_968_448, 31_104)
    assert lite.context_length == 32_768
    assert lite.cache_bytes == 32_768 * 31_104
    v2 = make_plan(V2, LAPTOP)
    assert (v2.weight_bytes, v2.cache_bytes_per_token) == (471_482_869_760, 69_120)


def test_advertised_contexts() -> None:
    assert advertised_context(V2_LITE, "DeepSeek-V2-Lite") == 32_768
    assert advertised_context(V2_LITE, "deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct") == 131_072
    assert advertised_context(V2) == advertised_context(V2_5) == 131_072
    assert advertised_context(SMALL) == 1024
    assert advertised_context(TINY_V2) == 2048


@given(
    memory=st.integers(0, 1 << 40),
    max_memory=st.none() | st.integers(1, 1 << 40),
    concurrency=st.integers(1, 64),
    max_num_seqs=st.integers(1, 64),
    context=st.none() | st.integers(1, 163_840),
    dtype=st.sampled_from(["auto", "float32", "bfloat16"]),
)
def test_a_plan_that_fits_stays_within_its_budget(
    memory: int, max_memory: int | None, concurrency: int, max_num_seqs: int, context: int | None, dtype: str
) -> None:
    machine = Machine(memory, "free memory")
    options = {"max_memory": max_memory, "concurrency": concurrency, "max_num_seqs": max_num_seqs, "dtype": dtype}
    plan = make_plan(V2_LITE, machine, context=context, **options)  # type: ignore[arg-type]
    assert plan.budget <= memory
    if plan.fits:
        slack = 64 * plan.concurrency * plan.cache_bytes_per_token  # whole pages
        assert plan.total_bytes <= plan.budget + slack
        assert plan.cache_tokens >= plan.context_length * concurrency
        assert plan.cache_tokens % 64 == 0
        assert plan.context_length == context or plan.context_length <= plan.advertised_context
    else:
        with pytest.raises(ResourceError):
            require(plan)


@given(memory=st.integers(34 * GIB, 34 * GIB + GIB // 2))
def test_the_default_context_is_what_fits(memory: int) -> None:
    plan = make_plan(V2_LITE, Machine(memory, "free memory"))
    assume(plan.fits and plan.context_length < plan.advertised_context)
    assert plan.context_length % 64 == 0
    more = make_plan(V2_LITE, Machine(memory, "free memory"), context=plan.context_length + 64)
    assert not more.fits


def test_more_sequences_take_the_room_there_is() -> None:
    one = make_plan(SMALL, Machine(GIB, "free memory"))
    many = make_plan(SMALL, Machine(GIB, "free memory"), max_num_seqs=16)
    tight = make_plan(SMALL, Machine(GIB, "free memory"), max_num_seqs=100_000)
    assert (one.cache_tokens, many.cache_tokens) == (1024, 16 * 1024)
    assert tight.fits
    assert tight.cache_tokens < 100_000 * 1024
    assert tight.total_bytes <= tight.budget


def test_what_does_not_fit_says_so_with_the_numbers() -> None:
    plan = make_plan(V2_LITE, Machine(4 * GIB, "free memory"), name="DeepSeek-V2-Lite")
    with pytest.raises(ResourceError) as caught:
        require(plan)
    for number in ("15,706,484,224", "31,412,968,448", "31,104", "3,865,470,566", "4,294,967,296 free memory"):
        assert number in caught.value.message
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.message


def test_a_context_that_does_not_fit_names_the_one_that_does() -> None:
    plan = make_plan(V2_LITE, Machine(36 * GIB, "free memory"), context=163_840)
    assert plan.problem is not None
    fitting = int(plan.problem.rpartition("a context of ")[2].split()[0].replace(",", ""))
    assert make_plan(V2_LITE, Machine(36 * GIB, "free memory"), context=fitting).fits


def test_a_model_for_several_gpus_comes_with_the_vllm_command() -> None:
    plan = make_plan(V2, on_gpus(8), name="deepseek-ai/DeepSeek-V2-Chat")
    command = "vllm serve deepseek-ai/DeepSeek-V2-Chat --tensor-parallel-size 8 --max-model-len 131072"
    assert plan.vllm == command
    with pytest.raises(ResourceError, match=r"On several GPUs: vllm serve .* --tensor-parallel-size 8"):
        require(plan)
    assert (
        make_plan(V2, LAPTOP).vllm
        == "vllm serve the model --tensor-parallel-size 8 --max-model-len 131072 (on 8 x 80 GB)"
    )
    small = Gpu("NVIDIA A100-SXM4-40GB", 40 * GIB, 39 * GIB)
    assert "--pipeline-parallel-size 2" in str(make_plan(V2, on_gpus(8, small)).vllm)


def test_two_small_gpus_together_hold_v2_lite() -> None:
    small = Gpu("NVIDIA L4", 24 * GIB, 23 * GIB)
    plan = make_plan(V2_LITE, dataclasses.replace(on_gpus(2, small), memory=8 * GIB), name="lite")
    assert str(plan.vllm).startswith("vllm serve lite --tensor-parallel-size 2 --max-model-len ")
    assert make_plan(V2_LITE, Machine(8 * GIB, "free memory")).vllm is None


def test_device_and_type() -> None:
    gpu = make_plan(V2_LITE, on_gpus(1))
    assert (gpu.device, gpu.bandwidth) == ("cuda:0", 3.35e12)
    assert gpu.tokens_per_second == 3.35e12 / gpu.decode_bytes
    assert make_plan(V2_LITE, on_gpus(1), device="cpu").device == "cpu"
    assert make_plan(V2, on_gpus(1)).device == "cpu"
    assert choose_dtype(SMALL, "cpu") == "float32"
    assert choose_dtype(SMALL, "cuda:0") == choose_dtype(V2_LITE, "cpu") == "bfloat16"
    assert choose_dtype(SMALL, "cpu", "float16") == "float16"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"device": "tpu"}, ConfigError),
        ({"device": "cuda:x"}, ConfigError),
        ({"device": "cuda"}, ResourceError),
        ({"dtype": "int3"}, ConfigError),
        ({"context": 0}, ConfigError),
        ({"context": 163_841}, ConfigError),
        ({"concurrency": 0}, ConfigError),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        make_plan(V2_LITE, LAPTOP, **options)  # type: ignore[arg-type]


def test_a_decoded_token_reads_the_active_weights_without_the_embedding() -> None:
    plan = make_plan(V2_LITE, LAPTOP, bandwidth=100e9)
    assert plan.decode_bytes == 2 * V2_LITE.parameters(active=True)
    assert plan.tokens_per_second == pytest.approx(100e9 / plan.decode_bytes)
    cache = plan.context_length * plan.cache_bytes_per_token
    assert plan.tokens_per_second_full == pytest.approx(100e9 / (plan.decode_bytes + cache))


def test_planning_needs_no_torch() -> None:
    code = "import leadline.cli.plan, leadline.checkpoint.hub, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_plan_prints_as_json() -> None:
    raw = make_plan(SMALL, LAPTOP).to_dict()
    assert raw["fits"] is True
    assert raw["total_bytes"] == raw["weight_bytes"] + raw["cache_bytes"] + raw["activation_bytes"]
    assert isinstance(make_plan(SMALL, LAPTOP), Plan)


def test_quantised_weights_are_what_is_planned_where_they_run_as_they_are() -> None:
    """V2-Lite in int4 fits 24 GB with its whole advertised context, which bf16 does not."""
    found = regions(V2_LITE, "int4")
    packed = total_bytes(found), read_bytes(found, V2_LITE)
    machine = Machine(22 << 30, "free memory")
    plan = make_plan(V2_LITE, machine, dtype="bfloat16", packed=packed, bandwidth=37e9)
    assert plan.fits
    assert plan.weight_bytes == total_bytes(found) == pytest.approx(8.76e9, rel=0.01)
    assert plan.decode_bytes == pytest.approx(1.43e9, rel=0.02)
    assert plan.tokens_per_second == pytest.approx(26, abs=1)
    assert not make_plan(V2_LITE, machine, dtype="bfloat16").fits
