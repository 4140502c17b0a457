"""The identity of a process, by which another one on the same machine sees that it is gone."""

import os
import socket
from contextlib import suppress
from pathlib import Path

import psutil

BOOT = Path("/proc/sys/kernel/random/boot_id")
NAMESPACE = Path("/proc/self/ns/pid")  # each container numbers its processes separately
START = 19  # index in /proc/<pid>/stat, after the name, of the start time in ticks since boot


def identity() -> str:
    """This process: machine, process id and when it started."""
    pid = os.getpid()
    return f"{machine()} {pid} {_start(pid)}"


def machine() -> str:
    """The scope within which a process id is unique: host, boot and namespace."""
    boot = namespace = "-"
    with suppress(OSError):
        boot, namespace = BOOT.read_text().strip(), str(NAMESPACE.readlink())
    return f"{socket.gethostname()} {boot} {namespace}"


def is_dead(identity: str) -> bool:
    """Whether a process is known to be gone: one of this machine, since its last boot."""
    here = machine()
    if not identity.startswith(f"{here} "):
        return False
    pid, *start = identity.removeprefix(here).split()
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False  # another user's
    try:
        return start != [_start(int(pid))]  # another process may have its id now
    except (FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):
        return True  # it has just ended


def _start(pid: int) -> str:
    """When a running process started, if possible by a clock that nobody sets."""
    if Path("/proc/self/stat").exists():
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[START]
    return f"{psutil.Process(pid).create_time():.2f}"
