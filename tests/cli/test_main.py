"""The command: verbs, their lazy loading, and how every kind of failure leaves."""

from __future__ import annotations

import functools
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

import leadline
from leadline import cli
from leadline.errors import AuthenticationError, LeadlineError, ResourceError, UserError


def verb_that(monkeypatch: pytest.MonkeyPatch, action: BaseException | int | None) -> None:
    """Put a verb `act` into the table that returns or raises `action`."""

    def act(*, times: int = 1) -> int | None:
        """Act."""
        if isinstance(action, BaseException):
            raise action
        return action

    module = ModuleType("leadline_test_verb")
    module.act = act  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.VERBS, "act", ("leadline_test_verb:act", "Act."))


def shell(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"leadline {leadline.__version__}\n"


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_names_every_verb(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(argv) == 0
    out = capsys.readouterr().out
    assert all(f" {verb} " in out for verb in cli.VERBS)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([verb, "--help"]) == 0
    assert f"Usage: leadline {verb}" in capsys.readouterr().out


def test_help_imports_no_verb_and_nothing_heavy() -> None:
    code = """
import sys
from leadline import cli
cli.run(["--help"])
loaded = [name for name in sys.modules if name.startswith("leadline.cli.")]
assert not loaded, loaded
assert not {"torch", "transformers", "tokenizers", "httpx2", "fastapi"} & set(sys.modules)
"""
    assert shell(code).returncode == 0


def test_help_starts_at_once() -> None:
    """Best of three, with room for a busy machine; torch alone would take longer."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "leadline", "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 1.0


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (3, 3)])
def test_a_verbs_result_is_the_exit_code(monkeypatch: pytest.MonkeyPatch, result: int | None, code: int) -> None:
    verb_that(monkeypatch, result)
    assert cli.run(["act"]) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [(UserError("no such\nmodel"), 2), (ResourceError("no such model"), 2), (LeadlineError("no such model"), 1)],
)
def test_our_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: LeadlineError, code: int
) -> None:
    verb_that(monkeypatch, error)
    assert cli.run(["act"]) == code
    assert capsys.readouterr().err == "leadline: no such model\n"


def test_who_has_no_key_is_told_where_it_goes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verb_that(monkeypatch, AuthenticationError("wrong key"))
    assert cli.run(["act"]) == AuthenticationError.exit_code
    assert capsys.readouterr().err == "leadline: wrong key; --api-key or LEADLINE_API_KEY gives the key\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["srve"], "unknown command 'srve'; did you mean 'serve'?; leadline --help lists them"),
        (["--model"], "unknown command '--model'; leadline --help lists them"),
        (["act", "--tims", "3"], "Unknown option: --tims. Did you mean --times?"),
        (["act", "--times", "x"], 'Invalid value for --times: unable to convert "x" into int.'),
        (["act", "surplus\udcff"], "surplus"),
        (["act", "two", "words"], "unexpected argument 'two'; a text of several words goes into quotes"),
        (["quantize", "folder"], "OUTPUT requires an argument. leadline quantize --help has them all"),
    ],
)
def test_wrong_command_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    verb_that(monkeypatch, 0)
    assert cli.run(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("leadline: ")
    assert message in err
    assert err.count("\n") == 1


def test_interrupt_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    verb_that(monkeypatch, KeyboardInterrupt())
    assert cli.run(["act"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    verb_that(monkeypatch, ModuleNotFoundError("No module named 'torch'", name="torch.nn"))
    assert cli.run(["act"]) == 2
    assert "pip install 'leadline[engine]'" in capsys.readouterr().err


def test_a_verb_that_cannot_be_imported_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.setitem(cli.VERBS, "act", ("fastapi:act", "Act."))
    assert cli.run(["act"]) == 2
    assert "this needs fastapi" in capsys.readouterr().err


def test_faults_of_ours_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    verb_that(monkeypatch, ModuleNotFoundError("No module named 'leadlin'", name="leadlin"))
    with pytest.raises(ModuleNotFoundError):
        cli.run(["act"])
    verb_that(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.run(["act"])


def test_a_closed_pipe_is_quiet() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "leadline", "--help"], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("argv", [["--help"], ["tokenizer", "encode", "depth"]])
def test_a_disk_that_is_full_is_one_line(argv: list[str], tmp_path: Path) -> None:
    """As a process sees it whose files may not pass a size."""
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (2, 2))
    with (tmp_path / "out").open("w") as out:
        command = [sys.executable, "-m", "leadline", *argv]
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, check=False, preexec_fn=limit)
    assert (done.returncode, done.stderr) == (2, "leadline: cannot write the output: File too large\n")


def test_a_terminal_that_lacks_a_character_shows_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["tokenizer", "encode", "a水深b"]) == 0
    command = [sys.executable, "-m", "leadline", "tokenizer", "decode", *capsys.readouterr().out.split()]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a??b\n", b"")


def test_control_c_in_a_real_process() -> None:
    code = """
import os, signal, sys, types
from leadline import cli
module = types.ModuleType("waits")
def wait():
    os.kill(os.getpid(), signal.SIGINT)
module.wait = wait
sys.modules["waits"] = module
cli.VERBS["wait"] = ("waits:wait", "Wait.")
cli.main(["wait"])
"""
    done = shell(code)
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, "")
