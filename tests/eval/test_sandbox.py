"""Programs that mean harm, each of which must fail at it. Where the machine cannot isolate, each must be refused."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from leadline.errors import ResourceError, UserError
from leadline.eval import sandbox as sandbox_module
from leadline.eval.sandbox import Limits, Run, Sandbox, why_not

LIMITS = Limits(seconds=20, cpu_seconds=2, memory=256 << 20, processes=6, disk=8 << 20, output=100_000)
reason = functools.cache(why_not)


def run(program: str, limits: Limits = LIMITS) -> Run:
    return Sandbox(limits, allow_code=True).check(program)


def isolated(test: Callable[..., None]) -> Callable[..., None]:
    """Where there is no isolation the same program must not run at all."""

    @functools.wraps(test)
    def tried(*args: object, **options: object) -> None:
        if reason() is None:
            test(*args, **options)
        else:
            with pytest.raises(ResourceError, match="cannot be run safely"):
                run("print('harmless')")

    return tried


@isolated
def test_a_program_runs_to_its_end() -> None:
    result = run("import math, json, re, collections\nprint(json.dumps({'depth': math.sqrt(49)}))")
    assert result == Run(True, "passed", 0, '{"depth": 7.0}\n')


@isolated
@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("assert 1 == 2", "AssertionError"),
        ("def f(:", "SyntaxError"),
        ("import sys; sys.exit(0)", "left before its end"),
        ("import os; os._exit(0)", "left before its end"),
        ("import os; os.write(1, b'refused: no'); os._exit(125)", "exit code 1: refused: no"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "exit code 139"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("input()", "EOFError"),
    ],
)
def test_a_program_that_fails_says_why(program: str, why: str) -> None:
    result = run(program)
    assert not result.passed
    assert why in result.reason


@isolated
def test_there_is_no_network() -> None:
    program = """
import socket
for address in (("127.0.0.1", 22), ("1.1.1.1", 53), ("::1", 80)):
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    try:
        socket.socket(family).connect(address)
    except OSError as error:
        assert error.errno in (99, 101), error
    else:
        raise AssertionError(address)
"""
    assert run(program).passed


@isolated
def test_a_server_of_the_machine_is_out_of_reach() -> None:
    import socket

    with socket.socket() as server, socket.socket(socket.AF_UNIX) as abstract:
        server.bind(("127.0.0.1", 0))
        server.listen()
        abstract.bind(f"\0leadline-{os.getpid()}")
        abstract.listen()
        result = run(f"""
import socket
for family, address in ((socket.AF_INET, ("127.0.0.1", {server.getsockname()[1]})),
                        (socket.AF_UNIX, "\\0leadline-{os.getpid()}")):
    try:
        socket.socket(family).connect(address)
    except OSError:
        continue
    raise AssertionError(address)
""")
    assert result.passed


@isolated
def test_a_fork_bomb_meets_its_limit_and_leaves_nothing(tmp_path: Path) -> None:
    mark = f"20.{os.getpid()}"
    program = f"""
import os, time
made = 0
for _ in range(1000):
    try:
        if os.fork() == 0:
            os.execv("/usr/bin/env", ["env", "sleep", "{mark}"])
        made += 1
    except OSError:
        break
assert made <= {LIMITS.processes}, made
print(made)
"""
    started = time.monotonic()
    result = run(program)
    assert result.reason in ("passed", "took too long")  # the children hold the output open until the time is up
    assert time.monotonic() - started < LIMITS.seconds + 5
    assert not _processes(mark)


@isolated
def test_an_endless_loop_ends_by_processor_time_and_a_sleep_by_the_clock() -> None:
    looped = run("while True: pass", Limits(seconds=20, cpu_seconds=1))
    assert not looped.passed
    assert "exit code 1" in looped.reason
    slept = run("import time; time.sleep(60)", Limits(seconds=1))
    assert (slept.passed, slept.reason) == (False, "took too long")


@isolated
def test_memory_files_and_disk_are_bounded() -> None:
    assert "MemoryError" in run("x = bytearray(1 << 30)").reason
    assert "passed" in run("x = bytearray(10 << 20)").reason
    full = run("""
import errno
try:
    for number in range(100):
        with open(f"/tmp/{number}", "wb") as file:
            file.write(bytes(1 << 20))
except OSError as error:
    assert error.errno == errno.ENOSPC, error
    print("full", number)
""")
    assert full.output.startswith("full 7")
    assert "Too many open files" in run("files = [open('/dev/null') for _ in range(1000)]").reason


@isolated
def test_output_is_cut_and_its_writer_killed() -> None:
    started = time.monotonic()
    result = run("import sys\nwhile True: sys.stdout.write('x' * 100000)")
    assert (result.passed, result.reason) == (False, "wrote too much")
    assert len(result.output) <= LIMITS.output
    assert time.monotonic() - started < 15


@isolated
def test_nothing_of_the_system_shows() -> None:
    program = """
