"""What every test can rely on: a home of its own, no network but loopback, one thread, no skips but for a GPU.

The environment is set while pytest configures itself, before any test module can import torch or a hub library that
reads it once. Subprocesses inherit it.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

_CLEARED = ("LEADLINE_", "DEEPSEEK", "OPENAI_", "HF_", "HUGGING", "TRANSFORMERS_", "MODELSCOPE_", "XDG_", "NO_COLOR")
_home = pytest.StashKey[tempfile.TemporaryDirectory[str]]()


def pytest_configure(config: pytest.Config) -> None:
    home = tempfile.TemporaryDirectory(prefix="leadline-test-home-", ignore_cleanup_errors=True)
    config.stash[_home] = home
    for name in [name for name in os.environ if name.startswith(_CLEARED)]:
        del os.environ[name]
    os.environ |= {
        "HOME": home.name,
        "HF_HOME": f"{home.name}/huggingface",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "COLUMNS": "120",
        "TERM": "dumb",
    }
    hypothesis.settings.register_profile("leadline", deadline=None, max_examples=50, print_blob=True)
    hypothesis.settings.load_profile("leadline")


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_home].cleanup()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no GPU")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skipped test is a test that nobody runs: only a GPU may be missing."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("gpu") is None:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and only a gpu test may be: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} was skipped as a whole: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def _only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in {"127.0.0.1", "::1", "localhost"}:
            raise OSError(f"tests reach no network, but something tried {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing a test writes by accident lands in the checkout."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def tiny_v2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny V2 in the hub's format, bf16 in two shards. Read only: copy it to change it."""
    from tests.fixtures import TINY_V2, make_model_folder

    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny-v2", TINY_V2)


@pytest.fixture(scope="session")
def tiny_lite_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny V2-Lite in the hub's format, bf16 in one file. Read only: copy it to change it."""
    from tests.fixtures import TINY_LITE, make_model_folder

    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny-v2-lite", TINY_LITE, shards=1)
