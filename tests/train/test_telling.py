"""What a run tells beside its loss: utilisation, dead experts, what was dropped, TensorBoard's files."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import pytest
import torch

from leadline.model.balance import BalanceConfig
from leadline.model.config import V2
from leadline.model.dropping import DroppingConfig
from leadline.parallel.recompute import Recompute
from leadline.train import metrics
from leadline.train.config import TrainConfig
from leadline.train.data import exempt_sequences
from leadline.train.flops import measured_peak, step_flops
from leadline.train.tensorboard import EventWriter, crc32c, masked_crc
from tests.train.runs import LENGTH, TINY, newest, records, same, trainer

GROUPED = dataclasses.replace(TINY, topk_method="group_limited_greedy", n_group=2, topk_group=1)
DENSE = dataclasses.replace(TINY, n_routed_experts=None)


# ---- utilisation


def test_a_dense_models_operations_are_counted_by_hand() -> None:
    """Two for a multiplication and an addition, three times for forward and both gradients."""
    width, heads, vocabulary, layers = 32, 2, 320, 2
    attention = width * heads * 16 + width * (16 + 8) + 16 * heads * 16 + heads * 8 * width
    norms = layers * (2 * width + 16) + width
    weights = layers * (attention + 3 * width * 48) + vocabulary * width
    expected = 6 * 100 * (weights + norms) + 6 * 700 * layers * heads * (16 + 8)
    assert step_flops(DENSE, 100, 700) == expected


def test_a_moe_counts_the_experts_that_a_token_meets() -> None:
    one = step_flops(dataclasses.replace(TINY, num_experts_per_tok=1), 10, 0)
    two = step_flops(TINY, 10, 0)
    assert two - one == 6 * 10 * 3 * 32 * 16, "one expert more in the only MoE layer"


def test_v2_asks_for_155_gigaflop_a_token_at_4k() -> None:
    """Forward and backward, attention causal: what the paper's 172.8K GPU hours a trillion tokens were spent on."""
    assert step_flops(V2, 4096, 4096 * 4097 // 2) / 4096 == pytest.approx(155e9, rel=0.03)


def test_a_peak_is_measured_or_given(config: TrainConfig) -> None:
    assert measured_peak("cpu", "float32", seconds=0.01) > 1e8
    trainer(dataclasses.replace(config, peak_tflops=2.0)).run()
    start, *told = records(config)
    assert start["peak_tflops"] == 2.0
    step = next(record for record in told if "loss" in record)
    rate = step_flops(TINY, 1, 0) * step["tokens_per_second"] / 2e12
    assert rate < step["utilisation"] < 2 * rate, "attention within short documents adds a little"


# ---- experts


def test_an_expert_that_stays_dead_is_told_of_once(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metrics, "ALARM_AFTER", 3)
    told = metrics.Metrics(config, TINY)
    for loads in ([[1.0, 0.0, 0.5, 2.5]], [[1.0, 1.0, 1.0, 1.0]], *[[[1.0, 0.0, 0.5, 2.5]]] * 5):
        told._watch_experts(loads)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "layer 1, expert 1: under 1% of an even load for 3 steps" in lines[0]


def test_every_balance_loss_and_coefficient_is_told(config: TrainConfig) -> None:
    factors, dropping = BalanceConfig(0.01, 0.05, 0.02), DroppingConfig(1.0, 0.2)
    trainer(dataclasses.replace(config, model=GROUPED, balance=factors, dropping=dropping)).run()
    start, *told = records(config)
    assert (start["dropping_capacity_factor"], start["dropping_exempt"]) == (1.0, 0.2)
    for record in (record for record in told if "loss" in record):
        parts = [record[f"{name}_loss"] for name in ("expert", "device", "communication")]
        assert min(parts) > 0
        assert sum(parts) == pytest.approx(record["balance"])
        assert 0 <= record["dropped"] < 0.5
    assert any(record.get("dropped") for record in told)


def test_dropping_without_groups_is_pointed_out(config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(dataclasses.replace(config, dropping=DroppingConfig(1.0)))
    assert "dropping.capacity_factor drops nothing: the model's experts are in one" in capsys.readouterr().err


def test_a_pass_drops_the_same_tokens_whenever_it_is_made(config: TrainConfig) -> None:
    run = trainer(dataclasses.replace(config, model=GROUPED, dropping=DroppingConfig(1.0, 0.5)))
    batch = dataclasses.replace(run.data.batch(3), index=3)
    again, other = run.dropping(batch), run.dropping(dataclasses.replace(batch, index=4))
    first = run.dropping(batch)
    assert first is not None
    assert again is not None
    assert other is not None
    assert torch.equal(first.exempt_T, again.exempt_T)
    assert not torch.equal(first.exempt_T, other.exempt_T)
    rows = first.exempt_T.view(4, LENGTH)
    assert torch.equal(rows.any(1), rows.all(1)), "a sequence is exempt as a whole"


def test_about_a_tenth_of_the_sequences_are_exempt() -> None:
    drawn = [exempt_sequences(seed, index, 32, 0.1).mean() for seed in range(3) for index in range(100)]
    assert sum(drawn) / len(drawn) == pytest.approx(0.1, abs=0.01)


def test_an_evaluation_drops_nothing(config: TrainConfig) -> None:
    plain = trainer(dataclasses.replace(config, model=GROUPED))
    dropping = trainer(dataclasses.replace(config, model=GROUPED, dropping=DroppingConfig(0.1, 0.0)))
    assert plain.evaluate() == dropping.evaluate()
    batch = plain.data.batch(0)
    assert not torch.equal(plain.losses(batch)[0], dropping.losses(batch)[0])


# ---- recomputation


@pytest.mark.parametrize("part", ["attention", "ffn", "layer"])
def test_recomputation_changes_no_bit(config: TrainConfig, part: Recompute) -> None:
    base = dataclasses.replace(config, model=GROUPED, dropping=DroppingConfig(1.0), tokens=3 * 4 * LENGTH)
    again = dataclasses.replace(base, recompute=part, out=config.out.with_name("again"))
    for each in (base, again):
        assert trainer(each).run()
    assert same(newest(base), newest(again))


def saved_bytes(config: TrainConfig) -> int:
    """What the graph of one pass keeps, weights aside."""
    run, kept = trainer(config), dict[int, int]()
    weights = {p.untyped_storage().data_ptr() for p in run.model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = run.losses(run.data.batch(0))
    assert held
    return sum(kept.values())


def test_recomputation_keeps_less(config: TrainConfig) -> None:
    parts: tuple[Recompute, ...] = ("none", "ffn", "layer")
    none, ffn, layer = (saved_bytes(dataclasses.replace(config, recompute=part)) for part in parts)
    assert layer < ffn < none


# ---- TensorBoard


def test_the_checksum_is_crc32c() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA


def read_events(folder: Path) -> list[bytes]:
    """The payloads, every checksum checked."""
    (path,) = folder.iterdir()
    data, payloads = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        payload = data[12 : 12 + length]
        checks = struct.unpack("<I", data[8:12]) + struct.unpack("<I", data[12 + length : 16 + length])
        assert checks == (masked_crc(data[:8]), masked_crc(payload))
        payloads.append(payload)
        data = data[16 + length :]
    return payloads


def test_an_event_file_holds_the_scalars_of_each_record(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path, step=7)
    writer.write({"step": 300, "loss": 2.5, "dtype": "float32", "expert_load": [[0.5, 1.5]]})
    writer.close()
    version, start, scalars = read_events(tmp_path)
    assert version[9:] == b"\x10\x00\x1a\x0dbrain.Event:2"
    assert start[9:] == b"\x10\x08\x3a\x02\x08\x01", "session start at step 8: what was told of it before is void"
    loss = b"\x0a\x0b\x0a\x04loss\x15" + struct.pack("<f", 2.5)
    load = b"\x0a\x1e\x0a\x17expert_load/moe_layer_0\x15" + struct.pack("<f", 1.5)
    assert scalars[9:] == b"\x10\xac\x02\x2a" + bytes([len(loss + load)]) + loss + load


def test_a_run_writes_an_event_file_a_start(config: TrainConfig) -> None:
    assert trainer(dataclasses.replace(config, tensorboard=True)).run()
    payloads = read_events(config.out / "tensorboard")
    assert len(payloads) == 2 + len(records(config))
    assert sum(b"held_out_loss" in payload for payload in payloads) == 1
