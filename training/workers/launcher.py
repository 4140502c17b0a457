"""Starts the processes that train one model together, through DeepSpeed's launcher, or through
srun in a Slurm job of several nodes."""

import os
import pickle
import queue
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

from training.engine.devices import Machines, free_port, visible_gpus
from training.record.errors import InputError
from training.record.secrets import VARIABLES
from training.workers import step_tasks
from training.workers.messages import Event, Job

ROOT = Path(__file__).parents[2]
POLL_SECONDS = 0.1
SRUN_SECONDS = 5.0  # for srun to end its processes


class Mailbox(BaseManager):
    """Gives processes that are not children access to the parent's event queue and the job, over a
    socket."""


class LaunchedWorker:
    """A worker of several processes: on this machine, those of the job's hostfile or those of the
    Slurm job in which this process runs."""

    fault, is_orphaned = "", False  # as of a local worker

    def __init__(self, job: Job, index: int) -> None:
        self.name = f"worker-{index}"
        self._job, self._index = job, index
        self._events: queue.Queue[Event] = queue.Queue()
        self._connected = self._leaving = False
        self._job_file = job.corpus.parent / f"job-{os.getpid()}-{index}"
        self._process: subprocess.Popen[bytes] | None = None
        self._by_srun = job.machines.hostfile is None and step_tasks.of_several_nodes() > 0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        machines = self._job.machines
        local = machines.hostfile is None and not self._by_srun
        host, key = "127.0.0.1" if local else socket.gethostname(), secrets.token_bytes()
        Mailbox.register("events", callable=lambda: self._events, exposed=["put"])
        Mailbox.register("work", callable=self._work, exposed=["get"])
        Mailbox.register("worker", callable=lambda: self, exposed=["is_leaving"])
        server = Mailbox((host if local else "", 0), key).get_server()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = int(server.address[1])  # type: ignore[index]
        self._job_file.touch(mode=0o600)  # it contains the key
        place = (machines, self._job.corpus, self._index)
        self._job_file.write_bytes(pickle.dumps((*place, (host, port), key)))
        variables = environment(public=not local)
        if self._by_srun:
            starter = step_tasks.command(machines.ranks)
            variables |= step_tasks.variables()
        else:
            starter = _deepspeed(machines, self._index)
        self._process = subprocess.Popen(
            [*starter, "training.workers.rank_main", str(self._job_file)],
            cwd=ROOT,
            env=variables,
            stdout=sys.stderr,
            start_new_session=True,  # so that `terminate` reaches every process
        )

    def _work(self) -> dict[str, Any]:
        """What the first process asks for when it is there."""
        self._connected = True
        return {"job": self._job, "environment": _private_variables()}

    def events(self) -> list[Event]:
        """The events that have arrived."""
        return [self._events.get() for _ in range(self._events.qsize())]

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def is_leaving(self) -> bool:
        """Whether the first process should save a checkpoint and end; it asks now and then."""
        return self._leaving

    def terminate(self) -> None:
        """End the processes. DeepSpeed's launcher would kill them, so the first one is told."""
        self._leaving = True
        if not self._connected and self._process is not None:
            self._signal(signal.SIGTERM)

    def kill(self) -> None:
        if self._by_srun and self._signal(signal.SIGINT):  # srun then kills those of other nodes
            self.join(SRUN_SECONDS)
        self._signal(signal.SIGKILL)

    def join(self, timeout: float = 0) -> None:
        """Wait until every process has ended, at most `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self._signal(0) and time.monotonic() < deadline:
            self.is_alive()  # reaps the launcher
            time.sleep(POLL_SECONDS)
        if not self._signal(0):
            self._job_file.unlink(missing_ok=True)

    @property
    def exitcode(self) -> int | None:
        return self._process.poll() if self._process else None

    def _signal(self, number: int) -> bool:
        """Send a signal to all processes; False if there are none."""
        assert self._process is not None
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return False
        return True


def slots(hostfile: Path) -> int:
    """Total number of slots in a hostfile."""
    return sum(_hosts(hostfile).values())


def refuse_unreachable(hostfile: Path) -> None:
    """Raise InputError if the launcher cannot start processes on a hostfile's hosts."""
    if len(_hosts(hostfile)) > 1 and not shutil.which("pdsh"):
        raise InputError(
            "hostfile: pdsh is not on the PATH; it starts the processes of other machines: install "
            "it (Debian, Ubuntu: apt-get install pdsh)"
        )


def _hosts(hostfile: Path) -> dict[str, int]:
    """Host → slots, from a hostfile's lines `host slots=n`."""
    try:
        lines = hostfile.read_text().splitlines()
    except OSError as error:
        raise InputError(f"hostfile: {hostfile} cannot be read: {error}") from error
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if text := line.partition("#")[0].strip():
            match = re.fullmatch(r"(\S+)\s+slots=(\d+)", text)
            if match is None:
                raise InputError(
                    f"hostfile: {hostfile}, line {number}: {text!r} is not 'host slots=n'"
                )
            if match[1] in hosts:
                raise InputError(f"hostfile: {hostfile}, line {number}: {match[1]} is named twice")
            hosts[match[1]] = int(match[2])
    if not sum(hosts.values()):
        raise InputError(f"hostfile: {hostfile} names no host")
    return hosts


def _deepspeed(machines: Machines, index: int) -> list[str]:
    """DeepSpeed's launcher, which starts the processes of worker `index`."""
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", "--no_local_rank"]
    port = ["--master_port", str(free_port())]
    return [*command, *port, *_placement_arguments(machines, index), "--module"]


def _placement_arguments(machines: Machines, index: int) -> list[str]:
    """The launcher's arguments for where to start these processes."""
    if machines.hostfile is not None:
        return ["--hostfile", str(machines.hostfile)]
    ranks = machines.ranks
    if gpus := visible_gpus()[index * ranks : (index + 1) * ranks]:
        return ["--include", f"localhost:{','.join(gpus)}"]
    return ["--num_gpus", str(ranks)]  # on a CPU, the number of processes


def _private_variables() -> dict[str, str]:
    """Environment variables for the first process only: MLflow's address and credentials."""
    names = {name for name in os.environ if name.startswith("MLFLOW")}
    return {name: os.environ[name] for name in {*names, *VARIABLES} & {*os.environ}}


def environment(*, public: bool = False) -> dict[str, str]:
    """This process's environment, with the variables that the launcher reads.

    `public` drops MLflow's variables, which the launcher would put on the command lines of other
    machines.
    """
    path = sysconfig.get_path("scripts") + os.pathsep + os.environ.get("PATH", "")
    accelerator = {} if visible_gpus() else {"DS_ACCELERATOR": "cpu"}
    variables = {
        n: value for n, value in os.environ.items() if not (public and n.startswith("MLFLOW"))
    }
    return {**variables, **accelerator, "PATH": path}
