"""Sweeps that need no hand: workers, commands, servers, databases and disks fail meanwhile."""

import os
import re
import shutil
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import mlflow
import pytest

from pipelines import entry, sweep
from tests.benchmarks import stores
from tests.support import chaos
from tests.support.chaos import Chaos, Command, TrackingServer, Wire
from tests.support.commands import call, run_entry
from tests.support.postgres import Server
from tests.support.studies import WriteStudy
from training.engine.devices import free_port
from training.record import keys
from training.record.errors import InputError

WAIT_SECONDS = 300
KINDS = 6  # faults, each of another kind

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
    miniature["training"].update(steps=600, evaluations=3)
    miniature["engine"] = {"checkpoint_minutes": 0.01, "stall_minutes": 0.5}
    wild = {"hidden_size": 16, "layers": 1, "heads": 1, "learning_rate": 1e30}
    miniature["sizes"]["wild"] = wild
    miniature["sweep"] = {"mixtures": 5, "sizes": ["tiny", "wild"]}
    quiet = run_entry("sweep", "--study", write_study(miniature), "--workers", "2")
    assert quiet.returncode == 0, quiet.stderr[-3000:]
    expected = chaos.histories()
    assert len(expected) == 5

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
            command, workspace, 0, longest=4, server=tracking, database=server, wire=wire
        )
        while not list(workspace.glob("outbox/*/journal")):
            assert command.is_running(), command.log.read_text()
            time.sleep(0.2)
        faults.run(KINDS, pause=1)
        while command.is_running():
            time.sleep(0.2)
        finished(command)
        assert sum(faults.caused.values()) == KINDS, faults.caused
        mlflow.set_tracking_uri(uri)
        assert chaos.histories() == expected

        done = run_entry("status", "--study", study, env={"MLFLOW_TRACKING_URI": uri})
        assert "10 runs" in done.stdout
        assert "5 done, 5 diverged, 0 running, 0 waiting" in done.stdout, done.stderr


@pytest.mark.long
def test_what_a_server_that_stays_away_has_missed_is_delivered_later(
    store: str, miniature: dict[str, Any], write_study: WriteStudy, tmp_path: Path
) -> None:
    assert store
    miniature["engine"] = {"patience_minutes": 0.05}
    study, port = write_study(miniature), free_port()
    env = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
    log, workspace = tmp_path / "log", Path(miniature["workspace"])
    with stores.http(tmp_path, port):
        command = Command("sweep", "--study", study, "--workers", "2", env=env, log=log)
        while not list(workspace.glob("outbox/*/journal")):
            assert command.process.poll() is None, log.read_text()
            time.sleep(0.1)
    assert command.process.wait(WAIT_SECONDS) == 1
    assert "; training goes on, and what it logs waits in " in log.read_text()
    last = log.read_text().rstrip().splitlines()[-1]
    assert last.startswith("sweep: waited 0.05 minutes (engine.patience_minutes) for the tracking ")
    assert "send it with the entry point deliver" in last
    assert "Traceback" not in log.read_text()
    waiting = len(list(workspace.glob("outbox/*/journal")))
    assert waiting >= 7

    with stores.http(tmp_path, port):
        mlflow.set_tracking_uri(env["MLFLOW_TRACKING_URI"])
        done = run_entry("deliver", "--study", study, env=env)
        assert done.returncode == 0, done.stderr
        assert "deliver: the logs of" in done.stdout
        assert len(chaos.histories()) == 8
        assert not list(workspace.glob("outbox/*/journal"))
        done = run_entry("sweep", "--study", study, env=env)
        assert "sweep: all 8 runs are done, 0 of them since this command started" in done.stdout
        done = run_entry("status", "--study", study, env=env)
        assert "8 done, 0 running, 0 waiting" in done.stdout

        (tmp_path / "elsewhere").mkdir()  # what waits may also go to another server
        miniature["sweep"]["mixtures"] = 5
        miniature["engine"] = {"patience_minutes": 0.02}
        study = write_study(miniature)
        command = Command("sweep", "--study", study, "--workers", "1", env=env, log=log)
        while not list(workspace.glob("outbox/*/journal")):
            assert command.process.poll() is None, log.read_text()
            time.sleep(0.1)
    assert command.process.wait(WAIT_SECONDS) == 1
    elsewhere = f"sqlite:///{tmp_path}/elsewhere/mlflow.db"
    done = run_entry("deliver", "--study", study, env={"MLFLOW_TRACKING_URI": elsewhere})
    assert done.returncode == 0, done.stderr
    mlflow.set_tracking_uri(elsewhere)
    delivered = chaos.histories()
    assert set(delivered) == {f"mix04-{size}" for size in ("tiny", "small")}


