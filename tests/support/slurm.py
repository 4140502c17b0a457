"""A real Slurm cluster of two nodes, both on this machine."""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from training.engine.devices import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
PATIENCE = 60  # seconds, for a busy machine
NODES = ("n1", "n2")
REQUEUE_SECONDS = 5  # how long Slurm keeps a requeued job back, at least; by default two minutes


def reason_not_to_start() -> str:
    """Why this machine cannot have a cluster; empty if it can."""
    missing = [program for program in PROGRAMS if not shutil.which(program, path=_path())]
    if missing:
        return f"no {', '.join(missing)} (Debian, Ubuntu: apt-get install slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "only root starts Slurm's daemons"


@contextmanager
def cluster() -> Iterator["Cluster"]:
    """A cluster of two nodes of one CPU, which SLURM_CONF names while it lasts.

    The partition `all` has both nodes, `one` has one.
    """
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # a short path, for munge's socket
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        patch.setenv("SLURM_CONF", str(_configured(folder)))
        socket_file = folder / "munge.socket"
        munge = [f"--key-file={folder / 'key'}", f"--socket={socket_file}", "--foreground"]
        files = [f"--{name}={folder / f'munge.{name}'}" for name in ("pid-file", "log-file")]
        seed = f"--seed-file={folder / 'munge.seed'}"
        stack.enter_context(_daemon(folder, "munged", "--force", *munge, *files, seed))
        _wait_for(socket_file.exists, folder)
        stack.enter_context(_daemon(folder, "slurmctld", "-D"))
        for node in NODES:
            stack.enter_context(_daemon(folder, "slurmd", "-D", "-N", node))
        found = Cluster()
        _wait_for(lambda: found.states() == ["idle"] * len(NODES), folder)
        yield found
        found.empty()


class Cluster:
    """What tests ask of it."""

    def states(self) -> list[str]:
        return slurm("sinfo", "--noheader", "--Node", "--partition=all", "--format=%T").split()

    def tasks(self) -> list[list[str]]:
        """Index, state and reason of the tasks that have not ended."""
        told = slurm("squeue", "--noheader", "--array", "--format=%K %T %r")
        return sorted(line.split(maxsplit=2) for line in told.splitlines())

    def arrays(self) -> list[str]:
        return slurm("squeue", "--noheader", "--format=%F").split()

    def empty(self) -> None:
        """Cancel every job, and wait for their end."""
        slurm("scancel", f"--user={os.geteuid()}")
        _wait_for(lambda: not self.tasks(), None)


def slurm(command: str, *arguments: str) -> str:
    """The output of a command of Slurm."""
    done = subprocess.run([command, *arguments], capture_output=True, text=True, timeout=600)
    return done.stdout


def _configured(folder: Path) -> Path:
    """Write the configuration and the key of a cluster; returns the configuration's path."""
    key = folder / "key"
    key.touch(mode=0o400)
    key.write_bytes(secrets.token_bytes(128))
    host, here = socket.gethostname().partition(".")[0], "127.0.0.1"
    lines = [
        "ClusterName=test",
        f"SlurmctldHost={host}({here})",
        f"SlurmctldPort={free_port()}",
        "SlurmUser=root",
        "SlurmdUser=root",
        f"AuthInfo=socket={folder}/munge.socket,cred_expire={REQUEUE_SECONDS}",
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/spool-%n",
        f"SlurmctldPidFile={folder}/slurmctld.pid",
        f"SlurmdPidFile={folder}/slurmd-%n.pid",
        f"SlurmctldLogFile={folder}/slurmctld.log",
        f"SlurmdLogFile={folder}/slurmd-%n.log",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_CPU",
        "SlurmdParameters=config_overrides",
        "SchedulerParameters=batch_sched_delay=0,sched_interval=2",
        "ReturnToService=2",
        *(
            f"NodeName={node} NodeHostname={host} NodeAddr={here} Port={free_port()} CPUs=1"
            for node in NODES
        ),
        f"PartitionName=all Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP",
        f"PartitionName=one Nodes={NODES[0]} MaxTime=INFINITE State=UP",
    ]
    path = folder / "slurm.conf"
    path.write_text("\n".join(lines) + "\n")
    return path


@contextmanager
def _daemon(folder: Path, name: str, *arguments: str) -> Iterator[None]:
    with (folder / "daemons.log").open("a") as log:
        process = subprocess.Popen(
            [shutil.which(name, path=_path()) or name, *arguments], stdout=log, stderr=log
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(what: Callable[[], object], folder: Path | None) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        if time.monotonic() > deadline:
            log = (folder / "daemons.log").read_text()[-2000:] if folder else ""
            raise RuntimeError(f"Slurm does not start or end: {log}")
        time.sleep(0.1)


def _path() -> str:
    """Where the daemons are, which is not on every user's PATH."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
