"""The Makefile's decisions, tried with a pretended Python that writes down what it is asked to do."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.source import ROOT

TOOLS = ("sh", "make", "touch", "mkdir", "cp", "cat", "rm", "find", "uname")
FAKE_PYTHON = """#!/bin/sh
echo "$*" >> "$LOG"
case "$*" in
  *ensurepip*) exit "${TOO_OLD:-0}";;
  --version) echo "Python 3.12.0";;
  "-m venv"*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python";;
  *urlopen*) exit "${UNREACHABLE:-0}";;
  *"import torch"*|*", torch;"*) test -e torch-is-here;;
  *" install "*torch.txt*) touch torch-is-here;;
esac
"""


class Sandbox:
    """A checkout with only what the Makefile reads, and a PATH with only the tools it may use."""

    def __init__(self, root: Path) -> None:
        self.root, self.bin, self.log = root / "checkout", root / "bin", root / "log"
        (self.root / "requirements").mkdir(parents=True)
        self.bin.mkdir()
        for name in ("Makefile", "pyproject.toml", "requirements/torch.txt"):
            shutil.copy(ROOT / name, self.root / name)
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")
        self.program("c++", "#!/bin/sh\n")
        self.program("uname", "#!/bin/sh\necho Linux\n")
        self.program("python3.12", FAKE_PYTHON)

    def program(self, name: str, text: str) -> None:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def make(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        env |= {"PATH": str(self.bin), "LOG": str(self.log)}
        command = [str(self.bin / "make"), "--no-print-directory", *args]
        return subprocess.run(command, cwd=self.root, env=env, capture_output=True, text=True, check=False)

    def installs(self) -> list[str]:
        """What pip was asked to install, in order."""
        return re.findall(r"install --quiet (.*)", self.log.read_text())


CPU = "--index-url https://download.pytorch.org/whl/cpu -r requirements/torch.txt"
PLAIN = "-r requirements/torch.txt"
APP = "-e .[engine,server]"


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


def test_serve_sets_up_then_serves(sandbox: Sandbox) -> None:
    done = sandbox.make("serve", "PORT=9000", "MODEL=a folder")
    assert (done.returncode, done.stderr) == (0, "")
    assert sandbox.installs() == [CPU, APP]
    assert sandbox.log.read_text().splitlines()[-1] == "-m leadline serve --port 9000 --model a folder"


def test_a_second_call_only_runs(sandbox: Sandbox) -> None:
    sandbox.make("test")
    done = sandbox.make("test", "ARGS=-k rope")
    assert sandbox.log.read_text().splitlines() == ["-m pytest -ra -k rope"]
    assert done.stdout == ""


def test_a_changed_pyproject_installs_again_but_not_torch(sandbox: Sandbox) -> None:
    sandbox.make("setup")
    stamp = sandbox.root / ".venv/.leadline-app"
    later = stamp.stat().st_mtime + 10

    os.utime(sandbox.root / "pyproject.toml", (later, later))
    sandbox.make("setup")
    assert sandbox.installs() == [APP]


@pytest.mark.parametrize("name", ["model.cpp", "tiles.h", "simd/more.h", "CMakeLists.txt"])
def test_kernels_that_an_update_changed_are_built_again(sandbox: Sandbox, name: str) -> None:
    source = sandbox.root / "leadline/ops/cpu/csrc" / name
    source.parent.mkdir(parents=True)
    source.touch()
    sandbox.make("setup")
    sandbox.make("setup")
    assert sandbox.installs() == []
    later = (sandbox.root / ".venv/.leadline-app").stat().st_mtime + 10
    os.utime(source, (later, later))
    sandbox.make("setup")
    assert sandbox.installs() == [APP]


def test_the_size_is_said_before_the_download(sandbox: Sandbox) -> None:
    assert "downloading PyTorch for the CPU, about 200 MB" in sandbox.make("setup").stdout


@pytest.mark.parametrize(
    ("choice", "driver", "unreachable", "expected", "said"),
    [
        ("auto", False, "0", CPU, "200 MB"),
        ("auto", False, "1", PLAIN, "was not reached"),
        ("auto", True, "0", PLAIN, "2.7 GB with CUDA"),
        ("cpu", True, "1", CPU, "200 MB"),
        ("cuda", False, "0", PLAIN, "2.7 GB with CUDA"),
    ],
)
def test_which_torch(sandbox: Sandbox, choice: str, driver: bool, unreachable: str, expected: str, said: str) -> None:
    if driver:
        sandbox.program("nvidia-smi", "#!/bin/sh\necho GPU 0\n")
    done = sandbox.make("setup", f"TORCH={choice}", UNREACHABLE=unreachable)
    assert done.returncode == 0
    assert sandbox.installs() == [expected, APP]
    assert said in done.stdout


def test_a_mac_takes_the_default_index(sandbox: Sandbox) -> None:
    sandbox.program("uname", "#!/bin/sh\necho Darwin\n")
    sandbox.make("setup")
    assert sandbox.installs() == [PLAIN, APP]


def test_a_torch_that_is_there_is_kept(sandbox: Sandbox) -> None:
    (sandbox.root / "torch-is-here").touch()
    done = sandbox.make("setup")
    assert sandbox.installs() == [APP]
    assert "PyTorch" not in done.stdout


def test_skip_leaves_torch_alone(sandbox: Sandbox) -> None:
    done = sandbox.make("setup", "TORCH=skip")
    assert sandbox.installs() == ["-e .[server]"]
    assert "only the client and the server are installed" in done.stderr


def test_an_unknown_choice_is_refused(sandbox: Sandbox) -> None:
    done = sandbox.make("setup", "TORCH=rocm")
    assert done.returncode == 2
    assert "TORCH must be auto, cpu, cuda or skip, not 'rocm'" in done.stderr
    assert sandbox.installs() == []


def test_no_python_is_one_clear_line(sandbox: Sandbox) -> None:
    done = sandbox.make("setup", TOO_OLD="1")
    assert done.returncode == 2
    assert "leadline: no Python 3.11 or newer with venv was found" in done.stderr


def test_a_python_that_does_not_start_is_passed_over(sandbox: Sandbox) -> None:
    sandbox.program("python3.13", "#!/bin/sh\necho 'not selected' >&2\nexit 127\n")
    done = sandbox.make("setup")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_failed_download_is_tried_again(sandbox: Sandbox) -> None:
    sandbox.program("python3.12", FAKE_PYTHON.replace("touch torch-is-here", "exit 1"))
    assert sandbox.make("setup").returncode == 2
    assert sandbox.make("setup").returncode == 2
    assert sandbox.installs() == [CPU]


def test_without_a_compiler_one_line_warns(sandbox: Sandbox) -> None:
    (sandbox.bin / "c++").unlink()
    done = sandbox.make("setup")
    assert done.returncode == 0
    assert done.stderr == "leadline: no C++ compiler was found; leadline runs on the PyTorch path\n"


def test_slow_tests_keep_their_result(sandbox: Sandbox) -> None:
    sandbox.program(
        "python3.12", FAKE_PYTHON.replace("--version)", '*"-m slow"*) echo "1 failed"; exit 1;;\n  --version)')
    )
    done = sandbox.make("test-slow")
    assert done.returncode == 2
    assert (sandbox.root / "benchmarks/test-slow.txt").read_text() == "1 failed\n"


def test_lint_is_three_checks(sandbox: Sandbox) -> None:
    sandbox.make("lint")
    assert sandbox.log.read_text().splitlines()[-3:] == ["-m ruff check .", "-m ruff format --check .", "-m mypy"]


def test_help_names_every_target(sandbox: Sandbox) -> None:
    text = sandbox.make("help").stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert all(f"make {target} " in text for target in phony[1].split() if target != "help")


def test_the_syntax_is_make_3_81() -> None:
    """What later versions brought: .ONESHELL, $(file), grouped targets, !=, ::=, .RECIPEPREFIX, -O."""
    text = (ROOT / "Makefile").read_text()
    assert not re.search(r"\.ONESHELL|\$\(file |&:|!=.*\$\(|::=|\.RECIPEPREFIX|\$\(guile|--output-sync", text)
