"""The dispatch point: which implementation a call runs, and how a caller decides it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from leadline.ops.dispatch import OPS, Op, force, op


@pytest.fixture
def double() -> Iterator[Op[[int], str]]:
    """An op of the test's own, out of the registry again afterwards."""

    @op
    def double(x: int) -> str:
        """Twice."""
        return f"reference {2 * x}"

    yield double
    del OPS["double"]


def test_without_kernels_the_reference_runs(double: Op[[int], str]) -> None:
    assert double(3) == "reference 6"
    assert (double.name, double.__doc__, OPS["double"]) == ("double", "Twice.", double)


def test_the_latest_kernel_that_accepts_runs(double: Op[[int], str]) -> None:
    double.kernel("small", when=lambda x: x < 10)(lambda x: f"small {2 * x}")
    double.kernel("even", when=lambda x: x % 2 == 0)(lambda x: f"even {2 * x}")
    assert [double(x) for x in (4, 3, 13)] == ["even 8", "small 6", "reference 26"]
    assert double.choose(13) is double.reference


def test_force_tries_kernels_of_that_name_only(double: Op[[int], str]) -> None:
    double.kernel("small", when=lambda x: x < 10)(lambda x: f"small {2 * x}")
    double.kernel("even", when=lambda x: x % 2 == 0)(lambda x: f"even {2 * x}")
    with force("small"):
        assert [double(x) for x in (4, 13)] == ["small 8", "reference 26"]
        with force("reference"):
            assert double(4) == "reference 8"
        assert double(4) == "small 8"
    assert double(4) == "even 8"


def test_force_ends_with_an_error_too(double: Op[[int], str]) -> None:
    double.kernel("even", when=lambda x: x % 2 == 0)(lambda x: f"even {2 * x}")
    with pytest.raises(ZeroDivisionError), force("reference"):
        raise ZeroDivisionError
    assert double(4) == "even 8"


def test_a_registered_kernel_stays_a_function_of_its_own(double: Op[[int], str]) -> None:
    @double.kernel("never", when=lambda x: False)
    def never(x: int) -> str:
        return "never"

    assert never(1) == "never"
    assert double(1) == "reference 2"
