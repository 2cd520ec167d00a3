"""Registries: built-ins and other packages' entry points, lazily, and a clear line for what is not there."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from leadline.errors import ConfigError
from leadline.plugins import Registry

NUMBERS: Registry[float] = Registry("leadline.test_numbers", "number", {"pi": "math:pi", "lost": "math:nowhere"})


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path that holds an installed package with entry points of its own."""
    info = tmp_path / "sounding-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sounding\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[leadline.test_numbers]\ntau = sounding:TAU\npi = sounding:TAU\nbroken = sounding:ABSENT\n"
    )
    (tmp_path / "sounding.py").write_text("TAU = 6.28\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sounding", raising=False)
    return tmp_path


def test_a_builtin_is_loaded() -> None:
    assert NUMBERS.load("pi") == math.pi


def test_a_fault_of_our_own_is_not_the_users() -> None:
    with pytest.raises(AttributeError):
        NUMBERS.load("lost")


@pytest.mark.usefixtures("installed")
def test_another_package_adds_names_and_is_imported_late() -> None:
    assert NUMBERS.names() == ["broken", "lost", "pi", "tau"]
    assert "sounding" not in sys.modules
    assert NUMBERS.load("tau") == 6.28


@pytest.mark.usefixtures("installed")
def test_a_builtin_cannot_be_taken_over() -> None:
    assert NUMBERS.load("pi") == math.pi


@pytest.mark.usefixtures("installed")
def test_a_broken_package_is_named() -> None:
    with pytest.raises(ConfigError, match=r"number 'broken' \(sounding:ABSENT\) cannot be loaded"):
        NUMBERS.load("broken")


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown number 'pie'; did you mean 'pi'\?"):
        NUMBERS.load("pie")
