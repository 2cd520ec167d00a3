"""The inside of the sandbox: `python -I -S sandbox_jail.py CONFIG`, a program of its own that needs only the standard
library. It reads a Python program from its standard input and runs it where it can do no harm.

Process 1 (this one) leaves for new namespaces: processes, mounts, network, IPC, host name, and users where it is not
root. Process 2, the first of the new process namespace, builds a root folder out of read-only views of the system's
Python and libraries with an empty /tmp of its own, forgets the real one, becomes an unprivileged user without any
capability, and forbids further user namespaces. Process 3 takes the limits and becomes the program.

Invariant: whatever fails on the way ends with exit code 125 before the program begins; there is no way on without
isolation. When process 1 dies so does 2, and with it all that the program started.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

REFUSED = 125
NOBODY = 65534

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_RDONLY, MS_REMOUNT, MS_BIND = 2, 4, 1, 32, 4096
MS_REC, MS_PRIVATE = 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = 1, 2
MOUNT_SETATTR = 442
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
OLD = "/oldroot"
SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/lib32", "/etc/ld.so.cache", "/nix/store", "/gnu/store")
DEVICES = ("null", "zero", "random", "urandom")


class MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


class Refusal(Exception):
    """Why there is no isolation here."""


class Kernel:
    """The system calls that Python 3.11 has no functions for; each raises `Refusal` when it fails."""

    def __init__(self) -> None:
        self.libc: Any = ctypes.CDLL(None, use_errno=True)

    def _check(self, what: str, result: int) -> None:
        if result != 0:
            raise Refusal(f"{what}: {os.strerror(ctypes.get_errno())}")

    def unshare(self, flags: int) -> None:
        self._check("new namespaces", self.libc.unshare(flags))

    def mount(self, source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
        texts = [None if text is None else text.encode() for text in (source, target, kind)]
        result = self.libc.mount(*texts, ctypes.c_ulong(flags), None if data is None else data.encode())
        self._check(f"mounting {target}", result)

    def bind(self, source: str, target: str) -> None:
        """A read-only view, of everything that is mounted below it, too."""
        self.mount(source, target, None, MS_BIND | MS_REC)
        attributes = MountAttributes(MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0, 0, 0)
        size = ctypes.c_size_t(ctypes.sizeof(attributes))
        flags = ctypes.c_uint(AT_RECURSIVE)
        result = self.libc.syscall(MOUNT_SETATTR, AT_FDCWD, target.encode(), flags, ctypes.byref(attributes), size)
        self._check(f"making {target} read-only", result)

    def pivot_root(self, new: str, old: str) -> None:
        number = PIVOT_ROOT.get(platform.machine())
        if number is None:
            raise Refusal(f"the sandbox does not know the processor {platform.machine()}")
        self._check("changing the root", self.libc.syscall(number, new.encode(), old.encode()))

    def detach(self, target: str) -> None:
        self._check(f"leaving {target}", self.libc.umount2(target.encode(), MNT_DETACH))

    def prctl(self, option: int, value: int) -> None:
        self._check(f"prctl {option}", self.libc.prctl(option, value, 0, 0, 0))


def main(config: dict[str, Any]) -> int:
    kernel = Kernel()
    die_with(kernel, int(config["parent"]))
    program = sys.stdin.buffer.read()
    root = os.geteuid() == 0
    user, group = os.geteuid(), os.getegid()
    kernel.unshare(
        CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | (0 if root else CLONE_NEWUSER)
    )
    if not root:
        map_user(os.open("/proc", os.O_PATH), user, group)
    child = os.fork()
    if child == 0:
        guarded(lambda: inside(kernel, config, program, root=root))
    return exit_code(os.waitpid(child, 0)[1])


def guarded(action: Any, report: int = 2) -> NoReturn:
    """A forked child never returns into its parent's code."""
    try:
        os._exit(action())
    except Exception as error:
        refuse(error, report)


def refuse(error: Exception, report: int = 2) -> NoReturn:
    os.write(report, (f"refused: {error}\n" if report == 2 else str(error)).encode())
    os._exit(REFUSED)