import os
assert sorted(os.listdir("/dev")) == ["null", "random", "urandom", "zero"]
assert os.listdir("/tmp") == ["program.py"]
assert not os.path.exists("/proc") and not os.path.exists("/sys") and not os.path.exists("/home")
assert not os.path.exists("/etc/passwd") and not os.path.exists("/oldroot")
assert {os.getuid(), os.getgid(), *os.getgroups()} == {65534}
assert os.getpid() == 2 and os.getppid() == 1
assert set(os.environ) <= {"HOME", "PATH", "LC_ALL", "PYTHONHASHSEED", "LC_CTYPE"}, os.environ
"""
    assert run(program).reason == "passed"


@isolated
def test_the_root_is_read_only_and_links_lead_nowhere(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the user")
    program = f"""
import os, sys
for path in ("/x", "/usr/x", "/usr/lib/x", "/dev/x", sys.base_prefix + "/x"):
    try:
        open(path, "w")
    except OSError:
        continue
    raise AssertionError(path)
os.symlink({str(secret)!r}, "/tmp/link")
os.symlink("/tmp/../../../../../.." + {str(secret)!r}, "/tmp/up")
for link in ("/tmp/link", "/tmp/up"):
    try:
        open(link)
    except OSError:
        continue
    raise AssertionError(link)
"""
    assert run(program).reason == "passed"
    assert secret.read_text() == "of the user"


@isolated
def test_no_way_back_to_power() -> None:
    program = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x10000000) != 0, "a user namespace of its own"
assert libc.unshare(0x00020000) != 0, "a mount namespace"
assert libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None) != 0, "a mount"
assert libc.mount(b"proc", b"/tmp", b"proc", 0, None) != 0, "a mount of /proc"
assert libc.mount(None, b"/usr", None, 32 | 4096, None) != 0, "a writable system"
assert libc.setuid(0) != 0 and libc.chroot(b"/tmp") != 0
assert libc.ptrace(16, 1, 0, 0) != 0, "the first process"
os.kill(1, 9)  # the first process of a namespace does not hear it
try:
    os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) - 1)
except OSError:
    pass
else:
    raise AssertionError("more than its share")
"""
    assert run(program).reason == "passed"


@isolated
def test_when_the_parent_is_killed_so_is_the_program(tmp_path: Path) -> None:
    mark = f"100.{os.getpid()}"
    program = f"import os; os.fork(); os.execv('/usr/bin/env', ['env', 'sleep', '{mark}'])"
    code = f"""
from leadline.eval.sandbox import Limits, Sandbox
Sandbox(Limits(seconds=100), allow_code=True).check({program!r})
"""
    root = str(Path(sandbox_module.__file__).parents[2])
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root})
    try:
        _wait_for(lambda: len(_processes(mark)) >= 2)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    _wait_for(lambda: not _processes(mark))


def _processes(mark: str) -> list[psutil.Process]:
    """Those that sleep for `mark` seconds."""
    return [each for each in psutil.process_iter(["cmdline"]) if each.info["cmdline"] == ["sleep", mark]]


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ---- refusals, on every machine -----------------------------------------------------------------------------------


def test_code_must_be_allowed() -> None:
    with pytest.raises(UserError, match="--allow-code"):
        Sandbox()


def test_another_system_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ResourceError, match="this is darwin"):
        Sandbox(allow_code=True)


@pytest.mark.parametrize("call", ["unshare", "mount", "bind", "pivot_root", "detach", "prctl"])
def test_without_any_part_of_the_isolation_nothing_runs(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same jail, in which one system call after the other fails."""
    jail = tmp_path / "jail.py"
    source = Path(sandbox_module._JAIL).read_text(encoding="utf-8")
    broken = f"""
def _broken(self, *args, **options):
    raise Refusal("{call} is forbidden here")
Kernel.{call} = _broken
if __name__ == "__main__":"""
    jail.write_text(source.replace('if __name__ == "__main__":', broken), encoding="utf-8")
    monkeypatch.setattr(sandbox_module, "_JAIL", jail)
    with pytest.raises(
        ResourceError, match=f"cannot be run safely here: refused: ({call} is forbidden|new namespaces)"
    ):
        Sandbox(allow_code=True)


def test_a_refusal_after_the_trial_is_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jail = tmp_path / "jail.py"
    jail.write_text("import os\nos.write(1, b'refused: no more\\n')\nos._exit(125)\n")
    monkeypatch.setattr(sandbox_module, "why_not", lambda: None)
    monkeypatch.setattr(sandbox_module, "_JAIL", jail)
    with pytest.raises(ResourceError, match="no more"):
        Sandbox(allow_code=True).check("print('harmless')")