@pytest.mark.long
def test_two_people_share_a_sweep_on_two_machines(
    store: str,
    server: Server,
    miniature: dict[str, Any],
    write_study: WriteStudy,
    tmp_path: Path,
) -> None:
    """The machines are two users' homes; they share the workspace, the ledger and the server."""
    assert store
    miniature["sweep"]["mixtures"] = 12
    miniature["ledger"] = server.database()
    study = write_study(miniature)
    assert run_entry("prepare", "--study", study).returncode == 0
    tracking = server.database()
    mlflow.set_tracking_uri(tracking)
    mlflow.search_experiments()  # makes the tables
    commands = []
    for name in ("one", "two"):
        home = tmp_path / name
        home.mkdir()
        env = {"MLFLOW_TRACKING_URI": tracking, "HOME": str(home), "LOGNAME": name}
        env["XDG_CACHE_HOME"] = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
        log = home / "log"
        commands.append(Command("sweep", "--study", study, "--workers", "2", env=env, log=log))
    for command in commands:
        assert "sweep: all 24 runs are done" in finished(command)
    assert len(chaos.histories()) == 24
    trainers = {run.data.tags["mlflow.user"] for run in mlflow.search_runs(output_format="list")}
    assert trainers == {"one", "two"}


@pytest.mark.usefixtures("store", "single_worker")
def test_a_study_grows_only_by_runs_that_can_be_compared(
    miniature: dict[str, Any], write_study: WriteStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    def swept(**changes: Any) -> str:
        miniature["sweep"].update(changes)
        with entry.stage(keys.SWEEP):
            call(sweep, study=write_study(miniature), workers="1")
        return capsys.readouterr()[0]

    assert "all 3 runs are done, 3 of them since this command started" in swept(
        mixtures=3, sizes=["small"]
    )
    grown = swept(mixtures=5, sizes=["tiny", "small"])
    assert "all 10 runs are done, 7 of them since this command started" in grown
    assert "all 6 runs are done, 0 of them" in swept(mixtures=3)
    assert "all 10 runs are done, 0 of them" in swept(mixtures=5)  # of the larger sweep
    miniature["training"]["batch_size"] = 4
    miniature["tokenizer"]["vocab_size"] = 330
    what = r"tokenizer\.vocab_size: 320 → 330, training\.batch_size: 8 → 4; .* another name, or"
    with pytest.raises(InputError, match=what):
        swept()
    assert len(chaos.histories()) == 10


def test_status_says_how_far_a_sweep_is_and_cleans_up(
    store: str, miniature: dict[str, Any], write_study: WriteStudy, tmp_path: Path
) -> None:
    assert store
    miniature["training"].update(steps=100_000)
    miniature["engine"] = {"checkpoint_minutes": 0.001}
    miniature["sweep"] = {"mixtures": 3, "sizes": ["small"]}
    study, checkpoints = write_study(miniature), Path(miniature["workspace"], "checkpoints")
    command = Command("sweep", "--study", study, "--workers", "1", env={}, log=tmp_path / "log")
    while not list(checkpoints.glob("*/state.json")):
        assert command.process.poll() is None, command.log.read_text()
        time.sleep(0.1)
    status = run_entry("status", "--study", study)
    assert "sweep of study 'miniature'" in status.stdout, status.stderr
    assert "0 done, 1 running, 2 waiting" in status.stdout
    assert re.search(rf"default-small +{socket.gethostname()}, process \d+", status.stdout)
    command.process.kill()
    command.process.wait()

    (folder,) = checkpoints.glob("*/")
    damaged = folder.with_name(f"{folder.name}.damaged-1")
    shutil.copytree(folder, damaged)
    while "0 done, 0 running, 3 waiting" not in status.stdout:
        status = run_entry("status", "--study", study, "--clean", "true")
    assert folder.exists()  # the next sweep goes on from it
    assert not damaged.exists()
    runs = mlflow.search_runs(filter_string="tags.stage = 'proxy'", output_format="list")
    assert [run.info.status for run in runs] == ["KILLED"]
