"""kill -9 with eight streams in flight: what was committed survives, what was held is settled by the sweep."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.source import ROOT


def kill(rounds: int, seed: int, folder: Path, lag: float) -> str:
    """`lag` is how many seconds bills may be behind what was delivered."""
    arguments = [str(rounds), str(seed), str(folder), str(lag)]
    command = [sys.executable, "-m", "tests.server.platform.killer", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_killed_a_few_times(tmp_path: Path) -> None:
    """On a machine that may be busy with other tests."""
    assert kill(3, 1, tmp_path, lag=2.0).startswith("3 kills")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_two_hundred_times(tmp_path: Path) -> None:
    text = kill(200, 2, tmp_path, lag=1.0)
    print(text)
    assert int(text.split()[5]) > 200, "streams were in flight"
