"""The one dispatch point.

An op is a function whose body is its reference: plain PyTorch, differentiable, obviously right. Faster kernels register
on it with a predicate over the very arguments of the call; the first that accepts, in order of registration with the
latest first, runs. Nothing else in leadline chooses between implementations.

    @op
    def rms_norm(x, weight, eps): ...                 # the reference

    @rms_norm.kernel("fused", when=lambda x, weight, eps: x.is_cuda)
    def _(x, weight, eps): ...

Tests are generated from the registry: every kernel of every op on every case of `tests/ops/cases.py`.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

OPS: dict[str, Op[..., Any]] = {}
_forced: contextvars.ContextVar[str | None] = contextvars.ContextVar("leadline_forced_kernel", default=None)


class Kernel(Generic[P, R]):
    """One implementation: its name, the calls it accepts, the function."""

    def __init__(self, name: str, when: Callable[..., bool], function: Callable[..., R]) -> None:
        self.name, self.when, self.function = name, when, function


class Op(Generic[P, R]):
    """A reference and the kernels registered on it. Call it as the function it is."""

    def __init__(self, reference: Callable[P, R]) -> None:
        self.name = reference.__name__
        self.reference = reference
        self.kernels: list[Kernel[P, R]] = []
        self.__doc__ = reference.__doc__
        self.__wrapped__ = reference
        OPS[self.name] = self

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.choose(*args, **kwargs)(*args, **kwargs)

    def choose(self, *args: P.args, **kwargs: P.kwargs) -> Callable[P, R]:
        """The implementation this very call would run."""
        forced = _forced.get()
        for kernel in self.kernels:
            if (forced is None or kernel.name == forced) and kernel.when(*args, **kwargs):
                return kernel.function
        return self.reference

    def kernel(self, name: str, *, when: Callable[..., bool]) -> Callable[[Callable[..., R]], Callable[..., R]]:
        """Register an implementation for the calls that `when` accepts."""

        def register(function: Callable[..., R]) -> Callable[..., R]:
            self.kernels.insert(0, Kernel(name, when, function))
            return function

        return register


def op(reference: Callable[P, R]) -> Op[P, R]:
    """Make a function an op."""
    return Op(reference)


@contextlib.contextmanager
def force(kernel: str) -> Iterator[None]:
    """Within the block only kernels of this name are tried; "reference" leaves the references alone."""
    token = _forced.set(kernel)
    try:
        yield
    finally:
        _forced.reset(token)
