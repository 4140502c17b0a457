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
NAMESPACE = Path("/proc/self/ns/pid")  # containers on one machine count processes apart
BEGAN = 19  # of the words of /proc/<pid>/stat after the name: ticks from the boot to its start


def mark(run_id: str) -> None:
    """Say in a run which process writes it."""
    pid = os.getpid()
    mlflow.MlflowClient().set_tag(run_id, keys.PROCESS, f"{_machine()} {pid} {_began(pid)}")


def close_dead(experiment_id: str) -> None:
    """End the runs of an experiment whose process was on this machine and is gone.

    Runs that a worker trains are closed where they are trained again. A run of before the machine
    was started again stays as it is: another machine may have its name.
    """
    client, here = mlflow.MlflowClient(), _machine()
    query = f"attributes.status = 'RUNNING' and tags.{keys.PROCESS} LIKE '{here} %'"
    for run in client.search_runs([experiment_id], query):
        if _gone(*run.data.tags[keys.PROCESS].removeprefix(here).split()):
            close(run.info.run_id, "its process was killed")


def _machine() -> str:
    """Where a number of a process means one process: host, boot and namespace."""
    boot = namespace = "-"
    with suppress(OSError):
        boot, namespace = BOOT.read_text().strip(), str(NAMESPACE.readlink())
    return f"{socket.gethostname()} {boot} {namespace}"


def _gone(pid: str, began: str = "") -> bool:
    """Whether a process of this machine is gone, its number perhaps another's."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False  # another user's
    return began != _began(int(pid))


def _began(pid: int) -> str:
    """When a process that is there began; not a time of the clock, which may be set."""
    if Path("/proc/self/stat").exists():
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[BEGAN]
    return f"{psutil.Process(pid).create_time():.2f}"