def die_with(kernel: Kernel, parent: int) -> None:
    """Be killed when the parent ends, even if it has ended just now."""
    kernel.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise Refusal("the process that started the sandbox is gone")


def map_user(proc: int, user: int, group: int) -> None:
    """Be nobody in the new user namespace."""
    write(proc, "self/setgroups", "deny")
    write(proc, "self/uid_map", f"{NOBODY} {user} 1")
    write(proc, "self/gid_map", f"{NOBODY} {group} 1")


def write(proc: int, name: str, text: str) -> None:
    """Into a file of /proc, which may have left the file system."""
    descriptor = os.open(name, os.O_WRONLY, dir_fd=proc)
    os.write(descriptor, text.encode())
    os.close(descriptor)


def inside(kernel: Kernel, config: dict[str, Any], program: bytes, *, root: bool) -> int:
    """Process 2: the room, then the program, whose exit code it hands on."""
    kernel.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    build_root(kernel, config)
    proc = os.open(f"{OLD}/proc", os.O_PATH)
    kernel.detach(OLD)
    Path(OLD).rmdir()
    kernel.mount("none", "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    if root:
        become_nobody(kernel, proc)
    write(proc, "sys/user/max_user_namespaces", "0")
    os.close(proc)
    kernel.prctl(PR_SET_NO_NEW_PRIVS, 1)
    failures, report = os.pipe()  # both close when the program begins
    worker = os.fork()
    if worker == 0:
        guarded(lambda: become_program(config, program), report)
    os.close(report)
    if failure := os.read(failures, 4096):
        raise Refusal(failure.decode())
    while True:  # the first process of a namespace inherits orphans
        ended, status = os.wait()
        if ended == worker:
            code = exit_code(status)
            return code if code != REFUSED else 1  # which is not the program's to say


def build_root(kernel: Kernel, config: dict[str, Any]) -> None:
    """An empty file system with views of what Python needs; no /proc, no /home, no /etc but the linker's."""
    kernel.mount("none", "/", None, MS_REC | MS_PRIVATE)
    kernel.mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    Path(f"/tmp{OLD}").mkdir()
    kernel.pivot_root("/tmp", f"/tmp{OLD}")
    os.chdir("/")
    for place in SYSTEM:
        show(kernel, place)
    for device in DEVICES:
        show(kernel, f"/dev/{device}")
    Path("/tmp").mkdir()
    kernel.mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"size={config['disk']},nr_inodes=4096,mode=1777")
    if not any(Path(config["prefix"]).is_relative_to(place) for place in SYSTEM):
        show(kernel, config["prefix"])


def show(kernel: Kernel, path: str) -> None:
    """A read-only view at the same place; links stay links; what the system lacks is left out."""
    old = Path(OLD + path)
    place = Path(path)
    if old.is_symlink():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(old.readlink())
    elif old.is_dir():
        place.mkdir(parents=True, exist_ok=True)
        kernel.bind(str(old), path)
    elif old.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
        kernel.bind(str(old), path)


def become_nobody(kernel: Kernel, proc: int) -> None:
    """Root gives up being root, in a user namespace of its own, where the number of processes is counted for itself."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    kernel.prctl(PR_SET_DUMPABLE, 1)
    kernel.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of user clears it
    kernel.unshare(CLONE_NEWUSER)
    map_user(proc, NOBODY, NOBODY)


def become_program(config: dict[str, Any], program: bytes) -> int:
    """Process 3: take the limits and never come back."""
    os.setsid()
    os.chdir("/tmp")
    Path("/tmp/program.py").write_bytes(program)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    for name, value in config["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    environment = {"HOME": "/tmp", "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}
    os.execve(config["python"], [config["python"], "-I", "-B", "/tmp/program.py"], environment)


def exit_code(status: int) -> int:
    """Signals as a shell reports them."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    try:
        sys.exit(main(json.loads(sys.argv[1])))
    except Exception as error:
        refuse(error)
