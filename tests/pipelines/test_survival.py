"""Sweeps that need no hand: workers, commands, servers, databases and disks fail meanwhile."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import mlflow
import pytest

from tests.support import chaos
from tests.support.chaos import Chaos, Command, TrackingServer, Wire
from tests.support.commands import run_entry
from tests.support.postgres import Server
from tests.support.studies import WriteStudy

WAIT_SECONDS = 300

pytestmark = pytest.mark.slow


def finished(command: Command) -> str:
    """What a command printed, once it ended well."""
    code = command.process.wait(WAIT_SECONDS)
    text = command.log.read_text()
    assert code == 0, text[-3000:]
    return text


def test_a_sweep_survives_every_fault(
    store: str,
    server: Server,
    miniature: dict[str, Any],
    write_study: WriteStudy,
    tmp_path: Path,
) -> None:
    assert store
    miniature["training"].update(steps=1500, evaluations=3)
    miniature["engine"] = {"checkpoint_minutes": 0.01, "stall_minutes": 0.2}
    miniature["sweep"] = {"mixtures": 5, "sizes": ["tiny", "small"]}
    miniature["sizes"]["wild"] = {"hidden_size": 16, "layers": 1, "heads": 1, "learning_rate": 1e30}
    miniature["sweep"]["sizes"].append("wild")
    quiet = run_entry("sweep", "--study", write_study(miniature), "--workers", "2")
    assert quiet.returncode == 0, quiet.stderr[-3000:]
    expected = chaos.histories()
    assert len(expected) == 10

    workspace = tmp_path / "small disk"
    miniature.update(workspace=str(workspace), ledger=server.database())
    study = write_study(miniature)
    with ExitStack() as ends, chaos.small_disk(workspace, 60):
        tracking = TrackingServer(server.database(), tmp_path / "artifacts")
        tracking.start()
        ends.callback(tracking.kill)
        tracking.wait()
        wire = Wire(tracking.port)
        uri = f"http://127.0.0.1:{wire.port}"
        command = Command(
            *("sweep", "--study", study, "--workers", "2"),
            env={"MLFLOW_TRACKING_URI": uri},
            log=tmp_path / "log",
        )
        ends.callback(command.process.kill)
        faults = Chaos(
            command, workspace, 0, longest=8, server=tracking, database=server, wire=wire
        )
        faults.run(12, pause=2)
        while command.is_running():
            pass
        finished(command)
        assert sum(faults.caused.values()) == 12, faults.caused
        mlflow.set_tracking_uri(uri)
        assert chaos.histories() == expected

        done = run_entry("status", "--study", study, env={"MLFLOW_TRACKING_URI": uri})
        assert "15 runs" in done.stdout
        assert "10 done, 5 diverged, 0 running, 0 waiting" in done.stdout, done.stderr
