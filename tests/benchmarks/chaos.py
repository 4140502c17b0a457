"""How many faults a sweep survives without a hand.

    python -m tests.benchmarks.chaos [--faults 200] [--sweeps 4] [--seed 0] [--longest 60]

Each sweep trains with two workers; its ledger and the tracking server's store are databases on a
real PostgreSQL, and a real `mlflow server` stands behind a connection that can be cut. Faults are
caused in random order: workers and commands killed, terminated and hung, the server and the
database killed and started again, the network cut, the disk full, checkpoints damaged; one proxy in
three diverges. A supervisor, as a cluster has one, starts a command that was killed again, and does
nothing else. In the end every proxy must have been trained once, with the losses of a quiet sweep.
"""

import argparse
import os
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import mlflow

from tests.support import chaos, postgres
from tests.support.chaos import Chaos, Command, TrackingServer, Wire
from tests.support.commands import run_entry
from tests.support.studies import made_up_texts, miniature_study, written
from training.record.history import History

WORKERS = "2"
DISK_MB = 60


def study_of(folder: Path, steps: int, mixtures: int) -> dict[str, Any]:
    study = miniature_study(folder, made_up_texts())
    wild = {"hidden_size": 16, "layers": 1, "heads": 1, "learning_rate": 1e30}
    study["sizes"]["wild"] = wild
    study["training"].update(steps=steps, evaluations=6)
    study["sweep"] = {"mixtures": mixtures, "sizes": ["tiny", "small", "wild"]}
    study["engine"] = {"checkpoint_minutes": 0.02, "stall_minutes": 0.5}
    return study


def quiet(folder: Path, study: dict[str, Any]) -> dict[str, History]:
    """The histories of a sweep that nothing disturbs."""
    uri = f"sqlite:///{folder}/quiet.db"
    settings = {**study, "workspace": str(folder / "quiet")}
    env = {"MLFLOW_TRACKING_URI": uri}
    started = time.monotonic()
    done = run_entry("sweep", "--study", written(folder, settings), "--workers", WORKERS, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    print(f"a quiet sweep: {time.monotonic() - started:.0f} s")
    mlflow.set_tracking_uri(uri)
    return chaos.histories()


def disturbed(
    folder: Path,
    study: dict[str, Any],
    server: postgres.Server,
    faults: int,
    seed: int,
    longest: float,
    expected: dict[str, History],
) -> Counter[str]:
    """A sweep with faults; returns how many of each kind."""
    workspace = folder / f"disk{seed}"
    settings = {**study, "workspace": str(workspace), "ledger": server.database()}
    with ExitStack() as ends, chaos.small_disk(workspace, DISK_MB):
        tracking = TrackingServer(server.database(), folder / f"artifacts{seed}")
        tracking.start()
        ends.callback(tracking.kill)
        tracking.wait()
        wire = Wire(tracking.port)
        uri = f"http://127.0.0.1:{wire.port}"
        started = time.monotonic()
        log = Path(os.environ.get("CHAOS_LOG", str(folder)), f"log{seed}")
        command = Command(
            *("sweep", "--study", written(folder, settings), "--workers", WORKERS),
            env={"MLFLOW_TRACKING_URI": uri},
            log=log,
        )
        ends.callback(lambda: command.process.kill())
        cause = Chaos(
            command, workspace, seed, longest=longest, server=tracking, database=server, wire=wire
        )
        cause.run(faults, pause=4)
        while command.is_running():
            time.sleep(0.5)
        seconds = time.monotonic() - started
        assert command.process.returncode == 0, log.read_text()[-5000:]
        mlflow.set_tracking_uri(uri)
        assert chaos.histories() == expected
        print(
            f"sweep {seed}: {sum(cause.caused.values())} faults, {command.starts} starts, "
            f"{seconds:.0f} s; every proxy once, histories equal"
        )
        return cause.caused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--sweeps", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=60, help="seconds that something is away")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--mixtures", type=int, default=8)
    arguments = parser.parse_args()
    caused: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch, postgres.server() as server:
        folder = Path(scratch)
        study = study_of(folder, arguments.steps, arguments.mixtures)
        expected = quiet(folder, study)
        share = -(-arguments.faults // arguments.sweeps)
        for i in range(arguments.sweeps):
            caused += disturbed(
                folder, study, server, share, arguments.seed + i, arguments.longest, expected
            )
    for name, count in sorted(caused.items()):
        print(f"{count:>5}  {name}")
    print(f"{sum(caused.values()):>5}  faults in all")


if __name__ == "__main__":
    main()
