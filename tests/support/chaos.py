"""Faults that a sweep must survive, caused on purpose."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mlflow
import psutil

from tests.benchmarks.stores import START_SECONDS
from tests.support.commands import ROOT
from tests.support.postgres import Server
from training.engine import checkpoint
from training.engine.devices import free_port
from training.record import keys
from training.record.history import History, history_from_tags
from training.record.mlflow_runs import search

ROUNDING = 1e-5  # of a loss in a history's tags


class Wire:
    """A TCP connection to a port of this machine that can be cut: it then swallows everything."""

    def __init__(self, target: int) -> None:
        self.port, self._target = free_port(), target
        self.is_cut = False
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self.is_cut = True

    def mend(self) -> None:
        """Connections of before stay broken."""
        self.is_cut = False
        for one in list(self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            self._sockets.add(near)
            threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        with suppress(OSError):
            while self.is_cut:
                time.sleep(0.1)
            far = socket.create_connection(("127.0.0.1", self._target))
            self._sockets.add(far)
            threading.Thread(target=self._carry, args=(far, near), daemon=True).start()
            self._carry(near, far)
        near.close()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                while self.is_cut:
                    time.sleep(0.1)
                target.sendall(data)
        for end in (source, target):
            end.close()
            self._sockets.discard(end)


class TrackingServer:
    """`mlflow server` over a database, at a port that stays."""

    def __init__(self, database: str, folder: Path) -> None:
        self.port, self._database, self._folder = free_port(), database, folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(self.port)]
            + ["--backend-store-uri", self._database, "--artifacts-destination", str(self._folder)],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait(self) -> None:
        end = time.monotonic() + START_SECONDS
        while socket.socket().connect_ex(("127.0.0.1", self.port)):
            if time.monotonic() > end:
                raise RuntimeError("mlflow server does not start")
            time.sleep(0.2)

    def kill(self) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Command:
    """A command that a supervisor starts again when it is killed, as a cluster's would."""

    def __init__(self, name: str, *parameters: str, env: dict[str, str], log: Path) -> None:
        self._command = [sys.executable, "-m", "pipelines", name, *parameters]
        self._env, self.log = {**os.environ, **env}, log
        self.starts = 0
        self._start()

    def _start(self) -> None:
        self.starts += 1
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._env, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def is_running(self) -> bool:
        """Whether it runs, after it was started again if a fault of this script ended it."""
        code = self.process.poll()
        if code is None:
            return True
        if code == -signal.SIGKILL or self.interrupted:
            self.interrupted = False
            self._start()
            return True
        return False

    interrupted = False

    def signal(self, number: int) -> None:
        self.interrupted = number == signal.SIGTERM
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def workers(self) -> list[psutil.Process]:
        """The processes that train, on a machine without DeepSpeed's launcher."""
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children()
            servers = [c for c in children if "forkserver" in " ".join(c.cmdline())]
            return [worker for server in servers for worker in server.children()]
        return []


class Chaos:
    """Causes one fault after another, until the command ends or enough were caused."""

    def __init__(
        self,
        command: Command,
        workspace: Path,
        seed: int,
        *,
        longest: float,
        server: TrackingServer | None = None,
        database: Server | None = None,
        wire: Wire | None = None,
    ) -> None:
        self._command, self._workspace, self._rng = command, workspace, random.Random(seed)
        self._longest = longest  # seconds that something is away
        self.caused: Counter[str] = Counter()
        self._faults: dict[str, Callable[[], bool]] = {
            "worker killed": lambda: self._worker(signal.SIGKILL),
            "worker terminated": lambda: self._worker(signal.SIGTERM),
            "worker hung": lambda: self._worker(signal.SIGSTOP),
            "command killed": lambda: self._parent(signal.SIGKILL),
            "command terminated": lambda: self._parent(signal.SIGTERM),
            "checkpoint damaged": self._checkpoint,
        }
        if server is not None:
            self._faults["tracking server killed"] = lambda: self._server(server)
        if database is not None:
            self._faults["database killed"] = lambda: self._database(database)
        if wire is not None:
            self._faults["network cut"] = lambda: self._wire(wire)
        if workspace.is_mount():
            self._faults["disk full"] = self._disk

    def run(self, faults: int, pause: float) -> None:
        """Cause so many faults, in turn and in a random order."""
        while sum(self.caused.values()) < faults and self._command.is_running():
            fewest = min(self.caused[name] for name in self._faults)
            rare = [name for name in self._faults if self.caused[name] == fewest]
            name = self._rng.choice(rare)
            if self._faults[name]():
                self.caused[name] += 1
                print(f"  {sum(self.caused.values()):>3}  {name}", flush=True)
            time.sleep(self._rng.uniform(0, 2 * pause))

    def _away(self) -> float:
        return self._rng.uniform(0, self._longest)

    def _worker(self, number: int) -> bool:
        workers = self._command.workers()
        if not workers:
            return False
        with suppress(psutil.NoSuchProcess):
            self._rng.choice(workers).send_signal(number)
            return True
        return False

    def _parent(self, number: int) -> bool:
        self._command.signal(number)
        return True

    def _server(self, server: TrackingServer) -> bool:
        server.kill()
        time.sleep(self._away())
        server.start()
        return True

    def _database(self, database: Server) -> bool:
        database.kill()
        time.sleep(self._away())
        database.start()
        return True

    def _wire(self, wire: Wire) -> bool:
        wire.cut()
        time.sleep(self._away())
        wire.mend()
        return True

    def _disk(self) -> bool:
        filler = self._workspace / "filler"
        with suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(2**16))
        time.sleep(self._away() / 4)
        filler.unlink()
        return True

    def _checkpoint(self) -> bool:
        """Damage a checkpoint, and kill the workers so that one of them reads it."""
        files = list((self._workspace / checkpoint.CHECKPOINTS).glob("*/*/*.pt"))
        if not files:
            return False
        with suppress(OSError):
            os.truncate(self._rng.choice(files), 100)
        for worker in self._command.workers():
            with suppress(psutil.NoSuchProcess):
                worker.kill()
        return True


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """A folder on a disk of its own, where this user may mount one; else an ordinary folder."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    mounted = (
        bool(shutil.which("mount"))
        and subprocess.run(["mount", *options], capture_output=True).returncode == 0
    )
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def histories(experiment_id: str = "0") -> dict[str, History]:
    """Name → history of each proxy; asserts that each was trained once, every point is there once
    and nothing is left RUNNING."""
    client = mlflow.MlflowClient()
    runs = search([experiment_id], f"tags.{keys.STAGE} = '{keys.PROXY}'")
    assert not [r.info.run_name for r in runs if r.info.status == "RUNNING"]
    complete = [r for r in runs if r.data.tags.get(keys.COMPLETE) == "true"]
    found: dict[str, History] = {}
    for run in complete:
        assert run.info.status == "FINISHED", run.info.run_name
        assert run.info.run_name not in found, f"{run.info.run_name} was trained twice"
        history: Any = history_from_tags(run.data.tags)
        found[str(run.info.run_name)] = history
        for name in (keys.TRAIN_LOSS, keys.VAL_LOSS + history.domains[0]):
            steps = [m.step for m in client.get_metric_history(run.info.run_id, name)]
            assert len(set(steps)) == len(steps), (run.info.run_name, name)
        first = keys.VAL_LOSS + history.domains[0]
        points = {m.step: m.value for m in client.get_metric_history(run.info.run_id, first)}
        assert sorted(points) == list(history.steps)
        for step, row in zip(history.steps, history.losses, strict=True):
            assert abs(points[step] - row[0]) < ROUNDING, (run.info.run_name, step)
    return found
