"""A sweep as a Slurm job array, on a real cluster of two nodes: through kills, and mistakes."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import mlflow
import psutil
import pytest
from mlflow.entities import Run

from pipelines import entry, sweep, train
from tests.support import postgres, slurm
from tests.support.commands import PATIENCE, ROOT, call, started, wait_for
from tests.support.studies import WriteStudy
from training.engine.devices import Machines
from training.record import keys
from training.record.errors import InputError
from training.record.history import history_from_tags


@pytest.fixture(scope="module")
def cluster() -> Iterator[slurm.Cluster]:
    """Slurm, empty at the end; tests skip where it cannot be started."""
    if reason := slurm.reason_not_to_start():
        pytest.skip(reason)
    with slurm.cluster() as found:
        yield found


def complete(experiment: str = "0") -> list[Run]:
    return mlflow.MlflowClient().search_runs([experiment], "tags.complete = 'true'")


def histories(runs: list[Run]) -> dict[str, Any]:
    return {run.info.run_name: history_from_tags(run.data.tags) for run in runs}


@pytest.mark.slow
@pytest.mark.usefixtures("single_worker")  # for the sweep of this process
def test_an_array_trains_every_proxy_once_whatever_happens_to_its_tasks(
    cluster: slurm.Cluster,
    server: postgres.Server,
    store: str,
    miniature: dict[str, Any],
    write_study: WriteStudy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert store
    tracking = server.database()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    mlflow.set_tracking_uri(tracking)
    miniature["training"]["steps"] = 200
    study = write_study({**miniature, "ledger": server.database()})
    process = started(
        "sweep", f"--study={study}", "--launcher=slurm", "--workers=2", "--sbatch=--time=10:00"
    )
    wait_for(complete, process)
    (array,) = set(cluster.arrays())
    lines = [" ".join(one.cmdline()) for one in psutil.process_iter()]
    shown = [line for line in lines if str(tmp_path) in line]
    assert len(shown) > 2  # the sweep and its tasks
    shown.append(slurm.slurm("scontrol", "show", "job", "--details"))

    # the time of one task is nearly over and the other one is cancelled: when the first one starts
    # again, it trains the runs of both
    slurm.slurm("scancel", "--signal=USR1", "--batch", f"{array}_0")
    slurm.slurm("scancel", f"{array}_1")
    shown += process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, shown[-1][-3000:]
    assert "sweep: all 8 runs are done" in shown[-2]
    assert not cluster.tasks()
    told = slurm.slurm("scontrol", "show", "job", f"{array}_0")
    assert "Restarts=1 " in told
    assert "JobState=COMPLETED " in told

    # every proxy is trained once, as this process alone trains it
    client, done = mlflow.MlflowClient(), complete()
    assert len(histories(done)) == len(done) == 8
    assert not client.search_runs(["0"], "attributes.status = 'RUNNING'")
    with mlflow.start_run(experiment_id=client.create_experiment("alone")) as run:
        call(sweep, study=study, workers="1")
    assert histories(complete(run.info.experiment_id)) == histories(done)

    files = list(Path(miniature["workspace"], "slurm").iterdir())
    assert len(files) == 3  # the job and a log for each task
    shown += [path.read_text() for path in files]
    for text in shown:
        assert postgres.PASSWORD not in text
        assert quote(postgres.PASSWORD, safe="") not in text


@pytest.mark.long
@pytest.mark.slow
def test_a_killed_command_finds_its_array_again_and_ctrl_c_cancels_it(
    cluster: slurm.Cluster, store: str, miniature: dict[str, Any], write_study: WriteStudy
) -> None:
    assert store
    later = "--sbatch=-p one --begin=now+1hour"  # one node may have SQLite
    command = (f"--study={write_study(miniature)}", "--launcher=slurm", "--workers=3", later)
    killed = started("sweep", *command)
    wait_for(lambda: len(cluster.tasks()) == 3, killed)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    array = cluster.arrays()[0]

    process = started("sweep", *command)
    assert process.stderr is not None
    told = [process.stderr.readline()]
    while "Slurm array" not in told[-1]:
        told.append(process.stderr.readline())
        assert told[-1], told
    assert f"array {array} of this sweep is in the queue already, with 3 tasks" in "".join(told)
    assert set(cluster.arrays()) == {array}
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert "sweep: interrupted; run the command again to resume" in errors
    assert not cluster.tasks()


@pytest.mark.long
@pytest.mark.slow
def test_tasks_that_fail_say_why(
    cluster: slurm.Cluster,
    store: str,
    miniature: dict[str, Any],
    write_study: WriteStudy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert store
    assert cluster
    tools = tmp_path / "tools"  # all that the nodes have: no compiler
    tools.mkdir()
    for name in ("sbatch", "squeue", "sinfo", "scancel", "scontrol"):
        (tools / name).symlink_to(f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("CXX", "")
    given = {"launcher": "slurm", "workers": "1", "sbatch": "--partition=one"}
    with mlflow.start_run(), pytest.raises(InputError) as caught:
        call(sweep, study=write_study(miniature), **given)
    message = str(caught.value)
    assert message.startswith("the tasks of Slurm have ended and 8 runs not trained (")
    assert ".log: 'no C++ compiler (c++ or g++) on the PATH: DeepSpeed compiles a ker" in message


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.usefixtures("single_worker")  # for the model that this process trains
def test_one_model_on_the_nodes_of_a_job(
    cluster: slurm.Cluster,
    store: str,
    miniature: dict[str, Any],
    write_study: WriteStudy,
    tmp_path: Path,
) -> None:
    assert store
    assert cluster
    study = write_study(miniature)
    given = {"study": study, "size": "tiny", "steps": "6"}
    options = " ".join(f"--{key}={value}" for key, value in given.items())
    log = tmp_path / "train.log"
    job = ["--wait", "--nodes=2", "--ntasks-per-node=1", f"--output={log}", f"--chdir={ROOT}"]
    slurm.slurm("sbatch", *job, f"--wrap={sys.executable} -m pipelines train {options} --ranks=2")
    (together,) = complete()
    assert together.data.params["processes"] == "2", log.read_text()
    place = mlflow.MlflowClient().create_experiment("alone")
    with mlflow.start_run(experiment_id=place) as run:
        call(train, **given)
    alone = mlflow.get_run(run.info.run_id).data
    assert alone.params["processes"] == "1"
    for name in ("news", "code", "math"):
        metric = keys.VAL_LOSS + name
        assert together.data.metrics[metric] == pytest.approx(alone.metrics[metric], abs=1e-5)


def test_all_tasks_of_a_job_on_several_nodes_train_one_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"JOB_ID": "7", "NNODES": "2", "NTASKS": "16"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert entry.machines("auto", 16) == Machines(1, 16)
    message = (
        "^ranks: 8; this Slurm job has 16 tasks on several nodes, which train one model togeth"
    )
    with pytest.raises(InputError, match=message):
        entry.machines("auto", 8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sbatch": "-p none"}, "sbatch: invalid partition specified: none; allocation failure:"),
        ({"sbatch": "--gpux=1 -p one"}, "sbatch: unrecognized option '--gpux=1'; Try "),
        ({"sbatch": "--nodes=3 -p one"}, "sbatch: allocation failure: Requested node configurat"),
        ({"sbatch": "--array 0-3"}, "sbatch: leave --array out, which the sweep needs itself"),
        ({"sbatch": "-Jmine"}, "sbatch: leave --job-name out"),
        ({"sbatch": "'half"}, 'sbatch: "\'half": No closing quotation'),
        ({"workers": "auto"}, "workers: give the number of tasks of Slurm's job array, such as wo"),
        ({"workers": "0"}, "workers: '0' is not an integer from 1"),
        ({"launcher": "local"}, "sbatch: these are options for launcher=slurm; give that too"),
        ({"launcher": "slurn"}, "launcher: 'slurn'; it is local, slurm"),
        ({"sbatch": ""}, "launcher: Slurm has 2 nodes for these tasks (n1, n2), and SQLite files"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_prepared(
    given: dict[str, str],
    message: str,
    cluster: slurm.Cluster,
    store: str,
    miniature: dict[str, Any],
    write_study: WriteStudy,
) -> None:
    assert store
    standard = {"launcher": "slurm", "workers": "2", "sbatch": "--partition=one"}
    with mlflow.start_run(), pytest.raises(InputError) as caught:
        call(sweep, study=write_study(miniature), **{**standard, **given})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert not Path(miniature["workspace"]).exists()
    assert not cluster.tasks()


def test_without_slurm_one_line_says_so_and_a_plan_needs_none(
    store: str,
    miniature: dict[str, Any],
    write_study: WriteStudy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert store
    monkeypatch.setenv("PATH", str(tmp_path))
    given = {"study": write_study(miniature), "launcher": "slurm", "workers": "7"}
    with (
        mlflow.start_run(),
        pytest.raises(InputError, match=r"^launcher: sinfo is not on the PATH"),
    ):
        call(sweep, **given)
    with mlflow.start_run():
        call(sweep, **given, plan="true", throughput="1e9")
    assert "with 7 workers about" in capsys.readouterr().out
