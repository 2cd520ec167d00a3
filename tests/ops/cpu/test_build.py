"""Every unit of the kernels compiles for every machine: one that is for other processors is empty there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from leadline.ops.cpu import native

SOURCES = Path(native.__file__).parent / "csrc"
UNITS = ("amx", "avx2", "avxvnni", "avx512", "bf16", "neon", "scalar", "team", "training")
COMPILER = shutil.which("c++")
FOR_ARM = shutil.which("aarch64-linux-gnu-g++")


def check(compiler: str, unit: str, *flags: str) -> None:
    command = [compiler, "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", *flags, f"{unit}.cpp"]
    done = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:2000]


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_needs_no_instruction_set(unit: str) -> None:
    if COMPILER is not None:  # else there are no kernels
        check(COMPILER, unit)


if FOR_ARM is not None:

    @pytest.mark.parametrize("unit", [*UNITS, "model", "pool"])
    def test_a_unit_compiles_for_arm(unit: str) -> None:
        check(str(FOR_ARM), unit, *(["-march=armv8.2-a+dotprod"] if unit == "neon" else []))
