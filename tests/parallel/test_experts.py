"""Expert parallelism in a world of one: what is computed while tokens travel. More processes: tests/train."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from leadline.model.moe import LocalDispatcher, MoE
from leadline.parallel.experts import AllToAllDispatcher, _Trip
from tests.fixtures import TINY_V2


@pytest.fixture
def group(tmp_path: Path) -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert dist.group.WORLD is not None
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


def made(group: dist.ProcessGroup | None) -> MoE:
    moe = MoE(TINY_V2).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in moe.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    moe.dispatcher = LocalDispatcher() if group is None else AllToAllDispatcher(group)
    return moe


def tokens() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(9, TINY_V2.hidden_size, dtype=torch.float64, generator=generator).requires_grad_()


def test_tokens_that_travel_come_to_the_same(group: dist.ProcessGroup) -> None:
    found = []
    for moe, x in ((made(None), tokens()), (made(group), tokens())):
        out, _ = moe(x)
        out.square().sum().backward()
        found.append([out, x.grad, *(parameter.grad for parameter in moe.parameters())])
    for alone, travelled in zip(*found, strict=True):
        torch.testing.assert_close(travelled, alone, rtol=1e-12, atol=1e-12)


def test_shared_experts_compute_while_tokens_and_gradients_travel(
    group: dist.ProcessGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    moe, events = made(group), []
    start, end = _Trip.start, _Trip.end

    def starts(self: _Trip, *rows: object) -> Tensor:
        events.append("leave")
        return start(self, *rows)  # type: ignore[arg-type]

    def ends(self: _Trip) -> Tensor:
        events.append("arrive")
        return end(self)

    monkeypatch.setattr(_Trip, "start", starts)
    monkeypatch.setattr(_Trip, "end", ends)
    assert moe.shared_experts is not None
    moe.shared_experts.down_proj.register_forward_hook(lambda *_: events.append("shared"))
    moe.shared_experts.down_proj.weight.register_hook(lambda _: events.append("shared"))
    out, _ = moe(tokens())
    counts, there, back = ["leave", "arrive"], ["leave", "shared", "arrive"], ["leave", "arrive"]
    assert events == [*counts, *there, *back]
    events.clear()
    out.sum().backward()
    assert [event for event, _ in itertools.groupby(events)] == [*back, *there]
