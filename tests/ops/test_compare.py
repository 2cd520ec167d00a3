"""The comparison itself: a difference is found, and found where it is."""

from __future__ import annotations

import torch

from tests.ops.compare import difference

NAN, INF = float("nan"), float("inf")


def test_equal_tensors_agree_with_their_nan_and_infinities() -> None:
    x = torch.tensor([1.0, NAN, INF, -INF])
    assert difference(x, x.clone(), 1e-6) is None
    assert difference(torch.zeros(0, 3), torch.zeros(0, 3), 1e-6) is None


def test_the_worst_place_is_named() -> None:
    expected = torch.zeros(3, 4)
    expected[0, 0] = 1.0
    actual = expected.clone()
    actual[1, 2], actual[2, 3] = 0.5, 0.25
    message = difference(actual, expected, 1e-3)
    assert message is not None
    assert "2 of 12 places, most at (1, 2): 0.5 instead of 0.0" in message


def test_nan_is_not_a_number_within_tolerance() -> None:
    for actual, expected in ((NAN, 1.0), (1.0, NAN), (INF, 1e30), (INF, -INF), (NAN, INF)):
        message = difference(torch.tensor([2.0, actual]), torch.tensor([2.0, expected]), 1.0)
        assert message is not None
        assert message.startswith("NaN or infinity differ at 1 of 2 places, most at (1,)")


def test_shapes_and_whole_numbers_are_exact() -> None:
    assert difference(torch.zeros(2), torch.zeros(3), 1.0) == "shape (2,) instead of (3,)"
    assert difference(torch.tensor([4, 7]), torch.tensor([4, 8]), 1.0) is not None
