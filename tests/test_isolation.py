"""What tests/conftest.py promises: no skip but for a GPU, no network, a home of one's own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.source import ROOT

SKIPS = """
import pytest
@pytest.mark.gpu
def test_gpu(): pytest.skip("no GPU")
@pytest.mark.skip(reason="tired")
def test_marked(): pass
def test_called(): pytest.importorskip("leadline_no_such_module")
@pytest.mark.xfail(strict=True)
def test_known(): assert False
"""


def outcomes(path: Path) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    command += ["-c", str(ROOT / "pyproject.toml"), "-p", "tests.conftest", str(path)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env).stdout


def test_only_a_gpu_test_may_be_skipped(tmp_path: Path) -> None:
    path = tmp_path / "test_skips.py"
    path.write_text(SKIPS)
    assert "1 failed, 1 skipped, 1 xfailed, 1 error" in outcomes(path)  # a mark skips in set-up: an error


def test_a_module_may_not_skip_itself(tmp_path: Path) -> None:
    path = tmp_path / "test_module.py"
    path.write_text("import pytest\npytest.skip('all of it', allow_module_level=True)\n")
    assert "1 error" in outcomes(path)


def test_the_network_is_out_of_reach() -> None:
    with pytest.raises(OSError, match="tests reach no network"), socket.socket() as probe:
        probe.connect(("192.0.2.1", 80))


def test_loopback_is_in_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()


def test_home_and_settings_are_not_the_users() -> None:
    assert Path.home().name.startswith("leadline-test-home-")
    assert not [name for name in os.environ if name.startswith(("LEADLINE_", "DEEPSEEK", "OPENAI_", "XDG_"))]
    assert Path.cwd() != ROOT
