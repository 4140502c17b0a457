"""Which process writes a run, so that a run whose process was killed does not stay RUNNING."""

import os
import socket
from contextlib import suppress
from pathlib import Path

import mlflow
import psutil

from training.record import keys
from training.record.mlflow_runs import close

BOOT = Path("/proc/sys/kernel/random/boot_id")
NAMESPACE = Path("/proc/self/ns/pid")  # each container numbers its processes separately
START = 19  # index in /proc/<pid>/stat, after the name, of the start time in ticks since boot


def mark(run_id: str) -> None:
    """Record in a run which process writes it."""
    pid = os.getpid()
    mlflow.MlflowClient().set_tag(run_id, keys.PROCESS, f"{_machine()} {pid} {_start(pid)}")


def unmark(run_id: str) -> None:
    """Forget the process of a run that has ended well."""
    mlflow.MlflowClient().delete_tag(run_id, keys.PROCESS)


def close_dead(experiment_id: str) -> None:
    """End the runs of an experiment whose process was on this machine and is gone.

    A worker's runs are closed when they are trained again. A run from before the machine's last
    boot is left as it is: another machine may have its name.
    """
    client, machine = mlflow.MlflowClient(), _machine()
    query = f"attributes.status = 'RUNNING' and tags.{keys.PROCESS} LIKE '{machine} %'"
    for run in client.search_runs([experiment_id], query):
        if _gone(*run.data.tags[keys.PROCESS].removeprefix(machine).split()):
            close(run.info.run_id, "its process was killed")


def _machine() -> str:
    """The scope within which a process id is unique: host, boot and namespace."""
    boot = namespace = "-"
    with suppress(OSError):
        boot, namespace = BOOT.read_text().strip(), str(NAMESPACE.readlink())
    return f"{socket.gethostname()} {boot} {namespace}"


def _gone(pid: str, start: str = "") -> bool:
    """Whether a process of this machine is gone; another one may have its id now."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False  # another user's
    return start != _start(int(pid))


def _start(pid: int) -> str:
    """When a running process started, if possible by a clock that nobody sets."""
    if Path("/proc/self/stat").exists():
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[START]
    return f"{psutil.Process(pid).create_time():.2f}"
