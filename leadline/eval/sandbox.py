"""Sandbox: where code that a model wrote may run.

Linux namespaces: no network, a read-only root with nothing of the user's in it, a private /tmp, an unprivileged user
without capabilities, and limits on time, CPU, memory, processes, files and output (`leadline.eval.sandbox_jail` is the
inside). Where the system does not give that isolation the sandbox refuses; there is no other way to run code.

A program passes only when it reaches its own last line: that line writes a secret of this one run, so leaving early
with exit code 0 is a failure.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import selectors
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

from leadline.errors import ResourceError, UserError
from leadline.eval.sandbox_jail import REFUSED

Ending = Literal["exit", "time", "output"]

_JAIL = Path(__file__).with_name("sandbox_jail.py")
_END_SECONDS = 5.0  # between the end of the output and the end of the program
MIB = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """For one program. `memory` is each process's address space, so all together take at most `memory * processes`."""

    seconds: float = 10.0
    cpu_seconds: int = 10
    memory: int = 1024 * MIB
    processes: int = 8  # and threads; the sandbox's own first process is one
    disk: int = 64 * MIB
    files: int = 128
    output: int = MIB


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """How a program ended. `passed`: it reached its last line. `output` is what it wrote, both streams together."""

    passed: bool
    reason: str
    exit_code: int | None
    output: str


class Sandbox:
    """Raises `ResourceError` where the system cannot isolate, `UserError` unless code was allowed."""

    def __init__(self, limits: Limits = Limits(), *, allow_code: bool = False, workers: int | None = None) -> None:
        if not allow_code:
            raise UserError("running code that a model wrote must be allowed with --allow-code")
        self.limits = limits
        self.workers = workers or max((os.cpu_count() or 2) // 2, 1)
        if reason := why_not():
            raise ResourceError(f"code cannot be run safely here: {reason}")

    def check(self, program: str) -> Run:
        """Run a Python program; it passes when its last line is reached."""
        secret = secrets.token_hex(16)
        source = f"{program}\n\nimport os as _os\n_os.write(1, b'\\n{secret}\\n')\n"
        code, ending, output = _run(source.encode("utf-8", "replace"), self.limits)
        text = output.decode("utf-8", "replace")
        if code == REFUSED and text.startswith("refused: "):
            raise ResourceError(f"code cannot be run safely here: {text.removeprefix('refused: ').strip()}")
        reached = f"\n{secret}\n" in text
        passed = reached and ending == "exit" and code == 0
        return Run(passed, _reason(code, ending, text, reached), code, text.replace(f"\n{secret}\n", ""))


def why_not() -> str | None:
    """What keeps this machine from isolating a program; None when a trial shows that it does."""
    if sys.platform != "linux":
        return f"the sandbox needs Linux namespaces, and this is {sys.platform}"
    code, ending, output = _run(_TRIAL, Limits(seconds=20))
    if ending == "exit" and code == 0 and b"isolated" in output:
        return None
    return output.decode("utf-8", "replace").strip()[:300] or f"the trial ended with code {code} ({ending})"


# What the sandbox promises, tried by a program inside it.
_TRIAL = b"""
import os, socket
assert os.getpid() < 10 and os.getuid() == 65534, "not in namespaces of its own"
assert not os.path.exists("/proc/1") and not os.path.exists("/home"), "the system shows"
for path in ("/x", "/usr/x"):
    try:
        open(path, "w")
    except OSError:
        continue
    raise AssertionError("the root is writable")
assert {name for _, name in socket.if_nameindex()} <= {"lo"}, "there is a network"
open("/tmp/x", "w").close()
print("isolated")
"""


def _run(program: bytes, limits: Limits) -> tuple[int | None, Ending, bytes]:
    """Exit code, what ended it, output. When this returns nothing of the program is left."""
    command = [sys.executable, "-I", "-S", "-B", str(_JAIL), json.dumps(_config(limits))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={})
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with process.stdin:
            process.stdin.write(program)
    except BrokenPipeError:
        pass  # it refused before it read: its output says why
    ending: Ending = "time"
    code: int | None = None
    output = b""
    try:
        ending, output = _read(process.stdout.fileno(), limits)
        if ending == "exit":
            code = _wait(process)
    finally:
        process.kill()  # its death is that of all it started
        process.wait()
        process.stdout.close()
    return code, ending, output


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    """The exit code. A program may close its output and go on: it has the rest of no time."""
    try:
        return process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def _config(limits: Limits) -> dict[str, object]:
    return {
        "parent": os.getpid(),
        "prefix": str(Path(sys.base_prefix).resolve()),
        "python": str(Path(getattr(sys, "_base_executable", sys.executable)).resolve()),
        "disk": limits.disk,
        "limits": {
            "RLIMIT_CPU": limits.cpu_seconds,
            "RLIMIT_AS": limits.memory,
            "RLIMIT_NPROC": limits.processes,
            "RLIMIT_NOFILE": limits.files,
            "RLIMIT_FSIZE": limits.disk,
            "RLIMIT_CORE": 0,
        },
    }


def _read(descriptor: int, limits: Limits) -> tuple[Ending, bytes]:
    """Until the end of the output, too much of it, or the end of the time."""
    deadline = time.monotonic() + limits.seconds
    received = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while len(received) <= limits.output:
            left = deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                return "time", bytes(received)
            piece = os.read(descriptor, 65536)
            if not piece:
                return "exit", bytes(received)
            received += piece
    return "output", bytes(received[: limits.output])


def _reason(code: int | None, ending: Ending, output: str, reached: bool) -> str:
    if ending == "time":
        return "took too long"
    if ending == "output":
        return "wrote too much"
    if code == 0:
        return "passed" if reached else "left before its end"
    lines = output.strip().splitlines()
    return f"exit code {code}: {lines[-1][:200]}" if lines else f"exit code {code}"
